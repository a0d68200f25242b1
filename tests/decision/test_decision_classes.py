"""Channels that share their inputs are weighed once, and it shows in nothing but the cost."""

from dataclasses import replace

import numpy as np
import pytest
from episodes import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.decision import planning
from controlplane.decision.classes import alike, classes
from controlplane.decision.smoothing import round_columns
from controlplane.decision.state import BreakerMemory, RegionMemory, State
from controlplane.decision.step import step
from controlplane.decision.weights import Load, target
from controlplane.decision.world import compiled
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.intents import NO_INTENTS, Drain, Intents
from controlplane.model.plan import Breaker, Phase

REGIONS = ("east", "north", "south")
SERVING = (REGIONS, REGIONS, ("east", "north"), ("east", "south"), ("south",))
QUIET = Evidence(regions=tuple(RegionEvidence(region=r, report_age_ms=100) for r in REGIONS))


def many(channels):
    """`channels` channels of five kinds, who serve and demand; some unlike their neighbours."""
    base = QUICK.channels[0]
    return replace(
        QUICK,
        channels=tuple(
            replace(base, name=f"c{i:04}", regions=SERVING[i % len(SERVING)], demand_tps=i % 4)
            for i in range(channels)
        ),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.05, 1.0]), min_size=3, max_size=3),
    st.dictionaries(st.integers(0, 119), st.sampled_from([0.0, 0.01]), max_size=6),
    st.dictionaries(st.integers(0, 119), st.sampled_from([0.5, 0.8]), max_size=6),
)
def test_a_class_gets_what_each_of_its_channels_would_get(available, breakers, tilts):
    """The rules applied to classes give each channel the shares that they give it on its own."""
    world = compiled(many(40))
    cell, tilt = np.ones(120), np.ones(120)
    for table, odd in ((cell, breakers), (tilt, tilts)):
        table[list(odd)] = list(odd.values())
    cell, tilt = cell.reshape(3, 40), tilt.reshape(3, 40)
    limits = np.asarray(available)
    alone = target(Load.of(world.topology), limits, cell, tilt, 0.8)
    few = classes(world, cell, tilt)
    shared = target(few.load, limits, few.cell, few.tilt, 0.8)
    assert np.allclose(shared.share[:, few.of], alone.share)
    assert np.allclose(shared.shed[few.of], alone.shed)
    assert np.allclose(shared.utilisation, alone.utilisation)
    assert (shared.orphans[few.of] == alone.orphans).all()
    whole = round_columns(shared.share)[:, few.of]
    assert (np.abs(whole - round_columns(alone.share)) <= 1).all()


def test_the_rules_work_on_as_many_columns_as_there_are_kinds_and_odd_channels():
    """1,000 channels that four sets of regions serve, two of them with a breaker or a tilt: six."""
    world = compiled(many(1000))
    cell, tilt = np.ones((3, 1000)), np.ones((3, 1000))
    cell[0, 7], tilt[1, 11] = 0.0, 0.8
    assert classes(world, cell, tilt).load.demand.size == len(world.kinds) + 2 == 6


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 2)] * 4), min_size=1, max_size=30))
def test_alike_are_exactly_those_that_agree_in_everything(columns):
    """Two channels are of one class when class, and every row, were the same; else they are not."""
    table = np.array(columns, dtype=float)
    of = alike(table[:, 0].astype(np.intp), table[:, 1:].T)
    for i, one in enumerate(columns):
        for j, other in enumerate(columns):
            assert (of[i] == of[j]) == (one == other)


def test_a_failover_is_computed_once_and_makes_one_list_of_weights_a_kind():
    """The tick of a drain makes all routes; those of one kind share one object, and the next tick
    has nothing to do: weights that jumped have arrived."""
    topology = many(500)
    state = step(topology, State.initial(topology), QUIET, NO_INTENTS, 0).state
    away = Intents(drains=(Drain(region="east", reason="drill", immediate=True),))
    decided = step(topology, state, QUIET, away, 500)
    assert decided.plan.epoch == state.memory.plan.epoch + 1
    assert all(route.weight("east") == 0 for route in decided.plan.routes)
    assert len({id(route.weights) for route in decided.plan.routes}) == len(set(SERVING))
    assert decided.state.memory.settled
    after = step(topology, decided.state, QUIET, away, 1000)
    assert after.plan is decided.plan


def test_only_routes_that_changed_are_new_objects():
    """A breaker that opens changes its channel's route; all others stay the very objects."""
    topology = many(50)
    state = step(topology, State.initial(topology), QUIET, NO_INTENTS, 0).state
    broken = BreakerMemory(
        region="east", channel="c0000", state=Breaker.OPEN, open_until_ms=10**9, cause="errors"
    )
    memory = replace(state.memory, breakers={"east/c0000": broken})
    after = step(topology, state.having(memory), QUIET, NO_INTENTS, 500)
    pairs = zip(state.memory.plan.routes, after.plan.routes, strict=True)
    assert [old.channel for old, new in pairs if old is not new] == ["c0000"]
    assert after.plan.routes[0].weight("east") == 0


@pytest.mark.parametrize(
    ("phases", "drained", "good", "expected"),
    [
        # neither failed nor drained, though suspect: the last good weights among them
        (("suspect", "suspect", "failed"), (), (3000, 7000, 0), (3000, 7000, 0)),
        # a drained region gets nothing while a suspect one is there
        (("suspect", "suspect", "healthy"), ("south",), (1000, 1000, 8000), (5000, 5000, 0)),
        # the last good weights were elsewhere: by the configured shares
        (("suspect", "suspect", "failed"), (), (0, 0, 10_000), (7368, 2632, 0)),
        # drained, but not failed
        (("failed", "failed", "healthy"), ("south",), (9000, 1000, 0), (0, 0, 10_000)),
        # all failed: the last good weights
        (("failed", "failed", "failed"), (), (9000, 1000, 0), (9000, 1000, 0)),
        # all failed and nothing known: evenly
        (("failed", "failed", "failed"), (), (0, 0, 0), (3334, 3333, 3333)),
    ],
)
def test_a_channel_that_nobody_may_serve_goes_where_it_is_least_bad(
    phases, drained, good, expected
):
    """The order of the fallback: not failed nor drained, drained only, the last good weights."""
    topology = many(1)
    world, state = compiled(topology), State.initial(topology)
    regions = {
        name: RegionMemory(phase=Phase(phase), moved=phase == "suspect")
        for name, phase in zip(REGIONS, phases, strict=True)
    }
    memory = replace(state.memory, regions=regions)
    state = state.having(memory, {**state.columns, "good": np.array(good, dtype=float)})
    intents = Intents(drains=tuple(Drain(region=name, reason="") for name in drained))
    limits = planning.constraints(world, memory, intents)
    weights = planning.weigh(world, state, memory, limits, intents)
    assert weights.orphans.all()
    assert weights.weight[:, 0].tolist() == list(expected)
