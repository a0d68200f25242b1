"""Local overrides: whatever is laid over a sound plan leaves it sound."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.decision.local import local_plan, single_writer_moves
from controlplane.model.audit import check
from controlplane.model.ids import Epoch
from controlplane.model.intents import Drain, Intents, Override
from controlplane.model.plan import Breaker, BreakerStatus, Phase, Plan, RegionStatus, Route
from controlplane.model.topology import Topology
from controlplane.simulation.demo import demo_topology

TOPOLOGY = demo_topology()
NAMES = tuple(region.name for region in TOPOLOGY.regions)
CELLS = tuple(
    (region, channel.name)
    for region in NAMES
    for channel in TOPOLOGY.channels
    if region in channel.regions
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A sound committed plan: any phases, breakers, and weights that respect them."""
    phases = {name: draw(st.sampled_from(list(Phase))) for name in NAMES}
    drained = {name: draw(st.booleans()) for name in NAMES[:1]}
    out = {n for n in NAMES if phases[n] is Phase.FAILED or drained.get(n)}
    routes = []
    for channel in TOPOLOGY.channels:
        live = [name for name in channel.regions if name not in out] or list(channel.regions)
        cuts = sorted(draw(st.integers(0, 10_000)) for _ in live[1:])
        parts = dict(zip(live, _differences([0, *cuts, 10_000]), strict=True))
        weights = tuple((name, parts.get(name, 0)) for name in channel.regions)
        routes.append(Route(channel=channel.name, weights=weights))
    breakers = tuple(
        BreakerStatus(region=region, channel=channel, state=draw(st.sampled_from(list(Breaker))))
        for region, channel in CELLS
    )
    statuses = tuple(
        RegionStatus(name=n, phase=phases[n], drained=drained.get(n, False)) for n in NAMES
    )
    return Plan(epoch=Epoch(7), routes=tuple(routes), regions=statuses, breakers=breakers)


def _differences(points: list[int]) -> list[int]:
    return [b - a for a, b in pairwise(points)]


@st.composite
def asked(draw: st.DrawFn) -> Intents:
    """Drains of some regions (never all), overrides of some channels."""
    drains = draw(st.sets(st.sampled_from(NAMES), max_size=2))
    overrides = []
    for channel in TOPOLOGY.channels:
        if draw(st.booleans()):
            only = draw(st.sampled_from(channel.regions))
            weights = tuple((name, 10_000 * (name == only)) for name in channel.regions)
            overrides.append(Override(channel=channel.name, weights=weights, reason=""))
    return Intents(
        drains=tuple(Drain(region=name, reason="") for name in sorted(drains)),
        overrides=tuple(overrides),
    )


@settings(max_examples=200, deadline=None)
@given(plan=plans(), intents=asked())
def test_what_is_laid_over_a_sound_plan_is_sound(plan: Plan, intents: Intents) -> None:
    """Same epoch, whole weights, nothing for failed or drained regions, untouched channels equal."""
    assert check(plan, TOPOLOGY) == ()
    over = local_plan(TOPOLOGY, plan, intents)
    every = all(status.drained for status in over.regions)
    broken = [v for v in check(over, TOPOLOGY) if not (every and v.rule == "last_region")]
    assert broken == []
    assert over.epoch == plan.epoch
    gone = {d.region for d in intents.drains}
    fixed = {o.channel for o in intents.overrides}
    for before, after in zip(plan.routes, over.routes, strict=True):
        if before.channel not in fixed and not any(bp and n in gone for n, bp in before.weights):
            assert before == after


def test_a_drain_moves_what_the_leader_would_move() -> None:
    """South's share spills by priority: to East, which has room, as the leader's weights have it."""
    three = (("east", 7000), ("north", 2500), ("south", 500))
    plan = Plan(
        epoch=Epoch(3),
        routes=tuple(
            Route(channel=c.name, weights=tuple(w for w in three if w[0] in c.regions)) for c in TOPOLOGY.channels
        ),
        regions=tuple(RegionStatus(name=name) for name in NAMES),
    )  # fmt: skip
    over = local_plan(TOPOLOGY, plan, Intents(drains=(Drain(region=NAMES[2], reason=""),)))
    weights = dict(over.routes[0].weights)
    assert weights["south"] == 0
    assert (weights["east"], weights["north"]) == (7500, 2500)
    assert over.routes[0].reasons[0] == "local_override: south left at this replica"


def test_a_single_writer_is_not_moved() -> None:
    """A channel that only one region may write is named when the change would give it to another."""
    writer = replace(TOPOLOGY.channels[0], single_writer=True)
    topology: Topology = replace(TOPOLOGY, channels=(writer, *TOPOLOGY.channels[1:]))
    here = Route(channel=writer.name, weights=(("east", 10_000), ("north", 0), ("south", 0)))
    there = replace(here, weights=(("east", 0), ("north", 10_000), ("south", 0)))
    before = Plan(epoch=Epoch(1), routes=(here,))
    assert single_writer_moves(topology, before, replace(before, routes=(there,))) == [writer.name]
    assert single_writer_moves(topology, before, before) == []
