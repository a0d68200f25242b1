"""Step: one tick of the decision, a pure function.

    step(topology, state, evidence, intents, now_ms) -> state, plan, events, failovers, resign

No clock, no randomness, no input or output: the same arguments give the same bytes. In order:

1. time        attentive time advances by at most 2.5 ticks
2. votes       every link is aged or renewed, every vantage votes
3. detector    the kinds of evidence against each region
4. phases      regions change phase, under the caps on removal
5. cells       sequential tests, breakers, tilt
6. weights     target, then a bounded move towards it
7. plan        a new epoch exactly when the content changed
8. failovers   records with the time of each stage

Failure modes. A leader that is cut off keeps its last plan, marks it frozen and asks to resign. An
absurd epoch from outside is refused with an event instead of being followed to where no integer is
left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

import numpy as np
import numpy.typing as npt

from controlplane.decision import failovers, planning
from controlplane.decision.circuits import advance_cells
from controlplane.decision.detector import assess, leader_cut_off
from controlplane.decision.phases import advance, available_bp
from controlplane.decision.reasons import missing, reasons
from controlplane.decision.removals import HOUR_MS, Removals
from controlplane.decision.state import Memory, State
from controlplane.decision.votes import Views, observe
from controlplane.decision.world import World, compiled
from controlplane.model.evidence import Evidence
from controlplane.model.ids import ChannelName, Epoch
from controlplane.model.intents import Freeze, Intents, Override
from controlplane.model.plan import (
    BreakerStatus,
    Event,
    FailoverRecord,
    Plan,
    RegionStatus,
    Route,
    Severity,
)
from controlplane.model.topology import Policy, Topology

HIGHEST_EPOCH: Final = 1 << 53
"""Beyond it JSON readers lose integers."""
EPOCH_JUMP: Final = 1_000_000_000
"""An epoch this far above ours is no plan's epoch."""
CUT_OFF_MS: Final = 2000
"""A leader alone this long resigns; until then it only holds still."""
GIVE_UP_AGAIN_MS: Final = 30_000
"""How long one who takes over and hears nobody either stays: where no agent reports to anyone,
nobody does better, and leaders that give up at once would do nothing else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one tick decided. `resign`: the leader hears nobody and should let another lead."""

    state: State
    plan: Plan
    events: tuple[Event, ...]
    failovers: tuple[FailoverRecord, ...]
    resign: bool = False


def step(
    topology: Topology, state: State, evidence: Evidence, intents: Intents, now_ms: int
) -> Step:
    """Decide one tick. `now_ms` is the leader's monotonic clock; only differences matter."""
    world = compiled(topology)
    policy = topology.policy
    if state.regions is not world.regions or state.channels is not world.channels:
        state = state.aligned(topology, world.regions, world.channels)
    events: list[Event] = []
    passed_ms = _passed(state.memory, policy, now_ms)
    memory = replace(state.memory, now_ms=state.memory.now_ms + passed_ms, clock_ms=now_ms)
    views = observe(state, evidence, policy, passed_ms)
    state = state.having(memory)
    memory = _regions(world, state, views, evidence, intents, events)
    state = state.having(memory)
    drained = planning.honoured_drains(world, intents)
    state = advance_cells(world, state, evidence, passed_ms, drained, events)
    state = _plan(world, state, intents, evidence, events)
    memory = state.memory
    assert memory.plan is not None
    memory = failovers.track(memory, evidence, memory.plan.epoch, policy, events)
    state = state.having(memory)
    return Step(
        state=state,
        plan=memory.plan if memory.plan is not None else Plan(epoch=Epoch(0)),
        events=tuple(events),
        failovers=memory.failovers,
        resign=memory.cut_off and memory.gave_up_ms == memory.now_ms,
    )


