"""Each protective rule is removed in turn, and the property it protects is seen to fail.

A test that stays green without the rule proves nothing about the rule.
"""

import itertools
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

from controlplane.decision import (
    breaker,
    cells,
    circuits,
    detector,
    planning,
    removals,
    signals,
    step,
    votes,
)
from controlplane.decision.cells import observe_cells
from controlplane.decision.state import State
from controlplane.decision.world import compiled
from controlplane.model.audit import check
from controlplane.model.errors import Alarm
from controlplane.model.evidence import CellCounters, Evidence, Gains, Outcomes, RegionEvidence
from controlplane.model.intents import NO_INTENTS, Drain, Freeze, Intents, Override
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault, Noise
from controlplane.simulation.run import Simulation
from controlplane.simulation.scenarios import flapping

TOPOLOGY = demo_topology()


def policy(**changes):
    """The demo under another policy."""
    return replace(TOPOLOGY, policy=replace(TOPOLOGY.policy, **changes))


def run(faults, **options):
    """Run a short world; by default without payments."""
    options = {"duration_ms": 60_000, "with_payments": False, "leader": "south"} | options
    return Simulation(TOPOLOGY, faults, **options).run()


def ticks(faults, **options):
    """The ticks of the same."""
    options = {"duration_ms": 60_000, "with_payments": False, "leader": "south"} | options
    return list(Simulation(TOPOLOGY, faults, **options).ticks())


def opened(rows, *, unwell=(), intents=NO_INTENTS, every_ms=500):
    """Feed alipay's cells from East; tells whether its breaker opened. A row holds the good and bad
    payments, the declined ones, and the good and bad probes of one tick."""
    state = State.initial(TOPOLOGY)
    for number, (good, bad, declined, probe_good, probe_bad) in enumerate(rows):
        cells_ = CellCounters(
            channel="alipay",
            traffic=Outcomes(ok=good, error=bad, declined=declined),
            probe=Outcomes(ok=probe_good, error=probe_bad),
        )
        lag = 9000.0 if "east" in unwell else 0.0
        evidence = Evidence(
            regions=tuple(
                RegionEvidence(
                    region=name,
                    report_age_ms=100,
                    agents_live=1,
                    loop_lag_ms=lag if name == "east" else 0.0,
                    cells=(cells_,) if name == "east" else (),
                )
                for name in ("east", "north", "south")
            )
        )
        decided = step.step(TOPOLOGY, state, evidence, intents, every_ms * number)
        state = decided.state
        if any(event.kind == "breaker_opened" for event in decided.events):
            return True
    return False


def liar_is_void():
    """A vantage that blames everybody while others disagree has no vote. Protects every quorum."""
    world = Simulation(
        TOPOLOGY,
        [Fault(kind="liar", region="north", start_ms=5000)],
        duration_ms=20_000,
        with_payments=False,
    )
    state = [tick.step.state for tick in world.ticks()][-1]
    return votes.votes(state, "east")[0].opinion is votes.Opinion.VOID


def liar_and_a_blind_region():
    """One lies about East while South's agents are dead: one witness is not enough."""
    faults = [
        Fault(kind="liar", region="north", peer="east", start_ms=20_000),
        Fault(kind="agents", region="south", start_ms=5000),
    ]
    return not run(faults, leader="north").failed


def leader_pauses():
    """The leader stands still for 20 s: nobody is blamed for it."""
    faults = [Fault(kind="pause", start_ms=20_000, end_ms=40_000)]
    world = Simulation(TOPOLOGY, faults, duration_ms=60_000, with_payments=False)
    before = after = 0
    for tick in world.ticks():
        if tick.at_ms < 20_000:
            before = tick.step.state.memory.now_ms
        elif not after:
            after = tick.step.state.memory.now_ms
    return after - before <= 1250


def weather_moves_little():
    """Twenty minutes in which every link is half of the time in an 80 % burst: a handful of moves."""
    noise = Noise(between_ms=10_000, burst_ms=10_000)
    result = run([], noise=noise, duration_ms=1_200_000, seed=5)
    return sum(len(times) for times in result.moved.values()) <= 5


def flapping_is_one_failover():
    """Up 20 s, down 20 s for five minutes: one failure."""
    result = run(flapping("east", 20_000, 20_000, 300_000), duration_ms=340_000)
    return len(result.failed["east"]) <= 1


def drains_leave_somebody():
    """All regions are asked to drain: the plan stays sound."""
    intents = Intents(drains=tuple(Drain(region=r.name, reason="x") for r in TOPOLOGY.regions))
    decided = step.step(TOPOLOGY, State.initial(TOPOLOGY), Evidence(regions=()), intents, 0)
    return check(decided.plan, TOPOLOGY) == ()


