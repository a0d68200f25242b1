"""Local overrides of one replica: held while etcd has no quorum, and for half an hour at most.

Rules
- One is accepted only while etcd does not answer; as soon as it does, all end: the committed plan,
  or the one the leader commits next, holds for everybody again.
- Each intent keeps its own end. When one ends, the others are laid anew; with the last (ended or
  taken back) the override ends. If the rest would move a single writer, break the audit, or
  overload a region (and nobody overrode that rule for it), all end.
- Asking again for what is held renews that intent, and no other. None survives a restart (the
  disk has the committed plan only).
- A committed plan with a higher epoch ends them at once (`PlanBoard.adopt`).
- Revisions rise with every change, so that subscribers of one epoch know the newer word.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from controlplane.clock import Clock
from controlplane.decision.local import local_plan, single_writer_moves
from controlplane.decision.rules import overloads
from controlplane.model import audit
from controlplane.model.errors import Alarm, RefusedError
from controlplane.model.intents import NO_INTENTS, Drain, Intents, Override
from controlplane.model.plan import LocalOverride, Plan
from controlplane.model.topology import Topology
from controlplane.runtime.board import PlanBoard

log = structlog.get_logger(__name__)

LOOK_MS: Final = 200
MAX_S: Final = 1_800
DEFAULT_S: Final = 600
MINUTE_S: Final = 60

RELAY_MS: Final = 2_000
"""How long subscribers keep an override past the end of one intent of several: the rest comes
within that time, and only a replica that has died meanwhile lets all of it go."""
Key = tuple[str, str]
"""Kind of an intent and its region or channel."""


class Noted(Protocol):
    """Where ends are recorded (adapters.audit_trail)."""

    def note(self, kind: str, *, target: str, by: str, reason: str, message: str) -> None:
        """Record something."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One intent: who asked for it, why, until when, and which safety rules that overrode."""

    key: Key
    intent: Drain | Override
    by: str
    reason: str
    until_ms: int
    overridden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds at this replica: the intents, oldest first, and the number of this state."""

    asked: tuple[Asked, ...]
    revision: int

    @property
    def intents(self) -> Intents:
        """The intents as the decision code knows them."""
        found = [one.intent for one in sorted(self.asked, key=lambda a: a.key)]
        return Intents(
            drains=tuple(i for i in found if isinstance(i, Drain)),
            overrides=tuple(i for i in found if isinstance(i, Override)),
        )

    @property
    def by(self) -> str:
        """Who asked, most recent last, each once."""
        return ", ".join(reversed(dict.fromkeys(one.by for one in reversed(self.asked))))

    @property
    def reason(self) -> str:
        """What was asked and why."""
        return "; ".join(one.reason for one in self.asked)

    @property
    def until_ms(self) -> int:
        """When the last of them ends."""
        return max(one.until_ms for one in self.asked)

    def told(self, now_ms: int) -> str:
        """Say each intent with its author and the time it has left."""
        return "; ".join(
            f"{one.reason} (by {one.by}, ends in {_span(one.until_ms - now_ms)})"
            for one in self.asked
        )

    def left_ms(self, now_ms: int) -> int:
        """Return how long subscribers may keep it without another word; at least 1."""
        first = min(one.until_ms for one in self.asked)
        return max(1, min(self.until_ms, first + RELAY_MS) - now_ms)


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
        left_ms = held.left_ms(self._clock.monotonic_ms()) if held else 0
        return replace(plan, local=replace(plan.local, left_ms=left_ms))

    def would_be(self, intents: Intents) -> tuple[Plan, Plan]:
        """Return the committed plan and what the intents would make of it here."""
        plan = self._board.plan
        if plan is None:
            raise RefusedError("local", "there is no last good plan to override")
        return plan, local_plan(self._topology(), plan, intents)

    async def hold(
        self,
        intents: Intents,
        *,
        by: str,
        reason: str,
        ttl_s: int,
        renewed: Key | None = None,
        overridden: frozenset[str] = frozenset(),
    ) -> None:
        """Put intents into force for the subscribers of this replica.

        `by`, `reason`, `ttl_s` and the safety rules `overridden` are those of what is new and of
        `renewed`; others keep theirs.
        """
        if self._coordinated():
            raise RefusedError(
                "coordinated", "etcd answers: change it for everybody, without --local"
            )
        held = self.held
        if held is None and self._held is not None:
            self._end(self._held.by, self._held.reason, "a newer plan was committed")
            self._held = None
        wanted = _keyed(intents)
        kept = [
            one
            for one in (held.asked if held else ())
            if one.key != renewed and wanted.get(one.key) == one.intent
        ]
        until_ms = self._clock.monotonic_ms() + min(ttl_s, MAX_S) * 1000
        known = {one.key for one in kept}
        fresh = [
            Asked(
                key=key,
                intent=intent,
                by=by,
                reason=reason,
                until_ms=until_ms,
                overridden=overridden,
            )
            for key, intent in wanted.items()
            if key not in known
        ]
        if not wanted:
            await self.lift("taken back")
            return
        _, over = self.would_be(intents)
        if violations := audit.check(over, None):
            raise Alarm(f"local override of {over.epoch}: {'; '.join(map(str, violations))}")
        await self._keep((*kept, *fresh), over)

    async def run(self) -> None:
        """End what has expired, and everything as soon as etcd answers."""
        while True:
            await self._clock.sleep_ms(LOOK_MS)
            held = self._held
            if held is None:
                continue
            if self.held is None:
                self._held = None
                self._end(held.by, held.reason, "a newer plan was committed")
            elif self._coordinated():
                await self.lift("etcd answers again")
            else:
                await self._expire(held)

    async def _expire(self, held: Held) -> None:
        """End what has expired and lay the rest anew, each with the end it had."""
        now_ms = self._clock.monotonic_ms()
        rest = tuple(one for one in held.asked if one.until_ms > now_ms)
        if rest == held.asked:
            return
        if not rest:
            await self.lift("expired")
            return
        plan, over = self.would_be(replace(held, asked=rest).intents)
        refused = self._refused(plan, over, rest)
        if refused:
            await self.lift(f"expired in part, and the rest is not allowed by itself: {refused}")
            return
        await self._keep(rest, over)
        for one in held.asked:
            if one not in rest:
                self._end(one.by, one.reason, "expired; what else was asked for holds on")

    def _refused(self, plan: Plan, over: Plan, rest: tuple[Asked, ...]) -> str:
        """Say why what is left may not be laid; empty when it may. The other safety rules were
        asked when each came, and fewer intents break none of them."""
        if violations := audit.check(over, None):
            return "; ".join(map(str, violations))
        if moved := single_writer_moves(self._topology(), plan, over):
            return f"{', '.join(moved)}: only a committed plan can fence the other writer"
        if any("capacity" in one.overridden for one in rest):
            return ""
        return "; ".join(r.message for r in overloads(self._topology(), plan, over))

    async def _keep(self, asked: tuple[Asked, ...], over: Plan) -> None:
        self._revision += 1
        self._held = held = Held(asked=asked, revision=self._revision)
        await self._lay(over, held, left_ms=held.left_ms(self._clock.monotonic_ms()))

    async def lift(self, why: str) -> None:
        """End the override: subscribers return to the committed weights."""
        held, plan = self._held, self._board.plan
        self._held = None
        if held is None or plan is None:
            return
        self._revision += 1
        await self._lay(plan, replace(held, revision=self._revision), left_ms=0)
        self._end(held.by, held.reason, why)

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

    def _end(self, by: str, reason: str, why: str) -> None:
        log.warning("local_override_ended", why=why, by=by, reason=reason)
        self._noted.note(
            "local_override_ended",
            target=self._replica,
            by=f"replica/{self._replica}",
            reason=reason,
            message=why,
        )


def _span(ms: int) -> str:
    """Write a time that is left: seconds below two minutes, whole minutes above."""
    seconds = max(0, ms) // 1000
    return f"{seconds} s" if seconds < 2 * MINUTE_S else f"{seconds // MINUTE_S} min"


def _keyed(intents: Intents) -> dict[Key, Drain | Override]:
    drains: dict[Key, Drain | Override] = {("drain", d.region): d for d in intents.drains}
    return drains | {("override", o.channel): o for o in intents.overrides}


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
