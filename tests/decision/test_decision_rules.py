"""Safety rules about the regions that a change would send more to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.decision.rules import HOUR_MS, Judged, refusals
from controlplane.decision.state import State
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.intents import (
    NO_INTENTS,
    Drain,
    Failback,
    Freeze,
    Intents,
    Override,
    Readiness,
)
from controlplane.model.plan import Phase, Plan, RegionStatus, Route, Verdict
from controlplane.model.topology import Policy
from controlplane.simulation.demo import EAST, NORTH, SOUTH, demo_topology

CALLED = Failback(region=EAST, since_ms=0)
OUT = Intents(drains=(Drain(region=EAST, reason="test"),))


def plan(topology, **weights: int) -> Plan:
    """The same weights for every channel."""
    row = tuple(sorted((RegionName(name), bp) for name, bp in weights.items()))
    routes = tuple(Route(channel=channel.name, weights=row) for channel in topology.channels)
    return Plan(epoch=Epoch(1), routes=routes)


def judged(
    policy: Policy, *, lag_s: float | None = None, drills=None, intents=OUT, north=None
) -> list[str]:
    """What is said of a change that takes everything from East to North, which may have bounds of
    its own."""
    topology = demo_topology(policy)
    regions = tuple(replace(r, **(north or {})) if r.name == NORTH else r for r in topology.regions)
    topology = replace(topology, regions=regions)
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


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"ready_lag_max_ms": 5_000}, "allows 5 s"),
        ({"ready_lag_max_ms": 0}, ""),
        ({"ready_lag_max_ms": 30_000}, ""),
        ({"ready_queue": "wal"}, "not known"),
        ({"ready_headroom_bp": 9_900}, "asks for 99 %"),
        ({"ready_drill_max_age_h": 24}, "never been drilled"),
    ],
)
def test_a_region_of_its_own_bounds_is_judged_by_them(own, said):
    """Lag 8 s under a policy of 10 s: stricter, looser and absent bounds of North replace it."""
    told = judged(Policy(ready_lag_max_ms=10_000), lag_s=8, north=own)
    assert bool(told) == bool(said)
    assert all(said in line for line in told)
    assert judged(Policy(ready_lag_max_ms=1_000), lag_s=8, north={"ready_lag_max_ms": 30_000}) == []


@pytest.mark.parametrize(
    ("read_s", "told_ms", "said"),
    [(None, 1_000, ""), (None, 12_000, "12 s"), (12, 0, "12 s"), (1, 12_000, "12 s"), (1, 0, "")],
)
def test_of_a_lag_that_is_read_and_one_that_is_told_the_larger_counts(read_s, told_ms, said):
    """A lag that nobody reads may be told; one that is read cannot be talked away."""
    told = Readiness(region=NORTH, lag_ms=told_ms, until_ms=0)
    case = replace(OUT, readiness=(told,))
    lines = judged(Policy(ready_lag_max_ms=10_000), lag_s=read_s, intents=case)
    assert bool(lines) == bool(said)
    assert all(said in line for line in lines)


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
    back = replace(NO_INTENTS, failback=(Failback(region=SOUTH, since_ms=0),))
    assert any("south" in line for line in judged(policy, intents=back))


def east_failed(
    intents: Intents, held: Intents, *, north_drained: bool = False, clear_ms: int | None = None
) -> list[str]:
    """Rules that refuse a change while East is failed and `held` holds."""
    topology = demo_topology(Policy())
    state = State.initial(topology)
    regions = dict(state.memory.regions)
    regions[EAST] = replace(
        regions[EAST],
        phase=Phase.FAILED,
        verdict=Verdict.UNHEALTHY,
        kind="dead",
        cause="no report",
        clear_ms=clear_ms,
    )
    now = plan(topology, east=0, north=9000, south=1000)
    statuses = (
        RegionStatus(name=EAST, phase=Phase.FAILED, verdict=Verdict.UNHEALTHY),
        RegionStatus(
            name=NORTH, phase=Phase.HEALTHY, verdict=Verdict.HEALTHY, drained=north_drained
        ),
    )
    now = replace(now, regions=statuses)
    case = Judged(
        topology=topology,
        state=state.having(replace(state.memory, regions=regions)),
        evidence=Evidence(regions=()),
        intents=intents,
        before=now,
        after=now,
        drill_age_ms={},
        held=held,
    )
    return [r.rule for r in refusals(case)]


FIXED = Override(channel="alipay", weights=((EAST, 7000), (NORTH, 3000)), reason="before")


@pytest.mark.parametrize(
    "held", [replace(NO_INTENTS, failback=(CALLED,)), Intents(overrides=(FIXED,))]
)
def test_what_holds_already_refuses_nothing_else(held: Intents) -> None:
    """A failback or an override of East stands when East dies: asked for anew it would be refused,
    but it does not make the freeze fail that the operator needs now."""
    frozen = replace(held, freeze=Freeze(reason="hold on"))
    assert east_failed(frozen, held) == []
    assert set(east_failed(frozen, NO_INTENTS)) & {"target_ready", "override_out"}


def test_a_failed_region_may_be_called_back_once_its_evidence_is_good() -> None:
    """It stays in the phase failed for its hold-down; the refusal's remedy, good evidence, is enough
    for the order to be taken."""
    back = replace(NO_INTENTS, failback=(CALLED,))
    assert "target_ready" in east_failed(back, NO_INTENTS)
    assert "target_ready" not in east_failed(back, NO_INTENTS, clear_ms=1_000)


def test_a_drain_makes_standing_overrides_count_again() -> None:
    """What a standing override would send to a region drained anew is refused."""
    held = Intents(overrides=(replace(FIXED, weights=((NORTH, 10_000),)),))
    drained = replace(held, drains=(Drain(region=NORTH, reason="test"),))
    assert "override_out" in east_failed(drained, held)


def test_what_the_plan_has_drained_is_out() -> None:
    """A replica alone is asked on top of the committed plan: with East failed and North drained by
    the plan, unionpay has nobody left, and no override may send payments to North."""
    alone = Intents(drains=(Drain(region=SOUTH, reason="test"),))
    assert "channel_served" in east_failed(alone, NO_INTENTS, north_drained=True)
    moved = Intents(overrides=(replace(FIXED, weights=((NORTH, 10_000),)),))
    assert "override_out" in east_failed(moved, NO_INTENTS, north_drained=True)
    assert "override_out" not in east_failed(moved, NO_INTENTS)