def failed_is_at_zero():
    """A failed region carries nothing."""
    try:
        run([Fault(kind="crash", region="east", start_ms=10_000)], duration_ms=30_000)
    except Alarm:
        return False
    return True


def provider_outage_is_said():
    """One channel fails from everywhere: it is called an outage, and base shares stay."""
    faults = [Fault(kind="errors", channel="alipay", rate=0.6, start_ms=10_000)]
    result = run(faults, duration_ms=20_000, with_payments=True)
    return result.count("provider_outage") == 1 and result.weights[-1][1][0] == 7000


def incident_is_not_learned():
    """A slow rise to 12 % errors does not become the norm within its minutes."""
    world = compiled(TOPOLOGY)
    state, rng = State.initial(TOPOLOGY), np.random.default_rng(1)
    for tick in range(1200):
        share = 0.01 if tick < 600 else 0.5
        calls = rng.poisson(5.0, 1)
        bad = rng.binomial(calls, share)
        gains = Gains(
            cell=[0], traffic_good=calls - bad, traffic_bad=bad, probe_good=[0], probe_bad=[0]
        )
        memory = replace(state.memory, now_ms=500 * tick)
        state, _ = observe_cells(
            world, state.having(memory), Evidence(regions=(), gains=gains), 500
        )
    return state.columns["error_base"][0] < 0.05


def absurd_epoch_is_refused():
    """An epoch near the end of integers is not followed."""
    evidence = Evidence(regions=(), highest_epoch=1 << 60)
    decided = step.step(TOPOLOGY, State.initial(TOPOLOGY), evidence, Intents(), 0)
    return decided.plan.epoch < 10


def removals_are_capped():
    """East and North look bad together: at most one of three regions is out within half a minute."""
    faults = [
        Fault(kind="ingress", region="east", start_ms=10_000),
        Fault(kind="agents", region="east", start_ms=10_000),
        Fault(kind="ingress", region="north", start_ms=10_000),
        Fault(kind="agents", region="north", start_ms=10_000),
    ]
    result = run(faults, duration_ms=25_000)
    return len({*result.moved, *result.failed}) <= 1


def quick_suspicions_are_damped():
    """Dead for 4 s in every 24: moved a few times, then kept out instead of moved for ever."""
    result = run(flapping("east", 20_000, 4000, 300_000), duration_ms=340_000)
    return len(result.moved["east"]) <= 5


def a_short_life_is_no_return():
    """East comes back for 20 s after its failure: it is held down and does not return."""
    faults = [
        Fault(kind="crash", region="east", start_ms=10_000, end_ms=25_000),
        Fault(kind="crash", region="east", start_ms=45_000),
    ]
    return run(faults).count("region_recovering") == 0


def a_closed_gate_keeps_a_region_out():
    """East is well again for a minute, reconciliation is not done: it does not return."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000)]
    gates = [(0, Intents(closed_gates=("reconciliation",)))]
    return run(faults, intents=gates, duration_ms=70_000).count("region_recovering") == 0


def a_freeze_holds_everything():
    """Frozen by an operator: a crash takes nothing out."""
    frozen = [(0, Intents(freeze=Freeze(reason="audit")))]
    result = run([Fault(kind="crash", region="east", start_ms=10_000)], intents=frozen)
    return not result.moved and not result.failed


def a_freeze_opens_no_breaker():
    """Frozen by an operator: a bad cell stays closed."""
    return not opened([(2, 8, 0, 0, 0)] * 60, intents=Intents(freeze=Freeze(reason="audit")))


def a_leader_that_hears_nobody_resigns():
    """Nothing passes between South and the others: South's leader blames nobody and resigns."""
    faults = [Fault(kind="cut", region=r, peer="south", start_ms=9000) for r in ("east", "north")]
    decided = [tick.step for tick in ticks(faults, duration_ms=30_000)]
    moved = any(event.kind == "failover_started" for one in decided for event in one.events)
    return decided[-1].resign and not moved


def a_cold_start_blames_nobody():
    """East's agents and ingress come 10 s after the leader: not suspect for that."""
    faults = [Fault(kind=k, region="east", end_ms=10_000) for k in ("agents", "ingress")]
    return run(faults, duration_ms=14_000).count("region_suspect") == 0


def weights_move_by_steps():
    """A region whose suspicion is withdrawn gets its share back by at most 250 bp a tick."""
    result = run([Fault(kind="crash", region="east", start_ms=10_000, end_ms=14_000)])
    rows = [row[0] for _, row in result.weights]
    back = rows[rows.index(0) :]
    return all(b - a <= 250 for a, b in itertools.pairwise(back))


