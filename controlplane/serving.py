"""The plan on its way through this replica: from disk at the start, from etcd then, to data planes.

Only what was read back from etcd, or was the last good plan before that, is published. The disk
follows; a full disk is told and holds nothing up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import structlog

from agents.store import PlanFile, Saved
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.adapters.prometheus import Metrics
from controlplane.adapters.wire import decode_plan, encode_plan
from controlplane.adapters.xds_ads import AdsService
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.model.dataplane import DataPlane
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.ids import Epoch
from controlplane.model.plan import Plan
from controlplane.runtime.board import PlanBoard

log = structlog.get_logger(__name__)


class PlanServing:
    """Brings plans to the board, the data planes and the disk."""

    def __init__(
        self,
        *,
        file: PlanFile,
        board: PlanBoard,
        ads: AdsService,
        metrics: Metrics,
        dataplane: Callable[[], DataPlane | None],
    ) -> None:
        self._file = file
        self._board = board
        self._ads = ads
        self._metrics = metrics
        self._dataplane = dataplane
        self._unsaved: Saved | None = None
        self._dirty = asyncio.Event()
        self._writing = threading.Lock()

    def last_good(self) -> Epoch:
        """Serve the plan from disk; return the highest epoch that the disk knows of."""
        try:
            self._file.prepare()
        except UnavailableError as error:
            raise InvalidInputError(
                "server.state_dir", f"{error}; choose a writable folder"
            ) from error
        saved = self._file.load()
        if saved.plan is not None:
            try:
                plan = decode_plan(saved.plan)
            except InvalidInputError as error:
                log.error("last_good_plan_refused", error=str(error))
                return Epoch(saved.highest_epoch)
            self._board.adopt(plan)
            self.to_data_planes(plan, confirmed=False)
            log.info("last_good_plan", epoch=plan.epoch)
        return Epoch(saved.highest_epoch)

    def to_data_planes(self, plan: Plan, *, confirmed: bool) -> None:
        """Give a plan to metrics and xDS."""
        self._metrics.set_plan(plan)
        dataplane = self._dataplane()
        if dataplane is None:
            return
        try:
            self._ads.publish(Snapshot.build(plan, dataplane), confirmed=confirmed)
        except InvalidInputError as error:
            log.error("plan_not_for_data_planes", epoch=plan.epoch, error=str(error))

    async def follow(self, store: EtcdPlanStore, highest_seen: Callable[[], Epoch]) -> None:
        """Publish what was read back from etcd, and nothing else."""
        async with contextlib.aclosing(store.follow()) as plans:
            async for committed in plans:
                if not await self._board.publish(committed.plan):
                    continue
                self.to_data_planes(committed.plan, confirmed=True)
                self._unsaved = Saved(
                    plan=encode_plan(committed.plan),
                    highest_epoch=max(highest_seen(), committed.plan.epoch),
                )
                self._dirty.set()

    async def save(self) -> None:
        """Bring the newest published plan to disk, in its own time: a write that stalls delays no
        plan, and plans that came meanwhile are skipped."""
        try:
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                await asyncio.to_thread(self._save)
        finally:
            self._save()

    def _save(self) -> None:
        with self._writing:  # one at a time: the older of two must not come last
            saved, self._unsaved = self._unsaved, None
            if saved is None:
                return
            try:
                self._file.save(saved)
            except UnavailableError as error:
                log.error("plan_not_saved", error=str(error))
