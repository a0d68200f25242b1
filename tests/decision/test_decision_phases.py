"""Phases: the table is total and says what the rules say; what is out by order and by bound."""

import itertools
from dataclasses import replace

from controlplane.decision.detector import suspicion_ms, wilson_low
from controlplane.decision.explain import explain
from controlplane.decision.phases import TABLE
from controlplane.decision.signals import Signal
from controlplane.model.intents import Drain, Intents
from controlplane.model.plan import Phase
from controlplane.model.topology import Policy
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault
from controlplane.simulation.run import Simulation


def test_table_is_total():
    """Every pair of phase and signal has its transition: nothing is left to chance."""
    assert set(TABLE) == set(itertools.product(Phase, Signal))


def test_nobody_fails_without_having_been_suspect_unless_ordered():
    """Failed is reached from suspect by evidence, from anywhere by order, and in no other way."""
    into_failed = {key for key, phase in TABLE.items() if phase is Phase.FAILED}
    by_evidence = {k for k in into_failed if k[0] is not Phase.FAILED and k[1] is not Signal.ORDER}
    assert by_evidence == {(Phase.SUSPECT, Signal.FAIL)}


def test_failed_is_left_only_by_the_ramp():
    """A fenced region returns through recovering, whatever signal comes."""
    left = {TABLE[Phase.FAILED, signal] for signal in Signal} - {Phase.FAILED}
    assert left == {Phase.RECOVERING}


def test_suspicion_shrinks_with_confirmations():
    """One witness of two waits T_max, both wait T_min; more regions shrink step by step."""
    policy = Policy()
    assert suspicion_ms(policy, 1, 2) == policy.suspicion_max_ms
    assert suspicion_ms(policy, 2, 2) == policy.suspicion_min_ms
    assert suspicion_ms(policy, 1, 1) == policy.suspicion_min_ms
    waits = [suspicion_ms(policy, downs, 11) for downs in range(1, 12)]
    assert waits == sorted(waits, reverse=True)
    assert waits[-1] == policy.suspicion_min_ms


def test_wilson_bound_needs_samples():
    """Three failures of three say little, sixty of seventy say much."""
    assert wilson_low(0, 0) == 0.0
    assert wilson_low(3, 3) < 0.5
    assert wilson_low(60, 70) > 0.5


def ordered_out_for_a_minute(*faults, seconds=150):
    """East is out by order from 10 to 60 s, a gate is closed until 120 s. Returns every tick."""
    gate = ("reconciliation",)
    order = Drain(region="east", reason="maintenance", immediate=True)
    intents = [
        (0, Intents(closed_gates=gate)),
        (10_000, Intents(drains=(order,), closed_gates=gate)),
        (60_000, Intents(closed_gates=gate)),
        (120_000, Intents()),
    ]
    world = Simulation(
        demo_topology(), faults, duration_ms=seconds * 1000, with_payments=False,
        leader="south", intents=intents,
    )  # fmt: skip
    return list(world.ticks())


def said(ticks, kind):
    """When events of a kind were said, in ms."""
    return [t.at_ms for t in ticks for event in t.step.events if event.kind == kind]


def test_a_region_that_dies_while_it_is_out_by_order_returns_as_a_failed_one():
    """East is ordered out, dies at 20 s and is well from 50 s on; the order ends at 60 s. Its death
    is said once and counts for damping, the cause is the evidence, and it waits for the gate. The
    record of the order stays an order's."""
    ticks = ordered_out_for_a_minute(
        Fault(kind="crash", region="east", start_ms=20_000, end_ms=50_000)
    )
    (unfit_ms,) = said(ticks, "region_unfit")
    assert 25_000 <= unfit_ms <= 33_000
    east = next(t for t in ticks if t.at_ms == 60_000).step.state.memory.regions["east"]
    assert (east.phase, east.kind) == (Phase.FAILED, "dead")
    assert "no answered probe" in east.cause
    assert east.penalty > 0
    (back_ms,) = said(ticks, "region_recovering")
    assert back_ms >= 120_000
    assert {record.kind for t in ticks for record in t.step.failovers} == {"manual"}


def test_a_region_that_is_well_while_it_is_out_by_order_is_not_called_unfit():
    """The same order without a death: nothing but the order is said of it."""
    ticks = ordered_out_for_a_minute()
    assert said(ticks, "region_unfit") == []
    east = next(t for t in ticks if t.at_ms == 59_000).step.state.memory.regions["east"]
    assert (east.kind, east.penalty) == ("manual", 0.0)


def test_the_bound_on_failovers_is_named_and_an_operator_may_decide():
    """No failover by evidence is allowed at all: dead East is suspect and at 0, `explain` names the
    bound, and an operator's order fences it."""
    topology = demo_topology()
    topology = replace(topology, policy=replace(topology.policy, max_failovers_per_h=0))
    order = Drain(region="east", reason="it is dead", immediate=True)
    world = Simulation(
        topology, [Fault(kind="crash", region="east", start_ms=10_000)], duration_ms=60_000,
        with_payments=False, leader="south", intents=[(40_000, Intents(drains=(order,)))],
    )  # fmt: skip
    ticks = list(world.ticks())
    before = next(t for t in ticks if t.at_ms == 39_500).step
    assert before.state.memory.regions["east"].phase is Phase.SUSPECT
    assert dict(before.plan.routes[0].weights)["east"] == 0
    told = " ".join(s.detail for s in explain(topology, before.state, before.plan, "alipay"))
    assert "held: 0 failovers within the hour, max_failovers_per_h allows 0" in told
    assert said(ticks, "region_failed") == [40_000]
