"""The tick: fold, step, check, commit. Nothing else happens here, and nothing happens faster in a
disaster.

Every replica folds in every tick, so that its evidence is warm when it comes to lead. Only the
leader steps, and only what etcd accepted under the leader's term travels on: the leader never
publishes what it has just computed.

While etcd does not answer, the last known good plan stays in force. Who led goes on deciding with
what it knows, on a copy of its state: nothing of that is written or travels. Each such tick counts,
is recorded as *would have*, and is said when its plan differs from the one before. When etcd is
back, the first tick begins from what etcd holds, so that nothing jumps: moves made by steps go on
from the committed weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import structlog

from controlplane import __version__
from controlplane.clock import Clock
from controlplane.decision.fold import Baseline, fold
from controlplane.decision.state import State
from controlplane.decision.step import Step, step
from controlplane.model import audit
from controlplane.model.errors import (
    AmbiguousError,
    DeposedError,
    InvalidInputError,
    UnavailableError,
)
from controlplane.model.evidence import Digest, Evidence
from controlplane.model.ids import Epoch, RegionName, Term
from controlplane.model.intents import NO_INTENTS, Intents, Order
from controlplane.model.plan import Event, FailoverRecord, Plan
from controlplane.model.topology import Topology
from controlplane.ports import Beat, Leadership, PlanStore
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.book import DigestBook, converged_epoch, live_subscribers
from controlplane.runtime.inbox import Inbox
from controlplane.runtime.refusals import Refusals
from controlplane.runtime.renewals import Renewals
from controlplane.runtime.subscribers import SubscriberRegistry

log = structlog.get_logger(__name__)

CHECKPOINT_TICKS: Final = 4
"""Ticks between checkpoints of the decision state while no plan changes."""
PENDING_EVENTS: Final = 1_000
"""Most events kept while etcd does not answer; the oldest go first."""


class Coordination(Protocol):
    """What the tick needs of the election (runtime.leadership)."""

    @property
    def leadership(self) -> Leadership | None:
        """Our leadership, None when we do not lead or its local deadline has passed."""
        ...

    async def resign(self) -> None:
        """Give the leader key back."""
        ...

    async def wait_change(self) -> None:
        """Wait until leadership may have been won or lost."""
        ...

    @property
    def suspended(self) -> Leadership | None:
        """A leadership whose local deadline has passed and that is not known to be over."""
        ...

    def deposed(self, term: Term) -> None:
        """Take in that etcd refused a write of this term."""
        ...


class TickMetrics(Protocol):
    """What is measured of ticks."""

    def tick(self, seconds: float) -> None:
        """Time one tick took."""
        ...

    def fenced_write_rejected(self) -> None:
        """Count a write refused because the term was not current."""
        ...

    def alarm(self, kind: str) -> None:
        """Count a broken invariant."""
        ...


def _elected(leadership: Leadership) -> Event:
    """Say who leads from now on, in the audit: nobody else can tell the terms apart later."""
    text = f"{leadership.replica} leads, term {leadership.term}"
    return Event(kind="leader_elected", message=text)


@dataclass(slots=True)
class _Reign:
    """What a leader keeps while it leads. Lost with the leadership; the next one loads it from
    etcd."""

    leadership: Leadership
    state: State
    committed: Epoch
    decided: Epoch = Epoch(0)
    ticks: int = 0
    events: list[Event] = field(default_factory=list)
    refusals: Refusals = field(default_factory=Refusals)
    renewals: Renewals = field(default_factory=Renewals)
    failovers: dict[str, FailoverRecord] = field(default_factory=dict)
    written: dict[str, FailoverRecord] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What one tick of the leader used and decided, for the decision log and for `explain`."""

    leadership: Leadership
    topology: Topology
    evidence: Evidence
    intents: Intents
    now_ms: int
    wall_ms: int
    before: State
    result: Step
    would_have: bool = False
    """Whether this was only thought: etcd did not answer, nothing was written."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector out of a decision.

    A failover makes a route a channel at once. All of them stay, so what the collector does a
    hundred times meanwhile is to walk them in vain, at 100,000 channels a third of that tick.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class DecisionLoop:
    """One tick after another. `recorder` receives every tick that the leader decided."""

    def __init__(
        self,
        *,
        topology: Topology,
        inbox: Inbox,
        book: DigestBook,
        board: PlanBoard,
        subscribers: SubscriberRegistry,
        store: PlanStore,
        election: Coordination,
        clock: Clock,
        metrics: TickMetrics,
        region: RegionName,
        intents: Callable[[], Intents],
        on_digest: Callable[[Digest], Awaitable[None]],
        recorder: Callable[[Tick], None] = lambda _tick: None,
        orders: Callable[[], Sequence[Order]] = tuple,
        suspect_coordination: Callable[[], bool] = lambda: False,
    ) -> None:
        self._topology = topology
        self._inbox = inbox
        self._book = book
        self._board = board
        self._subscribers = subscribers
        self._store = store
        self._election = election
        self._clock = clock
        self._metrics = metrics
        self._region = region
        self._intents = intents
        self._on_digest = on_digest
        self._recorder = recorder
        self._orders = orders
        self._suspect_coordination = suspect_coordination
        self._baseline = Baseline()
        self._reign: _Reign | None = None
        self._shadow: _Reign | None = None
        self._evidence: Evidence | None = None
        self.highest_seen = Epoch(0)
        self.uncommitted_ticks = 0

    @property
    def state(self) -> State | None:
        """The decision state while this replica leads."""
        return self._reign.state if self._reign else None

    @property
    def evidence(self) -> Evidence | None:
        """The evidence of the last tick, on every replica."""
        return self._evidence

    @property
    def topology(self) -> Topology:
        """The topology in use."""
        return self._topology

    def reconfigure(self, topology: Topology) -> None:
        """Use another topology from the next tick on."""
        self._topology = topology

    async def run(self) -> None:
        """Tick until cancelled. A late tick is not made up for: ticks never bunch."""
        due_ms = self._clock.monotonic_ms()
        while True:
            started_ms = self._clock.monotonic_ms()
            await self.tick()
            now_ms = self._clock.monotonic_ms()
            self._metrics.tick((now_ms - started_ms) / 1000)
            due_ms = max(due_ms + self._topology.policy.tick_ms, now_ms)
            # a leader that has just won ticks at once
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((due_ms - now_ms) / 1000):
                    await self._election.wait_change()

    async def tick(self) -> None:
        """Do one tick."""
        now_ms = self._clock.monotonic_ms()
        digest = self._inbox.digest(
            now_ms,
            subscribers=self._subscribers.snapshot(now_ms),
            plan_epoch=self._board.epoch,
            highest_epoch=Epoch(max(self._board.epoch, self.highest_seen)),
            version=__version__,
        )
        self._book.put(digest, now_ms)
        await self._on_digest(digest)
        evidence = self._fold(now_ms)
        self._evidence = evidence
        leadership = self._election.leadership
        if leadership is None:
            self._think(evidence, now_ms)
            self._reign = None
            return
        try:
            reign = await self._enter(leadership)
            self._shadow = None  # not before: a return that fails goes on saying what it would do
            await self._decide(reign, evidence, now_ms)
        except DeposedError as error:
            self._metrics.fenced_write_rejected()
            self._election.deposed(leadership.term)
            self._reign = None
            log.warning("deposed", term=leadership.term, error=str(error))
        except (UnavailableError, AmbiguousError) as error:
            self.uncommitted_ticks += 1
            epoch = self._reign.decided if self._reign else 0
            log.warning("would_have_committed", term=leadership.term, epoch=epoch, error=str(error))

    def _think(self, evidence: Evidence, now_ms: int) -> None:
        """Decide without writing while the leadership is suspended, to say what would be done."""
        held = self._election.suspended
        self._shadow = self._shadow or self._reign
        if held is None or self._shadow is None or self._shadow.leadership.term != held.term:
            self._shadow = None
            self.uncommitted_ticks = 0  # another leads, or nobody does: not ours to say
            return
        tick = self._step(self._shadow, evidence, now_ms, would_have=True)
        self.uncommitted_ticks += 1
        self._recorder(tick)
        if (epoch := tick.result.plan.epoch) != self._shadow.decided:
            log.warning("would_have_decided", term=held.term, epoch=epoch)
        for event in tick.result.events:
            log.warning(
                "would_have", kind=event.kind, region=event.region, channel=event.channel,
                cause=event.message,
            )  # fmt: skip
        self._shadow.decided = epoch

    def _step(
        self, reign: _Reign, evidence: Evidence, now_ms: int, *, would_have: bool = False
    ) -> Tick:
        """Decide once and take the new state over."""
        intents, before = self._intents() or NO_INTENTS, reign.state
        with uncollected():
            result = step(self._topology, before, evidence, intents, now_ms)
        reign.state = result.state
        return Tick(
            leadership=reign.leadership, topology=self._topology, evidence=evidence,
            intents=intents, now_ms=now_ms, wall_ms=self._clock.wall_ms(), before=before,
            result=result, would_have=would_have,
        )  # fmt: skip

    def _fold(self, now_ms: int) -> Evidence:
        entries = self._book.entries(now_ms)
        subscribers = live_subscribers(entries)
        evidence, self._baseline = fold(self._baseline, entries, self._topology)
        return replace(
            evidence,
            leader_region=self._region,
            committed_epoch=self._board.epoch,
            converged_epoch=converged_epoch(subscribers, self._board.epoch),
            highest_epoch=Epoch(
                max(
                    self._book.highest_epoch(self._board.epoch),
                    self.highest_seen,
                    self._board.epoch,
                )
            ),
            coordination_suspect=self._suspect_coordination(),
        )

    async def _enter(self, leadership: Leadership) -> _Reign:
        """Return this term's reign; a new one begins from what etcd holds, read linearizably."""
        if self._reign is not None and self._reign.leadership.term == leadership.term:
            return self._reign
        committed = await self._store.load()
        if committed is None:
            state, epoch = State.initial(self._topology), Epoch(0)
        else:
            state, epoch = self._read_state(committed.state), committed.plan.epoch
        self._reign = _Reign(leadership, state, epoch, decided=epoch, events=[_elected(leadership)])
        log.info("leading", term=leadership.term, epoch=epoch)
        return self._reign

    def _read_state(self, data: bytes) -> State:
        """Read the stored decision state; start anew when it cannot be read: nobody is believed
        dead."""
        try:
            return State.from_bytes(data).rebased()
        except InvalidInputError as error:
            self._metrics.alarm("part")
            log.critical("decision_state_unreadable", error=str(error))
            return State.initial(self._topology)

    async def _decide(self, reign: _Reign, evidence: Evidence, now_ms: int) -> None:
        tick = self._step(reign, evidence, now_ms)
        result = tick.result
        reign.decided = result.plan.epoch
        reign.ticks += 1
        refused = reign.refusals.new(live_subscribers(self._book.entries(now_ms)))
        renewed = reign.renewals.new(self._orders())
        reign.events = (reign.events + list(result.events) + refused + renewed)[-PENDING_EVENTS:]
        # a record that is closed and written leaves; one that is not yet written stays, whatever
        # happens
        unwritten = {k: r for k, r in reign.failovers.items() if reign.written.get(k) != r}
        reign.failovers = unwritten | {record.id: record for record in result.failovers}
        self._recorder(tick)
        await self._write(reign, result.plan, tick.wall_ms)
        if result.resign:
            log.warning("resigning", term=reign.leadership.term)
            await self._election.resign()

    async def _write(self, reign: _Reign, plan: Plan, wall_ms: int) -> None:
        changed = [r for key, r in reign.failovers.items() if reign.written.get(key) != r]
        stamped = replace(plan, term=reign.leadership.term, committed_at_ms=wall_ms)
        if plan.epoch > reign.committed and self._sound(stamped):
            await self._store.commit(
                reign.leadership, stamped, reign.state.to_bytes(), reign.events, changed
            )
            reign.committed = stamped.epoch
        else:
            checkpoint = reign.ticks % CHECKPOINT_TICKS == 0 or bool(reign.events)
            await self._store.heartbeat(
                reign.leadership,
                Beat(tick=reign.ticks, attentive_ms=reign.state.memory.now_ms, wall_ms=wall_ms),
                reign.state.to_bytes() if checkpoint else None,
                reign.events,
                changed,
            )
        self._say(reign.events, stamped)
        self.uncommitted_ticks = 0
        reign.events = []
        reign.written = dict(reign.failovers)

    def _sound(self, plan: Plan) -> bool:
        """Check a plan of our own before it is offered: a broken one is never written, the last
        good one stays."""
        violations = audit.check(plan, self._topology, self._board.plan)
        if violations:
            self._metrics.alarm("audit")
            log.critical(
                "plan_breaks_invariants", epoch=plan.epoch, violations=[str(v) for v in violations]
            )
        return not violations

    @staticmethod
    def _say(events: list[Event], plan: Plan) -> None:
        for event in events:
            log.info(
                "decision",
                kind=event.kind,
                epoch=plan.epoch,
                term=plan.term,
                region=event.region,
                channel=event.channel,
                cause=event.message,
            )
