"""Reasons: why a route is as it is, in plain words with numbers that do not change by themselves.

A reason is part of the plan's content, so a number in it must be one that was decided (a cause, a
share), never one that moves with every tick (an age).
"""

from __future__ import annotations

from controlplane.decision.planning import Constraints, Weights, closed_by
from controlplane.decision.state import Memory, State
from controlplane.decision.world import World
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Breaker, Phase


def reasons(
    world: World,
    state: State,
    memory: Memory,
    limits: Constraints,
    intents: Intents,
    weights: Weights,
) -> list[tuple[str, ...]]:
    """Return the reasons of every channel in the topology's order, most important first."""
    shared = {name: _region_reason(memory, limits, name) for name in world.region_index}
    plain = [_plain(world, limits, serving, shared) for serving in world.kinds]
    out = list(map(plain.__getitem__, world.kind.tolist()))
    for c in sorted(_special_channels(world, state, memory, intents, weights)):
        out[c] = (*_special(world, state, memory, limits, intents, weights, c), *out[c])
    return out


def _special_channels(
    world: World, state: State, memory: Memory, intents: Intents, weights: Weights
) -> set[int]:
    index = world.channel_index
    found = {index[b.channel] for b in memory.breakers.values() if b.state is not Breaker.CLOSED}
    found |= {index[o.channel] for o in intents.overrides if o.channel in index}
    found |= {index[name] for name in memory.outages}
    found |= set((weights.shed > 0).nonzero()[0].tolist())
    found |= set(weights.orphans.nonzero()[0].tolist())
    tilted = (state.columns["tilt"] < 1.0).nonzero()[0] % max(1, len(index))
    return found | set(tilted.tolist())


def _plain(
    world: World,
    limits: Constraints,
    serving: tuple[RegionName, ...],
    shared: dict[RegionName, str],
) -> tuple[str, ...]:
    first = []
    if limits.cut_off:
        first.append("cut_off: the leader hears nobody; the last plan stays")
    elif limits.frozen:
        first.append("frozen: an operator forbids automatic change")
    if limits.panic:
        first.append("panic: no region is available; health is disregarded")
    first.extend(shared[name] for name in serving if shared[name])
    shares = ", ".join(f"{n} {world.topology.region(n).share_bp / 100:g} %" for n in serving)
    return (*first, f"base_share: {shares}")


def missing(world: World, memory: Memory, limits: Constraints, column: int) -> str:
    """Say what a channel that nobody may serve lacks: who serves it and why each may not."""
    channel = world.channels[column]
    why = ", ".join(
        f"{name} ({_absence(memory, limits, name, channel)})" for name in world.serving[column]
    )
    left = ", ".join(
        name
        for i, name in enumerate(world.regions)
        if limits.available[i] > 0 and name not in world.serving[column]
    )
    others = f"; {left} does not serve it" if left else ""
    return f"{channel} needs one of {why}{others}" if why else f"{channel} is served by nobody"


def _absence(memory: Memory, limits: Constraints, name: RegionName, channel: ChannelName) -> str:
    if name in limits.drained:
        return "drained"
    region = memory.regions[name]
    if region.phase is not Phase.HEALTHY:
        return region.phase.value
    breaker = closed_by(memory, name, channel)
    return f"breaker {breaker.state.value}" if breaker is not None else "away"


def _region_reason(memory: Memory, limits: Constraints, name: RegionName) -> str:
    region = memory.regions[name]
    if name in limits.drained:
        return f"drained: {name} carries nothing, an operator asked for it"
    if region.phase is Phase.FAILED:
        return f"region_failed: {name} carries nothing: {region.cause}"
    if region.phase is Phase.SUSPECT and region.moved:
        return f"region_suspect: {name} carries nothing for now: {region.cause}"
    if region.phase is Phase.RECOVERING:
        part = limits.available[list(memory.regions).index(name)] * FULL_BP / 100
        return f"ramp: {name} returns with {part:g} % of its share"
    return ""


def _special(
    world: World,
    state: State,
    memory: Memory,
    limits: Constraints,
    intents: Intents,
    weights: Weights,
    column: int,
) -> list[str]:
    channel = world.topology.channels[column].name
    serving = world.serving[column]
    out = [
        f"override: {o.by or 'an operator'} fixed the weights: {o.reason}"
        for o in intents.overrides
        if o.channel == channel
    ]
    if weights.orphans[column]:
        out.append(f"no_region: {missing(world, memory, limits, column)}; the least bad keeps it")
    if (shed_bp := int(weights.shed[column])) > 0:
        out.append(f"shed: {shed_bp / 100:g} % of the load is above all capacity; shed it early")
    if channel in memory.outages:
        out.append("provider_outage: fails from every live region; nothing is gained by moving")
    for name in serving:
        breaker = closed_by(memory, name, channel)
        if breaker is not None:
            out.append(f"breaker_{breaker.state.value}: {name}: {breaker.cause}")
        tilt = float(state.columns["tilt"][world.cell(name, channel)])
        if tilt < 1.0:
            out.append(f"tilt: {name} keeps {tilt:.0%} of its share, worse than usual")
    del limits
    return out