def a_return_is_a_ramp():
    """After a failure East carries at most 5 % of its share for its first ten seconds."""
    result = run(
        [Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000)], duration_ms=75_000
    )
    back_ms = result.first("region_recovering")
    return all(row[0] <= 350 for at, row in result.weights if back_ms <= at < back_ms + 10_000)


def an_override_revives_nobody():
    """An operator fixed alipay on East and North, East is dead: the plan stays sound."""
    weights = (("east", 5000), ("north", 5000))
    asked = Intents(overrides=(Override(channel="alipay", weights=weights, reason="test"),))
    try:
        run([Fault(kind="crash", region="east", start_ms=10_000)], intents=[(0, asked)])
    except Alarm:
        return False
    return True


def nobody_left_is_no_empty_route():
    """East and North are drained, South does not serve unionpay: its route still sums to 10,000."""
    away = Intents(drains=(Drain(region="east", reason="x"), Drain(region="north", reason="x")))
    decided = step.step(TOPOLOGY, State.initial(TOPOLOGY), Evidence(regions=()), away, 0)
    return check(decided.plan, TOPOLOGY) == ()


def an_outage_moves_nothing():
    """A provider fails from everywhere: East's share is not moved for a moment, not even before the
    outage is recognised."""
    faults = [Fault(kind="errors", channel="alipay", rate=0.2, start_ms=10_000)]
    result = run(faults, duration_ms=30_000, with_payments=True, seed=2)
    return all(row[0] == 7000 for _, row in result.weights)


def a_bad_cell_carries_a_trickle_at_most():
    """30 % of East's calls to alipay fail for a minute: after the trip it never has its share back."""
    faults = [Fault(kind="errors", region="east", channel="alipay", rate=0.3, start_ms=5000)]
    result = run(faults, with_payments=True)
    rows = [row[0] for _, row in result.weights]
    return max(rows[rows.index(0) :]) <= 100


def probation_asks_for_evidence():
    """A cell with few calls that goes on failing 20 % of them is not closed by chance."""
    faults = [Fault(kind="errors", region="east", channel="bank_direct", rate=0.2, start_ms=5000)]
    result = run(faults, with_payments=True, duration_ms=180_000)
    return result.count("breaker_closed") == 0


def a_bad_cell_is_asked_less_and_less():
    """All calls of East to alipay fail for five minutes: it is tried again a few times only."""
    faults = [Fault(kind="errors", region="east", channel="alipay", rate=1.0, start_ms=5000)]
    result = run(faults, with_payments=True, duration_ms=300_000)
    return result.count("breaker_opened") <= 9


