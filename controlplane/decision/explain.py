"""Explain: the rules that shaped one channel's weights, in order, with the evidence.

It runs the very rules of the step again, with a trace on one channel: an explanation that is
computed another way would sooner or later tell another story.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.decision import planning
from controlplane.decision.damping import damped, penalty_now, reuse_in_ms
from controlplane.decision.detector import report_silence
from controlplane.decision.state import State
from controlplane.decision.votes import votes
from controlplane.decision.weights import channel_trace
from controlplane.decision.world import World, compiled
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.intents import NO_INTENTS, Drain, Intents
from controlplane.model.plan import Breaker, Phase, Plan, RuleStep
from controlplane.model.topology import Topology

TITLES = {
    "base_share": "configured shares, relative to the regions that serve the channel",
    "phase": "times what each region's phase leaves it",
    "breaker": "open cells keep nothing, half-open ones a trickle",
    "tilt": "cells worse than usual keep less",
    "capacity": "no region is filled above its target utilisation by its own share",
    "spill": "what is missing goes to whole regions by priority, as far as they have room",
    "equalise": "what nobody has room for is spread in proportion to capacity",
}


def explain(
    topology: Topology,
    state: State,
    plan: Plan,
    channel: ChannelName,
    intents: Intents | None = None,
) -> tuple[RuleStep, ...]:
    """Return what each rule did to `channel`, and the evidence before them.

    Without `intents`, drains are those of the plan. KeyError when the channel is unknown.
    """
    world = compiled(topology)
    column = world.channel_index[channel]
    state = state.aligned(topology)
    memory = state.memory
    if intents is None:
        drained = tuple(Drain(region=s.name, reason="") for s in plan.regions if s.drained)
        intents = Intents(drains=drained) if drained else NO_INTENTS
    limits = planning.constraints(world, memory, intents)
    trace, shares = channel_trace(channel, state.channels)
    aim = planning.wanted(world, state, memory, limits, trace)
    steps = [*_evidence(topology, state, world.serving[column]), *_cells(world, state, channel)]
    names, last = tuple(world.region_index), None
    for rule, values in shares:
        rounded = [round(value * FULL_BP) for value in values]
        if rounded == last:
            continue
        last = rounded
        shown = tuple((n, rounded[names.index(n)]) for n in world.serving[column])
        steps.append(RuleStep(rule=rule, detail=TITLES.get(rule, rule), weights=shown))
    load = ", ".join(
        f"{name} {float(aim.utilisation[i]):.0%}" for name, i in world.region_index.items()
    )
    steps.append(RuleStep(rule="utilisation", detail=f"at the configured demand: {load}"))
    route = plan.route(channel)
    if route is not None:
        moving = "the weights have arrived" if memory.settled else "the weights are on their way"
        why = "; ".join(route.reasons)
        text = f"epoch {plan.epoch}: {moving}. {why}"
        steps.append(RuleStep(rule="plan", detail=text, weights=route.weights))
    return tuple(steps)


def explain_alone(plan: Plan, channel: ChannelName) -> tuple[RuleStep, ...]:
    """Return what the plan itself says of `channel`: for a replica that never read the state."""
    route = plan.route(channel)
    if route is None:
        raise KeyError(channel)
    serving = {name for name, _ in route.weights}
    told = [
        RuleStep(
            rule="region",
            detail=f"{s.name} is {s.phase.value}"
            + (", drained" if s.drained else "")
            + (f"; {s.cause}" if s.cause else ""),
        )
        for s in plan.regions
        if s.name in serving
    ]
    text = f"epoch {plan.epoch}: {'; '.join(route.reasons)}"
    return (*told, RuleStep(rule="plan", detail=text, weights=route.weights))


def _evidence(topology: Topology, state: State, regions: Sequence[RegionName]) -> list[RuleStep]:
    policy, memory = topology.policy, state.memory
    out = []
    for name in regions:
        region = memory.regions[name]
        own = memory.links.get(f"{name}>{name}")
        if own is None or (age_ms := own[0]) is None:
            report = report_silence(memory, name, None)
        else:
            report = f"last report {age_ms / 1000:.1f} s ago"
        said = ", ".join(
            f"{v.vantage} says {v.opinion.value} "
            f"({_success(v.last_success_age_ms)}, {v.failures} failures since)"
            for v in votes(state, name, policy)
        )
        text = f"{name} is {region.phase.value}: {report}; {said}"
        if region.phase is not Phase.HEALTHY and region.cause:
            text += f"; {region.cause}"
        penalty = penalty_now(region, policy, memory.now_ms)
        if penalty >= 1.0:
            text += (
                f"; flap penalty {penalty:.0f}, halved every {policy.flap_half_life_ms // 1000} s"
            )
            if damped(region, policy, memory.now_ms):
                wait_s = reuse_in_ms(region, policy, memory.now_ms) / 1000
                text += f": kept out until below {policy.flap_reuse}, for {wait_s:.0f} s more"
            else:
                text += f": it would be kept out from {policy.flap_suppress}"
        if region.held:
            text += f"; held: {region.held}"
        out.append(RuleStep(rule="evidence", detail=text))
    return out


def _cells(world: World, state: State, channel: ChannelName) -> list[RuleStep]:
    out = []
    columns = state.columns
    for name in world.serving[world.channel_index[channel]]:
        cell = world.cell(name, channel)
        calls = float(columns["recent_calls"][cell])
        errors = float(columns["recent_errors"][cell])
        breaker = state.memory.breakers.get(f"{name}/{channel}")
        phase = breaker.state if breaker is not None else Breaker.CLOSED
        share = f"{errors / calls:.1%}" if calls >= 1.0 else "unknown"
        text = (
            f"{name} breaker {phase.value}: errors {share} of {calls:.0f} recent calls, usual "
            f"{float(columns['error_base'][cell]):.1%}; tests at "
            f"{float(columns['error_sum'][cell]):.1f} (errors) and "
            f"{float(columns['slow_sum'][cell]):.1f} (slow) nats"
        )
        if breaker is not None and breaker.cause and phase is not Breaker.CLOSED:
            text += f"; {breaker.cause}"
        out.append(RuleStep(rule="cell", detail=text))
    return out


def _success(age_ms: int | None) -> str:
    # None is also what a vantage whose agents restarted, or that is not heard, knows
    return "no success known" if age_ms is None else f"last success {age_ms / 1000:.1f} s ago"
