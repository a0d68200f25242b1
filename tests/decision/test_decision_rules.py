"""Safety rules about the regions that a change would send more to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.decision.rules import HOUR_MS, Judged, refusals
from controlplane.decision.state import State
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.intents import NO_INTENTS, Drain, Intents
from controlplane.model.plan import Plan, Route
from controlplane.model.topology import Policy
from controlplane.simulation.demo import EAST, NORTH, SOUTH, demo_topology

OUT = Intents(drains=(Drain(region=EAST, reason="test"),))


def plan(topology, **weights: int) -> Plan:
    """The same weights for every channel."""
    row = tuple(sorted((RegionName(name), bp) for name, bp in weights.items()))
    routes = tuple(Route(channel=channel.name, weights=row) for channel in topology.channels)
    return Plan(epoch=Epoch(1), routes=routes)


def judged(policy: Policy, *, lag_s: float | None = None, drills=None, intents=OUT) -> list[str]:
    """What is said of a change that takes everything from East to North."""
    topology = demo_topology(policy)
    queues = {} if lag_s is None else {policy.ready_queue: lag_s}
    case = Judged(
        topology=topology,
        state=State.initial(topology),
        evidence=Evidence(regions=(RegionEvidence(region=NORTH, queue_lag_s=queues),)),
        intents=intents,
        before=plan(topology, east=7000, north=2500, south=500),
        after=plan(topology, east=0, north=9500, south=500),
        drill_age_ms=drills or {},
    )
    return [f"{r.message} {r.remedy}" for r in refusals(case) if r.rule == "target_ready"]


def test_no_bound_asks_for_nothing():
    """With the default policy neither lag, headroom nor drills are asked for."""
    assert judged(Policy()) == []


@pytest.mark.parametrize(
    ("lag_s", "said"),
    [(12.5, "north lags 12.5 s behind, the policy allows 10 s"), (None, "not known"), (10.0, "")],
)
def test_a_target_must_have_caught_up(lag_s, said):
    """A lag above the bound, or one that nobody reports, refuses with both numbers."""
    told = judged(Policy(ready_lag_max_ms=10_000), lag_s=lag_s)
    assert bool(told) == bool(said)
    assert all(said in line for line in told)


def test_headroom_is_what_the_change_leaves():
    """The headroom after the change counts, not the present one."""
    (told,) = judged(Policy(ready_headroom_bp=9_900))
    assert "north would have" in told
    assert "asks for 99 %" in told
    assert judged(Policy(ready_headroom_bp=1)) == []


@pytest.mark.parametrize(
    ("age_h", "said"), [(None, "never been drilled"), (200, "200 h ago"), (168, "")]
)
def test_a_target_must_have_been_drilled_lately(age_h, said):
    """A target never drilled, or not for too long, refuses and names the command."""
    drills = {} if age_h is None else {NORTH: age_h * HOUR_MS}
    told = judged(Policy(ready_drill_max_age_h=168), drills=drills)
    assert bool(told) == bool(said)
    assert all(said in line and "weir drill north" in line for line in told)


def test_regions_that_get_no_more_are_not_asked():
    """South keeps its share: nobody asks for its lag; a failback asks for its own region's."""
    policy = Policy(ready_lag_max_ms=10_000)
    assert all("south" not in line for line in judged(policy, lag_s=60))
    back = replace(NO_INTENTS, failback=(SOUTH,))
    assert any("south" in line for line in judged(policy, intents=back))
