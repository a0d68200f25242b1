"""Accept or refuse a plan, and put it into force: in memory, on disk, at the local data plane.

Rules
- Only a plan whose epoch is above ours is applied, whichever replica sends it and however late.
- Only a plan that is well-formed and passes the checker is applied (structure only: the agent must
  not refuse a plan because its own configuration is one rollout behind).
- The highest epoch ever seen is kept, also of plans that were refused: it is reported, so that a
  leader that comes back from an old backup goes above it.
- The disk comes first, so that a restart never gives the data plane an older plan than it had; but
  it gets at most `DISK_WAIT_MS`: a slow or full disk must not hold up a failover. Until then the
  plan is accepted and not yet settled: nothing else, such as a confirmation, gives it to a sink.
- A plan counts as applied when every sink has taken it. A sink that fails is tried again until it
  succeeds or a newer plan comes; until then the older epoch is what we report.
- A replica without a quorum may lay a local override over the plan of the epoch we have. The sinks
  get it for the time it has left by our own clock, at most half an hour; a plan with a higher
  epoch, a confirmation of the one we have, or its end takes it away. It never comes to disk.
- A sink also learns when a replica confirms that the plan is still in force: what must not outlive
  the control plane lives on these confirmations. One confirmation counts once: neither an override,
  nor its end, nor another try at a sink that failed is one.
- Revisions of overrides are compared within one replica only: each replica numbers its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agents.store import PlanFile, Saved
from controlplane.adapters.wire import decode_plan
from controlplane.clock import Clock
from controlplane.logging import get
from controlplane.model.audit import check
from controlplane.model.epochs import EPOCH_JUMP_MAX, EPOCH_MAX
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.plan import LocalOverride, Plan
from controlplane.v1 import common_pb2

DISK_WAIT_MS: Final = 250
DISK_RETRY_MS: Final = 5_000
SINK_RETRY_MS: Final = 1_000
MAX_NAMED: Final = 3
"""Violations named in a refusal; more would not be read."""

log = get("apply")


class Sink(Protocol):
    """Somebody who must have the plan before it counts as applied, such as a writer of files."""

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Take a plan; any exception means that it was not taken and is to be offered again.

        `confirmed` is True when a replica has vouched for this plan just now, and for the first
        offer of a newer plan at an agent that a replica has vouched to before. False says nothing
        new: what was confirmed earlier stays so until it is too old.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of an offered plan: the epoch now applied, and why the offer was refused."""

    epoch: int
    error: str = ""
    stale: bool = False