def _passed(memory: Memory, policy: Policy, now_ms: int) -> int:
    """Attentive time since the last step; one tick after a takeover."""
    if memory.clock_ms is None:
        return policy.tick_ms
    return min(max(0, now_ms - memory.clock_ms), policy.tick_ms * 5 // 2)


def _regions(
    world: World,
    state: State,
    views: Views,
    evidence: Evidence,
    intents: Intents,
    events: list[Event],
) -> Memory:
    memory, policy = state.memory, world.topology.policy
    now_ms = memory.now_ms
    alone = leader_cut_off(views, state, evidence.leader_region)
    alone_ms = (now_ms if memory.alone_ms is None else memory.alone_ms) if alone else None
    cut_off = alone_ms is not None and now_ms - alone_ms >= CUT_OFF_MS
    gave_up_ms = memory.gave_up_ms if alone else None
    if cut_off and (gave_up_ms is None or now_ms - gave_up_ms >= GIVE_UP_AGAIN_MS):
        gave_up_ms = now_ms
    frozen = intents.freeze is not None
    if cut_off and not memory.cut_off:
        text = "every other region is silent and nobody is reached: the leader is cut off, resigns"
        events.append(Event(kind="leader_cut_off", message=text, severity=Severity.CRITICAL))
    if frozen != memory.frozen:
        events.append(_freeze_event(intents.freeze))
    hold = ""
    if alone:
        hold = "the leader is cut off"
    elif frozen:
        hold = "frozen by an operator"
    elif evidence.coordination_suspect:
        hold = "many leases vanished at once: etcd is suspect, not the regions"
    drained = planning.honoured_drains(world, intents)
    serving = {
        name
        for name in state.regions
        if name not in drained and available_bp(memory.regions[name], policy) > 0
    }
    log, failures = (
        [(at, name) for at, name in taken if now_ms - at < HOUR_MS]
        for taken in (memory.removals, memory.failures)
    )
    removals = Removals(
        policy=policy,
        now_ms=now_ms,
        count=len(state.regions),
        log=log,
        failures=failures,
        serving=serving,
        hold=hold,
    )
    seen = assess(world, state, views, evidence.leader_region, now_ms)
    before = {s.name for s in (memory.plan.regions if memory.plan else ()) if s.drained}
    regions = {
        name: advance(
            name,
            memory.regions[name],
            seen[name],
            intents,
            removals,
            events,
            undrained=name in before - drained,
            settled=memory.settled,
        )
        for name in state.regions
    }
    return replace(
        memory,
        regions=regions,
        links=views.links,
        removals=tuple(removals.log),
        failures=tuple(removals.failures),
        unwell=tuple(sorted(views.unwell)),
        frozen=frozen,
        alone_ms=alone_ms,
        cut_off=cut_off,
        gave_up_ms=gave_up_ms,
    )


def _plan(
    world: World, state: State, intents: Intents, evidence: Evidence, events: list[Event]
) -> State:
    memory = state.memory
    limits = planning.constraints(world, memory, intents)
    situation = planning.situation(world, memory, limits, intents, state.columns["tilt"])
    same = situation == memory.situation and memory.plan is not None
    plan = memory.plan
    # what another topology shaped is built anew, also where its numbers happen to agree
    known = plan is not None and memory.situation.startswith(f"{world.fingerprint}|")
    routes = plan.routes if plan is not None and known else ()
    settled = memory.settled
    if not (same and settled):
        shape = (len(world.region_index), len(world.channel_index))
        weights = planning.weigh(world, state, memory, limits, intents)
        shed = np.fromiter(map(attrgetter("shed_bp"), routes), np.int64)
        changed = (weights.weight != state.columns["weight"].reshape(shape)).any(axis=0)
        changed |= (weights.shed != shed) if routes else True
        why = None if same else reasons(world, state, memory, limits, intents, weights)
        _shed_events(shed, weights, events)
        unserved = _say_unserved(world, memory, limits, weights, events)
        if unserved != memory.unserved:
            memory = replace(memory, unserved=unserved)
        routes = planning.build_routes(world, routes, weights, changed, why)
        columns = dict(state.columns)
        columns["weight"] = weights.weight.reshape(-1)
        if not limits.panic and not weights.orphans.any():
            columns["good"] = columns["weight"]
        state = state.having(memory, columns)
        settled = weights.settled
    _say_panic(memory, limits, events)
    notices = _say_drains(world, memory, limits, intents, events)
    if notices != memory.notices:
        memory = replace(memory, notices=notices)
    if intents.overrides != memory.overrides:
        _say_overrides(memory.overrides, intents.overrides, events)
        memory = replace(memory, overrides=intents.overrides)
    if not (same and settled == memory.settled and limits.panic == memory.panic):
        memory = replace(memory, situation=situation, settled=settled, panic=limits.panic)
    regions = tuple(
        RegionStatus(
            name=name,
            phase=region.phase,
            verdict=region.verdict,
            drained=name in limits.drained,
            since_ms=region.since_ms,
            cause=region.cause or ("blind: reports nothing, yet reached" if region.blind else ""),
        )
        for name, region in sorted(memory.regions.items())
    )
    breakers = _breakers(world, memory, plan if known else None)
    return state.having(
        _numbered(memory, plan, routes, regions, breakers, limits.frozen, evidence, events)
    )


def _numbered(
    memory: Memory,
    plan: Plan | None,
    routes: tuple[Route, ...],
    regions: tuple[RegionStatus, ...],
    breakers: tuple[BreakerStatus, ...],
    frozen: bool,
    evidence: Evidence,
    events: list[Event],
) -> Memory:
    """Give the plan a new epoch when its content changed or somebody has seen a higher one."""
    highest = max(evidence.highest_epoch, evidence.committed_epoch)
    absurd = highest > HIGHEST_EPOCH or highest > memory.epoch + EPOCH_JUMP
    if absurd:
        if highest != memory.refused_epoch:
            text = f"epoch {highest} was claimed, ours is {memory.epoch}: refused as absurd"
            events.append(Event(kind="epoch_refused", message=text, severity=Severity.CRITICAL))
        memory = replace(memory, refused_epoch=highest)
        highest = Epoch(0)
    content = (routes, regions, breakers, frozen, memory.panic)
    same = plan is not None and content == (
        plan.routes,
        plan.regions,
        plan.breakers,
        plan.frozen,
        plan.panic,
    )
    if same and highest <= memory.epoch:
        return memory
    if same:
        text = f"epoch {highest} was seen, ours is {memory.epoch}: the plan is numbered above it"
        events.append(Event(kind="epoch_raised", message=text, severity=Severity.WARNING))
    epoch = Epoch(max(memory.epoch, highest) + 1)
    plan = Plan(
        epoch=epoch,
        decided_at_ms=memory.now_ms,
        routes=routes,
        regions=regions,
        breakers=breakers,
        frozen=frozen,
        panic=memory.panic,
    )
    return replace(memory, epoch=epoch, plan=plan)


def _breakers(world: World, memory: Memory, plan: Plan | None) -> tuple[BreakerStatus, ...]:
    """One entry per served cell; entries that did not change keep their object."""
    if plan is not None:
        held = plan.breakers
    else:
        held = tuple(BreakerStatus(region=r, channel=c) for r, c in world.served)
    out: list[BreakerStatus] | None = None
    for key, breaker in memory.breakers.items():
        place = world.place.get(key)
        if place is None:
            continue
        status = BreakerStatus(
            region=breaker.region,
            channel=breaker.channel,
            state=breaker.state,
            since_ms=breaker.since_ms,
            open_until_ms=breaker.open_until_ms,
            cause=breaker.cause,
        )
        if held[place] != status:
            out = list(held) if out is None else out
            out[place] = status
    return held if out is None else tuple(out)


def _shed_events(
    shed: npt.NDArray[np.int64], weights: planning.Weights, events: list[Event]
) -> None:
    before = bool(shed.any())
    after = int(np.max(weights.shed, initial=0))
    if (after > 0) == before:
        return
    if after:
        text = f"capacity is short: up to {after / 100:g} % of the load must be shed"
        events.append(
            Event(kind="shed", message=text, severity=Severity.CRITICAL, data={"shed_bp": after})
        )
    else:
        events.append(Event(kind="shed_over", message="capacity suffices again"))


def _say_unserved(
    world: World,
    memory: Memory,
    limits: planning.Constraints,
    weights: planning.Weights,
    events: list[Event],
) -> tuple[ChannelName, ...]:
    """Say which channels lost their last region, and which have one again; return the present."""
    columns = np.flatnonzero(weights.orphans).tolist()
    now = tuple(world.channels[c] for c in columns)
    if now == memory.unserved:
        return now
    known, still = set(memory.unserved), set(now)
    for c in columns:
        if (name := world.channels[c]) not in known:
            text = f"nobody may serve {name}: {missing(world, memory, limits, c)}"
            events.append(
                Event(
                    kind="channel_unserved", message=text, severity=Severity.CRITICAL, channel=name
                )
            )
    events.extend(
        Event(kind="channel_served", message=f"{name} has a region again", channel=name)
        for name in memory.unserved
        if name not in still
    )
    return now


def _say_panic(memory: Memory, limits: planning.Constraints, events: list[Event]) -> None:
    if limits.panic == memory.panic:
        return
    if limits.panic:
        text = "no region is available: health is disregarded, the last good weights stay"
        events.append(Event(kind="panic", message=text, severity=Severity.CRITICAL))
    else:
        events.append(Event(kind="panic_over", message="a region is available again"))


def _say_drains(
    world: World,
    memory: Memory,
    limits: planning.Constraints,
    intents: Intents,
    events: list[Event],
) -> tuple[str, ...]:
    """Say which drains began, ended, or are not honoured; return the last."""
    before = frozenset(
        s.name for s in (memory.plan.regions if memory.plan is not None else ()) if s.drained
    )
    orders = {drain.region: drain for drain in intents.drains}
    for name in sorted(limits.drained - before):
        order = orders[name]
        text = f"{name} is drained{_asked(order.by, order.reason)}"
        data = {"by": order.by, "reason": order.reason}
        events.append(Event(kind="region_drained", message=text, region=name, data=data))
    events.extend(
        Event(kind="region_undrained", message=f"{name} is no longer drained", region=name)
        for name in sorted(before - limits.drained)
    )
    asked = {drain.region for drain in intents.drains if drain.region in world.region_index}
    refused = ",".join(sorted(asked - limits.drained))
    said = ",".join(memory.notices)
    if refused and refused != said:
        text = f"{refused} stays in service although a drain is asked for: too few would be left"
        events.append(Event(kind="drain_refused", message=text, severity=Severity.WARNING))
    return tuple(refused.split(",")) if refused else ()


def _say_overrides(
    before: tuple[Override, ...], now: tuple[Override, ...], events: list[Event]
) -> None:
    """Say which channels' weights an operator fixed, or fixes no longer (lifted, or expired)."""
    for order in now:
        if order in before:
            continue
        weights = ", ".join(f"{name} {bp / 100:g} %" for name, bp in order.weights)
        text = f"{order.channel} is fixed to {weights}{_asked(order.by, order.reason)}"
        data = {"by": order.by, "reason": order.reason}
        events.append(Event(kind="override_set", message=text, channel=order.channel, data=data))
    fixed = {order.channel for order in now}
    events.extend(
        Event(
            kind="override_ended",
            message=f"{order.channel} is no longer fixed: lifted, or expired",
            channel=order.channel,
        )
        for order in before
        if order.channel not in fixed
    )


def _freeze_event(order: Freeze | None) -> Event:
    if order is None:
        return Event(kind="unfrozen", message="no longer frozen")
    data = {"by": order.by, "reason": order.reason}
    return Event(kind="frozen", message=f"frozen{_asked(order.by, order.reason)}", data=data)


def _asked(by: str, reason: str) -> str:
    """Say who asked, and why, as far as it is known."""
    return f" by {by}" * bool(by) + f": {reason}" * bool(reason)
