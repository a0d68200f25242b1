"""Run: ticks of the decision in virtual time against a simulated world.

The loop is the leader's: look at what the network brought, step, check the plan, commit. What is
committed is known as such one tick later and applied everywhere two ticks later. When the leader's
region or process dies another takes over `TAKEOVER_MS` later with the last committed state, read
back from its bytes. A plan that breaks an invariant ends the run: that is what a simulation is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from controlplane.decision.state import State
from controlplane.decision.step import Step, step
from controlplane.model.audit import check
from controlplane.model.errors import Alarm
from controlplane.model.evidence import Evidence
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.intents import NO_INTENTS, Intents
from controlplane.model.plan import Event, FailoverRecord, Phase, Plan
from controlplane.model.topology import Topology
from controlplane.simulation.faults import CALM, Fault, Noise
from controlplane.simulation.network import PERIOD_MS, Network, View
from controlplane.simulation.payments import Payments

TAKEOVER_MS: Final = 2000
"""Detection (1.5 s) and one transaction."""
STRETCH_TICKS: Final = 86_400
"""Ticks drawn at once: twelve hours."""


Asked = Intents | Callable[[State], Intents]
"""What operators ask for, or how they ask when they see the state of that moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One tick of a run: virtual time, what was known and asked, what was decided, and who led."""

    at_ms: int
    evidence: Evidence
    intents: Intents
    step: Step
    leader: RegionName


@dataclass(slots=True, kw_only=True)
class Result:
    """What a run showed. Times in ms of virtual time."""

    ticks: int = 0
    plans: int = 0
    events: list[tuple[int, Event]] = field(default_factory=list)
    failovers: dict[str, FailoverRecord] = field(default_factory=dict)
    moved: dict[str, list[int]] = field(default_factory=dict)
    failed: dict[str, list[int]] = field(default_factory=dict)
    # (time, region, weight of the first channel in bp), at every change
    weights: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    phases: set[Phase] = field(default_factory=set)

    def first(self, kind: str, name: str = "", after_ms: int = 0) -> int | None:
        """Time of the first event of a kind (about a region or channel) from a time on, or None."""
        for at_ms, event in self.events:
            if (
                at_ms >= after_ms
                and event.kind == kind
                and name in ("", event.region, event.channel)
            ):
                return at_ms
        return None

    def count(self, kind: str) -> int:
        """Count the events of a kind."""
        return sum(event.kind == kind for _, event in self.events)


@dataclass(slots=True, kw_only=True)
class Leader:
    """Who leads and what it remembers; replaced on takeover."""

    region: int
    state: State
    back_ms: int = 0


class Simulation:
    """One world, one decision. Iterate `ticks()`, or call `run()`."""

    def __init__(
        self,
        topology: Topology,
        faults: Sequence[Fault] = (),
        *,
        noise: Noise = CALM,
        seed: int = 1,
        duration_ms: int = 120_000,
        leader: RegionName | None = None,
        with_payments: bool = True,
        base_error: float = 0.01,
        intents: Sequence[tuple[int, Asked]] = (),
        state: State | None = None,
    ) -> None:
        self.topology = topology
        self.faults = list(faults)
        self._away = self._of("crash", "isolate")
        self._mute = self._of("crash", "agents")
        self._pauses, self._kills = self._of("pause"), self._of("leader")
        self._losses = self._of("capacity")
        self.noise = noise
        self.duration_ms = duration_ms
        self.rng = np.random.default_rng(seed)
        self.names = [region.name for region in topology.regions]
        self.intents = list(intents)
        first = self.names.index(leader) if leader is not None else len(self.names) - 1
        self.leader = Leader(region=first, state=state or State.initial(topology))
        self.payments = Payments(topology, faults, self.rng, base_error) if with_payments else None
        self.previous: Plan | None = None
        self._epochs: list[Epoch] = [Epoch(0), Epoch(0), Epoch(0)]
        # the leader's clock has an origin that means nothing
        self._clock_ms = int(self.rng.integers(1, 1 << 30))

    def _of(self, *kinds: str) -> list[Fault]:
        return [fault for fault in self.faults if fault.kind in kinds]

    def run(self) -> Result:
        """Run to the end and sum up."""
        result = Result()
        for tick in self.ticks():
            note(result, tick)
        return result

    def ticks(self) -> Iterator[Tick]:
        """Yield every tick that a leader lived to decide."""
        start_ms, left = 0, self.duration_ms // PERIOD_MS
        while left > 0:
            ticks = min(left, STRETCH_TICKS)
            network = Network(self.names, self.faults, self.noise, self.rng, start_ms, ticks)
            yield from self._stretch(network)
            start_ms += ticks * PERIOD_MS
            left -= ticks

    def _stretch(self, network: Network) -> Iterator[Tick]:
        view = network.view(self.leader.region)
        for k in range(network.ticks):
            at_ms = int(network.tick_at[k])
            if self._dead(self.leader.region, at_ms) or self._killed(at_ms):
                if not self._take_over(at_ms):
                    continue
                view = network.view(self.leader.region)
            if at_ms < self.leader.back_ms or self._paused(network, at_ms):
                continue
            yield self._tick(view, k, at_ms)

    def _tick(self, view: View, k: int, at_ms: int) -> Tick:
        leader = self.leader
        gains = None
        if self.payments is not None:
            down = frozenset(f.region for f in self._mute if f.holds(at_ms))
            gains = self.payments.draw(at_ms, PERIOD_MS, self.previous, down)
        evidence = Evidence(
            regions=tuple(view.region(self.names, v, k) for v in range(len(self.names))),
            leader_region=self.names[leader.region],
            committed_epoch=self._epochs[-1],
            converged_epoch=self._epochs[-2],
            highest_epoch=self._epochs[-1],
            gains=gains,
        )
        topology, intents = self._topology(at_ms), self._intents(at_ms)
        decided = step(topology, leader.state, evidence, intents, at_ms + self._clock_ms)
        leader.state = decided.state
        plan = decided.plan
        before = self.previous
        if before is None or plan.epoch != before.epoch:
            if violations := check(plan, topology, before):
                raise Alarm(f"at {at_ms} ms: {violations[0]}")
            self.previous = plan
        self._epochs = [*self._epochs[-2:], plan.epoch]
        return Tick(
            at_ms=at_ms,
            evidence=evidence,
            intents=intents,
            step=decided,
            leader=self.names[leader.region],
        )

    def _dead(self, region: int, at_ms: int) -> bool:
        name = self.names[region]
        return any(f.region == name and f.holds(at_ms) for f in self._away)

    def _killed(self, at_ms: int) -> bool:
        return any(at_ms - PERIOD_MS < f.start_ms <= at_ms for f in self._kills)

    def _take_over(self, at_ms: int) -> bool:
        n = len(self.names)
        # the next region that lives; the same one (another replica in it) when it is alone
        turn = [(self.leader.region + ahead) % n for ahead in range(1, n + 1)]
        alive = [v for v in turn if not self._dead(v, at_ms)]
        if not alive:
            return False
        self.leader = Leader(
            region=alive[0],
            state=State.from_bytes(self.leader.state.to_bytes()).rebased(),
            back_ms=at_ms + TAKEOVER_MS,
        )
        self._clock_ms = int(self.rng.integers(1, 1 << 30))
        return True

    def _paused(self, network: Network, at_ms: int) -> bool:
        starts, ends = network.leader_pauses
        place = int(np.searchsorted(starts, at_ms, side="right")) - 1
        if place >= 0 and at_ms < int(ends[place]):
            return True
        return any(f.holds(at_ms) for f in self._pauses)

    def _intents(self, at_ms: int) -> Intents:
        current = NO_INTENTS
        for place, (since_ms, asked) in enumerate(self.intents):
            if at_ms >= since_ms:
                current = asked(self.leader.state) if callable(asked) else asked
                self.intents[place] = since_ms, current
        return current

    def _topology(self, at_ms: int) -> Topology:
        lost = [f for f in self._losses if f.holds(at_ms)]
        if not lost:
            return self.topology
        key = tuple((f.region, f.rate) for f in lost)
        if getattr(self, "_shrunk", (None, None))[0] != key:
            factor = {f.region: f.rate for f in lost}
            regions = tuple(
                replace(r, capacity_tps=round(r.capacity_tps * factor.get(r.name, 1.0)))
                for r in self.topology.regions
            )
            self._shrunk = (key, replace(self.topology, regions=regions))
        return self._shrunk[1]


def note(result: Result, tick: Tick) -> None:
    """Add one tick to a result."""
    result.ticks += 1
    at_ms = tick.at_ms
    for event in tick.step.events:
        result.events.append((at_ms, event))
        if event.kind == "failover_started":
            result.moved.setdefault(event.region, []).append(at_ms)
        elif event.kind == "region_failed":
            result.failed.setdefault(event.region, []).append(at_ms)
    for record in tick.step.failovers:
        result.failovers[record.id] = record
    plan = tick.step.plan
    if not result.weights or result.plans != plan.epoch:
        row = tuple(weight_bp for _, weight_bp in plan.routes[0].weights)
        if not result.weights or result.weights[-1][1] != row:
            result.weights.append((at_ms, row))
        result.plans = plan.epoch
        result.phases |= {status.phase for status in plan.regions}
