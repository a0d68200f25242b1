"""Local overrides of one replica: held while etcd has no quorum, and for half an hour at most.

Rules
- One is accepted only while etcd does not answer; as soon as it does, all end: the committed plan,
  or the one the leader commits next, holds for everybody again.
- Each expires by itself; none survives a restart (the disk has the committed plan only).
- A committed plan with a higher epoch ends them at once (`PlanBoard.adopt`).
- Revisions rise with every change, so that subscribers of one epoch know the newer word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from controlplane.clock import Clock
from controlplane.decision.local import local_plan
from controlplane.model import audit
from controlplane.model.errors import Alarm, RefusedError
from controlplane.model.intents import NO_INTENTS, Intents
from controlplane.model.plan import LocalOverride, Plan
from controlplane.model.topology import Topology
from controlplane.runtime.board import PlanBoard

log = structlog.get_logger(__name__)

LOOK_MS: Final = 200
MAX_S: Final = 1_800
DEFAULT_S: Final = 600


class Noted(Protocol):
    """Where ends are recorded (adapters.audit_trail)."""

    def note(self, kind: str, *, target: str, by: str, reason: str, message: str) -> None:
        """Record something."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds at this replica: the intents, who asked and why, and until when."""

    intents: Intents
    by: str
    reason: str
    until_ms: int
    revision: int


class LocalOverrides:
    """Holds the local override of this replica. `run` must be running."""

    def __init__(
        self,
        *,
        replica: str,
        board: PlanBoard,
        topology: Callable[[], Topology],
        coordinated: Callable[[], bool],
        to_data_planes: Callable[[Plan], None],
        noted: Noted,
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._board = board
        self._topology = topology
        self._coordinated = coordinated
        self._to_data_planes = to_data_planes
        self._noted = noted
        self._clock = clock
        self._revision = clock.wall_ms()  # above those of an earlier life of this replica
        self._held: Held | None = None

    @property
    def held(self) -> Held | None:
        """What holds now, None while nothing does."""
        if self._held is not None and self._board.served is self._board.plan:
            return None  # a newer plan took it away
        return self._held

    @property
    def intents(self) -> Intents:
        """The intents that hold at this replica."""
        held = self.held
        return held.intents if held else NO_INTENTS

    @property
    def served(self) -> Plan | None:
        """What subscribers follow, with the time that is left of a local override."""
        plan = self._board.served
        if plan is None or plan.local is None:
            return plan
        held = self._held
        left_ms = max(0, held.until_ms - self._clock.monotonic_ms()) if held else 0
        return replace(plan, local=replace(plan.local, left_ms=left_ms))

    def would_be(self, intents: Intents) -> tuple[Plan, Plan]:
        """Return the committed plan and what the intents would make of it here."""
        plan = self._board.plan
        if plan is None:
            raise RefusedError("local", "there is no last good plan to override")
        return plan, local_plan(self._topology(), plan, intents)

    async def hold(self, intents: Intents, *, by: str, reason: str, ttl_s: int) -> Held:
        """Put intents into force for the subscribers of this replica."""
        if self._coordinated():
            raise RefusedError(
                "coordinated", "etcd answers: change it for everybody, without --local"
            )
        _, over = self.would_be(intents)
        if violations := audit.check(over, None):
            raise Alarm(f"local override of {over.epoch}: {'; '.join(map(str, violations))}")
        self._revision += 1
        until_ms = self._clock.monotonic_ms() + min(ttl_s, MAX_S) * 1000
        self._held = Held(
            intents=intents, by=by, reason=reason, until_ms=until_ms, revision=self._revision
        )
        await self._lay(over, self._held, left_ms=min(ttl_s, MAX_S) * 1000)
        return self._held

    async def run(self) -> None:
        """End what has expired, and everything as soon as etcd answers."""
        while True:
            await self._clock.sleep_ms(LOOK_MS)
            held = self._held
            if held is None:
                continue
            if self.held is None:
                self._held = None
                self._end(held, "a newer plan was committed")
            elif self._coordinated():
                await self.lift("etcd answers again")
            elif self._clock.monotonic_ms() >= held.until_ms:
                await self.lift("expired")

    async def lift(self, why: str) -> None:
        """End the override: subscribers return to the committed weights."""
        held, plan = self._held, self._board.plan
        self._held = None
        if held is None or plan is None:
            return
        self._revision += 1
        await self._lay(plan, replace(held, revision=self._revision), left_ms=0)
        self._end(held, why)

    async def _lay(self, over: Plan, held: Held, *, left_ms: int) -> None:
        local = LocalOverride(
            revision=held.revision,
            replica=self._replica,
            by=held.by,
            reason=held.reason,
            expires_at_ms=self._clock.wall_ms() + left_ms,
            left_ms=left_ms,
        )
        over = replace(over, local=local)
        await self._board.lay(over)
        self._to_data_planes(over)

    def _end(self, held: Held, why: str) -> None:
        log.warning("local_override_ended", why=why, by=held.by, reason=held.reason)
        self._noted.note(
            "local_override_ended",
            target=self._replica,
            by=f"replica/{self._replica}",
            reason=held.reason,
            message=why,
        )


class ServedBoard:
    """The board as subscribers see it: what lies over the plan, with the time that is left."""

    def __init__(self, board: PlanBoard, local: LocalOverrides) -> None:
        self._board = board
        self._local = local

    @property
    def plan(self) -> Plan | None:
        """The committed plan."""
        return self._board.plan

    @property
    def served(self) -> Plan | None:
        """What subscribers follow."""
        return self._local.served

    def watch(self, after_epoch: int = 0) -> AsyncIterator[Plan]:
        """Yield newer plans and overrides for ever."""
        return self._board.watch(after_epoch)