def once_a_minute(total, bad):
    """Ticks of 1.25 s with one payment a minute; `bad` tells which of them fail."""
    return [
        (int(not bad(i // 48)), int(bad(i // 48)), 0, 0, 0) if i % 48 == 0 else (0,) * 5
        for i in range(48 * total)
    ]


def one_failure_proves_nothing():
    """One request a minute, the third fails: nothing opens."""
    return not opened(once_a_minute(5, lambda minute: minute == 2), every_ms=1250)


def failures_in_a_row_prove_enough():
    """One request a minute, and after eight good ones all fail: opened, not blind."""
    return opened(once_a_minute(20, lambda minute: minute >= 8), every_ms=1250)


def probes_do_not_drown_payments():
    """Half of the payments fail while every probe succeeds, ten for each payment: opened."""
    return opened([(1, 1, 0, 20, 0)] * 120)


def a_decline_is_an_answer():
    """Half of the payments are declined by the issuer: nothing opens."""
    return not opened([(5, 0, 5, 0, 0)] * 120)


def an_unwell_observer_judges_no_cell():
    """The agents' own loop is late: the failures they see are of their own making."""
    return not opened([(2, 8, 0, 0, 0)] * 120, unwell=("east",))


def an_outage_that_is_over_is_no_brown_out():
    """East was dead for 45 s: the losses of that time do not keep it out for longer."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=55_000)]
    back_ms = run(faults, duration_ms=100_000).first("region_recovering")
    return back_ms is not None and back_ms <= 95_000


def failures_an_hour_are_bounded():
    """East may be failed once an hour: the second time its weight leaves and it is not fenced."""
    faults = [
        Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000),
        Fault(kind="crash", region="east", start_ms=200_000),
    ]
    once = policy(max_failovers_per_h=1)
    result = Simulation(
        once, faults, duration_ms=240_000, with_payments=False, leader="south"
    ).run()
    assert len(result.moved["east"]) == 2
    assert result.weights[-1][1][0] == 0
    return len(result.failed["east"]) == 1


def suspicion_waits_before_it_fences():
    """East is dead for 5 s: its weight moves and comes back, it is not fenced."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=15_000)]
    return not run(faults, duration_ms=30_000).failed


def _without_gates(name, memory, intents, caps):
    return RETURN(name, memory, replace(intents, closed_gates=()), caps)


def _without_hold_down(name, memory, intents, caps):
    policy_ = replace(caps.policy, hold_down_ms=0)
    return RETURN(name, memory, intents, replace(caps, policy=policy_))


def _trip_though_held(tick, *rest):
    tick.hold = False
    TRIP(tick, *rest)


RETURN, TRIP, OVERRIDE = signals.return_signal, circuits._trip, planning.override_row
HERE = sys.modules[__name__]

MUTANTS = [
    (quick_suspicions_are_damped, signals, "damped", lambda *_: False),
    (a_short_life_is_no_return, signals, "return_signal", _without_hold_down),
    (a_closed_gate_keeps_a_region_out, signals, "return_signal", _without_gates),
    (a_freeze_holds_everything, removals.Removals, "refusal", lambda *_, **__: ""),
    (a_freeze_opens_no_breaker, circuits, "_trip", _trip_though_held),
    (a_leader_that_hears_nobody_resigns, step, "leader_cut_off", lambda *_: False),
    (a_cold_start_blames_nobody, HERE, "TOPOLOGY", policy(warmup_ms=0)),
    (weights_move_by_steps, planning, "approach", lambda _now, goal, *_: goal),
    (a_return_is_a_ramp, HERE, "TOPOLOGY", policy(ramp_bp=(10_000,))),
    (
        an_override_revives_nobody,
        planning,
        "override_row",
        lambda override, regions, _out: OVERRIDE(override, regions, frozenset()),
    ),
    (nobody_left_is_no_empty_route, planning, "_fallback", lambda _world, share, *_: share),
    (an_outage_moves_nothing, circuits, "_refusal", lambda *_: ""),
    (a_bad_cell_carries_a_trickle_at_most, HERE, "TOPOLOGY", policy(trickle_bp=10_000)),
    (probation_asks_for_evidence, circuits, "PROBATION_NATS", 0.0),
    (a_bad_cell_is_asked_less_and_less, breaker, "open_ms", lambda *_: 5000),
    (one_failure_proves_nothing, cells, "thresholds", lambda rate, _: np.ones_like(rate)),
    (
        failures_in_a_row_prove_enough,
        cells,
        "thresholds",
        lambda rate, _: np.full_like(rate, 1e9),
    ),
    (probes_do_not_drown_payments, cells, "TRAFFIC_RECENT_MS", 0),
    (
        a_decline_is_an_answer,
        cells,
        "_good_bad",
        lambda o: (o.ok, o.error + o.declined),
    ),
    (
        an_unwell_observer_judges_no_cell,
        cells,
        "judged_cells",
        lambda world, _state: np.ones(len(world.place) + 2, dtype=np.bool_),
    ),
    (an_outage_that_is_over_is_no_brown_out, votes, "RUN_MOST", 10**6),
    (failures_an_hour_are_bounded, removals, "HOUR_MS", 0),
    (suspicion_waits_before_it_fences, signals, "fail_at_ms", lambda *_: 0),
    (liar_and_a_blind_region, detector, "WITNESSES", 1),
    (incident_is_not_learned, cells, "CALM", math.inf),
    (removals_are_capped, removals.Removals, "refusal", lambda *_, **__: ""),
    (liar_is_void, votes, "_blames_everyone", lambda *_: False),
    (leader_pauses, step, "_passed", lambda memory, _policy, now: now - (memory.clock_ms or now)),
    (weather_moves_little, votes, "_nats", lambda _loss: 100.0),
    (flapping_is_one_failover, signals, "return_signal", lambda *_: (signals.Signal.READY, "")),
    (
        drains_leave_somebody,
        planning,
        "honoured_drains",
        lambda _world, intents: frozenset(d.region for d in intents.drains),
    ),
    (failed_is_at_zero, planning, "available_bp", lambda *_: 10_000),
    (provider_outage_is_said, circuits, "_outages", lambda *_: ()),
    (absurd_epoch_is_refused, step, "HIGHEST_EPOCH", math.inf),
]


@pytest.mark.parametrize(
    ("holds", "module", "name", "without"), MUTANTS, ids=[m[0].__name__ for m in MUTANTS]
)
def test_without_its_rule_the_property_fails(holds, module, name, without, monkeypatch):
    """With the rule the property holds; with the rule removed the same check finds it broken."""
    assert holds()
    monkeypatch.setattr(module, name, without)
    if name == "HIGHEST_EPOCH":
        monkeypatch.setattr(step, "EPOCH_JUMP", math.inf)
    assert not holds()