class Applier:
    """Holds the plan in force at this agent. `run` must be running for disk and retries."""

    def __init__(
        self,
        file: PlanFile,
        clock: Clock,
        sinks: Sequence[Sink] = (),
        *,
        noted: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._file = file
        self._clock = clock
        self._sinks = tuple(sinks)
        self._noted = noted
        self._message: common_pb2.Plan | None = None
        self._plan: Plan | None = None
        self._over: Plan | None = None
        self._over_until_ms = 0
        self._fed: Plan | None = None
        self._over_seen: tuple[str, int, int] = ("", 0, 0)
        self._settled_epoch = 0
        self._disk_until_ms = 0
        self._confirmed = False
        self._vouched = False
        self._offered_epoch = 0
        self._applied_epoch = 0
        self._highest_epoch = 0
        self._changed = asyncio.Condition()
        self._feeding = asyncio.Lock()
        self._hungry = asyncio.Event()
        self._unsaved = asyncio.Event()
        self._tried = asyncio.Event()
        self._disk_well = True
        self._complaint = ""

    @property
    def message(self) -> common_pb2.Plan | None:
        """The accepted plan as it came; None before the first."""
        return self._message

    @property
    def plan(self) -> Plan | None:
        """The accepted plan; None before the first."""
        return self._plan

    @property
    def accepted_epoch(self) -> int:
        """Epoch of the accepted plan; 0 when none."""
        return self._plan.epoch if self._plan else 0

    @property
    def applied_epoch(self) -> int:
        """Epoch that every sink has taken; 0 when none."""
        return self._applied_epoch

    @property
    def highest_epoch(self) -> int:
        """Highest epoch ever seen, also before this start and in refused plans."""
        return self._highest_epoch

    @property
    def disk_well(self) -> bool:
        """Whether the last write to disk succeeded."""
        return self._disk_well

    async def restore(self, seen_epoch: int = 0) -> None:
        """Load the plan from disk; a plan that does not pass the checks is left out.

        `seen_epoch` is the highest epoch known from elsewhere, such as files of a data plane.
        """
        saved = self._file.load()
        self._highest_epoch = max(saved.highest_epoch, seen_epoch)
        if saved.plan is None:
            log.info("no_plan_on_disk", highest_epoch=saved.highest_epoch)
            return
        try:
            plan = self._examine(saved.plan)
        except InvalidInputError as error:
            log.error("plan_on_disk_refused", error=str(error))
            return
        self._message, self._plan = saved.plan, plan
        self._settled_epoch = plan.epoch
        await self._feed()
        log.info("plan_restored", epoch=plan.epoch, applied_epoch=self._applied_epoch)

    async def offer(self, message: common_pb2.Plan) -> Verdict:
        """Apply a plan or refuse it; never raises for anything a replica can send."""
        ours = self.accepted_epoch
        if message.HasField("local"):
            return await self._lay(message)
        if message.epoch <= ours:
            error = f"epoch {message.epoch} is not above {ours}"
            return Verdict(epoch=self._applied_epoch, error=error, stale=True)
        try:
            plan = self._examine(message)
        except InvalidInputError as error:
            self._noted("refused")
            self._unsaved.set()  # the highest epoch may have risen
            log.error("plan_refused", epoch=message.epoch, error=str(error))
            return Verdict(epoch=self._applied_epoch, error=str(error))
        # whether it is confirmed stays as it was: a replica cut off from etcd may serve an old plan
        self._message, self._plan, self._over = message, plan, None
        self._disk_until_ms = self._clock.monotonic_ms() + DISK_WAIT_MS
        await self._save_soon()
        self._settled_epoch = self.accepted_epoch
        await self._feed()
        async with self._changed:
            self._changed.notify_all()
        if self._applied_epoch < plan.epoch:
            self._noted("not_taken")
            return Verdict(epoch=self._applied_epoch, error="the local data plane did not take it")
        self._noted("applied")
        log.info("plan_applied", epoch=plan.epoch, term=plan.term)
        return Verdict(epoch=plan.epoch)

    def confirm(self, epoch: int) -> None:
        """Note that a replica serves `epoch` now: if it is ours, it is still in force."""
        if epoch == self.accepted_epoch and epoch > 0:
            self._confirmed = self._vouched = True
            self._over = None  # a quorum has spoken
            self._hungry.set()

    async def _lay(self, message: common_pb2.Plan) -> Verdict:
        """Lay a local override over the plan we have, or take it away."""
        said = Verdict(epoch=self._applied_epoch, stale=True)
        try:
            over = decode_plan(message)
        except InvalidInputError as error:
            return Verdict(epoch=self._applied_epoch, error=str(error))
        local = over.local
        if over.epoch != self.accepted_epoch or local is None or not self._is_news(over, local):
            return said
        if violations := check(over, None):
            broken = "; ".join(str(v) for v in violations[:MAX_NAMED])
            return Verdict(epoch=self._applied_epoch, error=broken)
        self._over_seen = (local.replica, over.epoch, local.revision)
        self._over = over if local.left_ms else None
        self._over_until_ms = self._clock.monotonic_ms() + local.left_ms
        log.warning("local_override", epoch=over.epoch, left_ms=local.left_ms, by=local.by)
        await self._feed()
        return said

    def _is_news(self, over: Plan, local: LocalOverride) -> bool:
        """Tell whether an override is later than the one we have, as far as that can be said."""
        replica, *seen = self._over_seen
        if local.replica == replica:
            return [over.epoch, local.revision] > seen
        # another replica's, which we follow now; its end concerns its own override only
        return local.left_ms > 0

    def _in_force(self) -> Plan | None:
        """Return what the sinks are to have now."""
        if self._over is not None and self._clock.monotonic_ms() >= self._over_until_ms:
            log.warning("local_override_expired", epoch=self._over.epoch)
            self._over = None
        return self._over or self._plan

    async def wait_above(self, epoch: int) -> Plan:
        """Wait until a plan above `epoch` is in force and return the newest."""
        async with self._changed:
            while self._plan is None or self._plan.epoch <= epoch:
                await self._changed.wait()
            return self._plan

    async def run(self) -> None:
        """Write to disk what is not there yet and feed the sinks, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_writing(), name="plan-disk")
            group.create_task(self._keep_feeding(), name="plan-sinks")

    async def flush(self) -> None:
        """Write to disk what is not there yet, once (the end of the process)."""
        if self._unsaved.is_set():
            await self._write()

    def _examine(self, message: common_pb2.Plan) -> Plan:
        known = self._highest_epoch
        if message.epoch > (min(EPOCH_MAX, known + EPOCH_JUMP_MAX) if known else EPOCH_MAX):
            raise InvalidInputError("epoch", f"{message.epoch} is beyond belief after {known}")
        self._highest_epoch = max(known, message.epoch)
        plan = decode_plan(message)
        if violations := check(plan, None, self._plan):
            named = (f"{v.rule} {v.field}: {v.message}" for v in violations[:MAX_NAMED])
            raise InvalidInputError("plan", "; ".join(named))
        return plan

    async def _feed(self) -> None:
        async with self._feeding:
            plan = self._in_force()
            if plan is None or self._is_at_the_disk(plan):
                return
            confirmed = self._vouched or (self._confirmed and plan.epoch > self._offered_epoch)
            self._vouched, self._offered_epoch = False, plan.epoch
            for sink in self._sinks:
                try:
                    await sink.take(plan, confirmed=confirmed)
                except Exception as error:  # noqa: BLE001 - the plan stays in force for others
                    complaint = f"{plan.epoch}: {error}"
                    if complaint != self._complaint:  # said once, tried again every second
                        log.error("plan_not_taken", epoch=plan.epoch, error=str(error))
                    self._complaint = complaint
                    return
            self._complaint, self._fed = "", plan
            self._applied_epoch = plan.epoch

    def _is_at_the_disk(self, plan: Plan) -> bool:
        """Tell whether the disk has its turn: a confirmation or an override must not overtake it.
        The turn ends by the clock too: an offer may be cancelled with the link that brought it."""
        waiting = self._clock.monotonic_ms() < self._disk_until_ms
        return waiting and plan.epoch > self._settled_epoch

    async def _keep_feeding(self) -> None:
        while True:
            try:
                async with asyncio.timeout(SINK_RETRY_MS / 1000):
                    await self._hungry.wait()
            except TimeoutError:
                if self._applied_epoch == self.accepted_epoch and self._in_force() is self._fed:
                    continue
            self._hungry.clear()
            await self._feed()

    async def _save_soon(self) -> None:
        self._tried.clear()
        self._unsaved.set()
        if not self._disk_well:  # it has failed before: nobody waits for it again
            return
        try:
            async with asyncio.timeout(DISK_WAIT_MS / 1000):
                await self._tried.wait()
        except TimeoutError:
            log.warning("disk_slow", waited_ms=DISK_WAIT_MS, epoch=self.accepted_epoch)

    async def _keep_writing(self) -> None:
        while True:
            await self._unsaved.wait()
            if not await self._write():
                await self._clock.sleep_ms(DISK_RETRY_MS)

    async def _write(self) -> bool:
        self._unsaved.clear()
        saved = Saved(plan=self._message, highest_epoch=self._highest_epoch)
        try:
            await asyncio.to_thread(self._file.save, saved)
        except UnavailableError as error:
            self._unsaved.set()
            if self._disk_well:
                log.error("plan_not_saved", error=str(error), remedy="free or remount the disk")
            self._disk_well = False
            return False
        else:
            if not self._disk_well:
                log.info("plan_saved_again", epoch=self.accepted_epoch)
            self._disk_well = True
            return True
        finally:
            if saved.plan is self._message:
                self._tried.set()
