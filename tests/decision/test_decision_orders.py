"""What an operator orders is told as an event, with who and why, and once."""

from __future__ import annotations

from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.audit import check
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.intents import NO_INTENTS, Drain, Freeze, Intents, Override
from controlplane.simulation.demo import EAST, NORTH, SOUTH, demo_topology

TOPOLOGY = demo_topology()
TOLD = (
    "region_drained", "region_undrained", "override_set", "override_ended", "frozen", "unfrozen",
)  # fmt: skip
DRAIN = Drain(region=EAST, reason="new switches", by="ops/ann")
FIXED = Override(
    channel="alipay", weights=((EAST, 9000), (NORTH, 1000)), reason="a test", by="ops/bob"
)


def told(*orders: Intents) -> list[list[tuple[str, str]]]:
    """What each tick says of orders, by kind and text; the second half of a tick's life is another
    leader's, who has only the state that was committed."""
    state, said = State.initial(TOPOLOGY), []
    for number, intents in enumerate(orders):
        if number == len(orders) // 2:
            state = State.from_bytes(state.to_bytes()).rebased()
        decided = step(TOPOLOGY, state, Evidence(regions=()), intents, number * 500)
        state = decided.state
        said.append([(e.kind, e.message) for e in decided.events if e.kind in TOLD])
    return said


def test_a_drain_is_told_with_who_and_why() -> None:
    """At its beginning and at its end, not in between, nor by the next leader."""
    drained = Intents(drains=(DRAIN,))
    assert told(NO_INTENTS, drained, drained, NO_INTENTS) == [
        [],
        [("region_drained", "east is drained by ops/ann: new switches")],
        [],
        [("region_undrained", "east is no longer drained")],
    ]


def test_a_freeze_is_told_with_who_and_why() -> None:
    """When it begins and when it ends, once each."""
    frozen = Intents(freeze=Freeze(reason="audit", by="ops/eve"))
    assert told(frozen, frozen, NO_INTENTS, NO_INTENTS) == [
        [("frozen", "frozen by ops/eve: audit")],
        [],
        [("unfrozen", "no longer frozen")],
        [],
    ]


def test_an_override_is_told_with_its_weights_who_and_why() -> None:
    """When it is set, when it is set anew to something else, and when it is lifted or has expired."""
    other = Override(channel="alipay", weights=((NORTH, 10_000),), reason="more")
    one, two = Intents(overrides=(FIXED,)), Intents(overrides=(other,))
    assert told(one, one, one, two, NO_INTENTS, NO_INTENTS) == [
        [("override_set", "alipay is fixed to east 90 %, north 10 % by ops/bob: a test")],
        [],
        [],
        [("override_set", "alipay is fixed to north 100 %: more")],
        [("override_ended", "alipay is no longer fixed: lifted, or expired")],
        [],
    ]


def test_a_leader_that_is_cut_off_obeys_and_its_plan_stays_sound() -> None:
    """It changes nothing by itself; a drain that is ordered then still empties the regions, instead
    of a plan that calls them drained while they carry everything."""
    orders = Intents(drains=(Drain(region=EAST, reason="all"), Drain(region=NORTH, reason="all")))
    state, alone = State.initial(TOPOLOGY), False
    for number in range(40):
        regions = tuple(
            RegionEvidence(region=r, report_age_ms=0 if r == SOUTH or not alone else 60_000)
            for r in (EAST, NORTH, SOUTH)
        )
        alone = number > 10
        evidence = Evidence(regions=regions, leader_region=SOUTH)
        decided = step(
            TOPOLOGY, state, evidence, orders if number > 30 else NO_INTENTS, number * 500
        )
        state = decided.state
        assert check(decided.plan, TOPOLOGY) == ()
    assert decided.plan.frozen
    assert decided.plan.routes[0].weights == ((EAST, 0), (NORTH, 0), (SOUTH, 10_000))


def test_leaders_that_hear_nobody_do_not_give_up_one_after_the_other() -> None:
    """No agent reports to anybody any more. The leader gives up after 2 s, since another may hear
    more; the next one hears nothing either and stays, for 30 s: each takeover costs a pause."""
    state, given_up, leader = State.initial(TOPOLOGY), [], 0
    for number in range(300):
        silent = number > 10
        regions = tuple(
            RegionEvidence(region=r, report_age_ms=60_000 if silent else 0)
            for r in (EAST, NORTH, SOUTH)
        )
        evidence = Evidence(regions=regions, leader_region=(EAST, NORTH, SOUTH)[leader % 3])
        decided = step(TOPOLOGY, state, evidence, NO_INTENTS, number * 500)
        state = decided.state
        if decided.resign:
            given_up.append(number)
            leader += 1
            state = state.rebased()
    assert given_up == [19, 79, 139, 199, 259]
    assert state.memory.cut_off
