"""What must hold of regions and weights, each as a function that says whether it does."""

import itertools
from dataclasses import replace

from controlplane.decision import (
    step,
    votes,
)
from controlplane.decision.state import State
from controlplane.model.audit import check
from controlplane.model.errors import Alarm
from controlplane.model.evidence import Evidence
from controlplane.model.intents import NO_INTENTS, Drain, Freeze, Intents, Override
from controlplane.simulation.faults import Fault, Noise
from controlplane.simulation.run import Simulation
from controlplane.simulation.scenarios import flapping
from tests.sim import worlds

GATE = Intents(closed_gates=("reconciliation",))


def liar_is_void():
    """A vantage that blames everybody while others disagree has no vote. Protects every quorum."""
    world = Simulation(
        worlds.TOPOLOGY,
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
    return not worlds.run(faults, leader="north").failed


def leader_pauses():
    """The leader stands still for 20 s: nobody is blamed for it."""
    faults = [Fault(kind="pause", start_ms=20_000, end_ms=40_000)]
    world = Simulation(worlds.TOPOLOGY, faults, duration_ms=60_000, with_payments=False)
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
    result = worlds.run([], noise=noise, duration_ms=1_200_000, seed=5)
    return sum(len(times) for times in result.moved.values()) <= 5


def flapping_is_one_failover():
    """Up 20 s, down 20 s for five minutes: one failure."""
    result = worlds.run(flapping("east", 20_000, 20_000, 300_000), duration_ms=340_000)
    return len(result.failed["east"]) <= 1


def drains_leave_somebody():
    """All regions are asked to drain: the plan stays sound."""
    intents = Intents(
        drains=tuple(Drain(region=r.name, reason="x") for r in worlds.TOPOLOGY.regions)
    )
    decided = step.step(
        worlds.TOPOLOGY, State.initial(worlds.TOPOLOGY), Evidence(regions=()), intents, 0
    )
    return check(decided.plan, worlds.TOPOLOGY) == ()


def failed_is_at_zero():
    """A failed region carries nothing."""
    try:
        worlds.run([Fault(kind="crash", region="east", start_ms=10_000)], duration_ms=30_000)
    except Alarm:
        return False
    return True


def absurd_epoch_is_refused():
    """An epoch near the end of integers is not followed."""
    evidence = Evidence(regions=(), highest_epoch=1 << 60)
    decided = step.step(worlds.TOPOLOGY, State.initial(worlds.TOPOLOGY), evidence, Intents(), 0)
    return decided.plan.epoch < 10


def removals_are_capped():
    """East and North look bad together: at most one of three regions is out within half a minute."""
    faults = [
        Fault(kind="ingress", region="east", start_ms=10_000),
        Fault(kind="agents", region="east", start_ms=10_000),
        Fault(kind="ingress", region="north", start_ms=10_000),
        Fault(kind="agents", region="north", start_ms=10_000),
    ]
    result = worlds.run(faults, duration_ms=25_000)
    return len({*result.moved, *result.failed}) <= 1


def quick_suspicions_are_damped():
    """Dead for 4 s in every 24: moved a few times, then kept out instead of moved for ever."""
    result = worlds.run(flapping("east", 20_000, 4000, 300_000), duration_ms=340_000)
    return len(result.moved["east"]) <= 5


def a_short_life_is_no_return():
    """East comes back for 20 s after its failure: it is held down and does not return."""
    faults = [
        Fault(kind="crash", region="east", start_ms=10_000, end_ms=25_000),
        Fault(kind="crash", region="east", start_ms=45_000),
    ]
    return worlds.run(faults).count("region_recovering") == 0


def a_closed_gate_keeps_a_region_out():
    """East is well again for a minute, reconciliation is not done: it does not return."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000)]
    gates = [(0, Intents(closed_gates=("reconciliation",)))]
    return worlds.run(faults, intents=gates, duration_ms=70_000).count("region_recovering") == 0


def a_failback_is_for_one_outage():
    """East flaps. An operator calls it back in its first quiet: it returns then, and after its next
    failure it is held down as ever."""
    result = worlds.run(
        flapping("east", 20_000, 20_000, 300_000),
        intents=[(56_000, worlds.called_back("east"))],
        duration_ms=340_000,
    )
    assert 56_000 <= result.first("region_recovering") <= 60_000
    return result.count("region_recovering") == 1


def a_failback_ends_when_what_was_ordered_out_dies():
    """East is out by order, is called back and turns out to be dead: held down as any dead one."""
    order = Intents(drains=(Drain(region="east", reason="x", immediate=True),))
    faults = [Fault(kind="crash", region="east", start_ms=16_000, end_ms=30_000)]
    asked = [(10_000, order), (20_000, worlds.called_back("east"))]
    back_ms = worlds.run(faults, intents=asked, duration_ms=65_000).first("region_recovering")
    return back_ms is not None and back_ms >= 60_000


def a_closed_gate_holds_a_failback():
    """East is well again and called back, reconciliation is not done: it does not return."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000)]
    asked = [(0, GATE), (30_000, worlds.called_back("east", intents=GATE))]
    return worlds.run(faults, intents=asked, duration_ms=70_000).count("region_recovering") == 0


def a_gate_is_overridden_for_one_return():
    """East is called back past the closed gate and returns; after its next failure it does not."""
    faults = [
        Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000),
        Fault(kind="crash", region="east", start_ms=45_000, end_ms=55_000),
    ]
    back = worlds.called_back("east", gates=GATE.closed_gates, intents=GATE)
    result = worlds.run(faults, intents=[(0, GATE), (30_000, back)], duration_ms=120_000)
    assert 30_000 <= result.first("region_recovering") <= 34_000
    return result.count("region_recovering") == 1


def only_gates_that_were_overridden_are_passed():
    """The override was of one gate; another one is closed too and holds the return."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000)]
    gates = Intents(closed_gates=("audit", "reconciliation"))
    back = worlds.called_back("east", gates=GATE.closed_gates, intents=gates)
    result = worlds.run(faults, intents=[(0, gates), (30_000, back)], duration_ms=70_000)
    return result.count("region_recovering") == 0


def a_drained_region_returns_by_ramp():
    """East is drained for 20 s: it carries 1 % and 5 % of its share for ten seconds each."""
    drained = Intents(drains=(Drain(region="east", reason="x"),))
    result = worlds.run([], intents=[(10_000, drained), (30_000, NO_INTENTS)])
    first = [row[0] for at, row in result.weights if 30_000 <= at < 40_000]
    second = [row[0] for at, row in result.weights if 40_000 <= at < 50_000]
    return max(first) == 70 and 70 < max(second) <= 350


def a_region_is_healthy_when_its_weight_has_arrived():
    """East is drained for 10 s: it is called healthy no sooner than it carries its whole share, also
    when the steps of its return are shorter than the way of the weights."""
    drained = Intents(drains=(Drain(region="east", reason="x"),))
    world = Simulation(
        worlds.policy(ramp_step_ms=1000), duration_ms=60_000, with_payments=False, leader="south",
        intents=[(10_000, drained), (20_000, NO_INTENTS)],
    )  # fmt: skip
    result = world.run()
    healthy_ms = result.first("region_healthy")
    return [row[0] for at, row in result.weights if at <= healthy_ms][-1] == 7000


def a_frozen_return_takes_no_step():
    """East's drain ends while all is frozen: nothing moves, and then the first step lasts its time."""
    drained = Intents(drains=(Drain(region="east", reason="x"),))
    frozen = Freeze(reason="audit")
    asked = [
        (10_000, replace(drained, freeze=frozen)),
        (20_000, Intents(freeze=frozen)),
        (50_000, NO_INTENTS),
    ]
    result = worlds.run([], intents=asked, duration_ms=58_000)
    rows = [row[0] for at, row in result.weights if at >= 12_000]
    return set(rows) == {70}


def a_freeze_holds_everything():
    """Frozen by an operator: a crash takes nothing out."""
    frozen = [(0, Intents(freeze=Freeze(reason="audit")))]
    result = worlds.run([Fault(kind="crash", region="east", start_ms=10_000)], intents=frozen)
    return not result.moved and not result.failed


def a_leader_that_hears_nobody_resigns():
    """Nothing passes between South and the others: South's leader blames nobody and resigns."""
    faults = [Fault(kind="cut", region=r, peer="south", start_ms=9000) for r in ("east", "north")]
    decided = [tick.step for tick in worlds.ticks(faults, duration_ms=30_000)]
    moved = any(event.kind == "failover_started" for one in decided for event in one.events)
    return any(one.resign for one in decided) and not moved


def a_cold_start_blames_nobody():
    """East's agents and ingress come 10 s after the leader: not suspect for that."""
    faults = [Fault(kind=k, region="east", end_ms=10_000) for k in ("agents", "ingress")]
    return worlds.run(faults, duration_ms=14_000).count("region_suspect") == 0


def weights_move_by_steps():
    """A region whose suspicion is withdrawn gets its share back by at most 250 bp a tick."""
    result = worlds.run([Fault(kind="crash", region="east", start_ms=10_000, end_ms=14_000)])
    rows = [row[0] for _, row in result.weights]
    back = rows[rows.index(0) :]
    return all(b - a <= 250 for a, b in itertools.pairwise(back))


def a_return_is_a_ramp():
    """After a failure East carries at most 5 % of its share for its first ten seconds."""
    result = worlds.run(
        [Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000)], duration_ms=75_000
    )
    back_ms = result.first("region_recovering")
    return all(row[0] <= 350 for at, row in result.weights if back_ms <= at < back_ms + 10_000)


def an_override_revives_nobody():
    """An operator fixed alipay on East and North, East is dead: the plan stays sound."""
    weights = (("east", 5000), ("north", 5000))
    asked = Intents(overrides=(Override(channel="alipay", weights=weights, reason="test"),))
    try:
        worlds.run([Fault(kind="crash", region="east", start_ms=10_000)], intents=[(0, asked)])
    except Alarm:
        return False
    return True


def nobody_left_is_no_empty_route():
    """East and North are drained, South does not serve unionpay: its route still sums to 10,000."""
    away = Intents(drains=(Drain(region="east", reason="x"), Drain(region="north", reason="x")))
    decided = step.step(
        worlds.TOPOLOGY, State.initial(worlds.TOPOLOGY), Evidence(regions=()), away, 0
    )
    return check(decided.plan, worlds.TOPOLOGY) == ()


def an_outage_that_is_over_is_no_brown_out():
    """East was dead for 45 s: the losses of that time do not keep it out for longer."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=55_000)]
    back_ms = worlds.run(faults, duration_ms=100_000).first("region_recovering")
    return back_ms is not None and back_ms <= 95_000


def failures_an_hour_are_bounded():
    """East may be failed once an hour: the second time its weight leaves and it is not fenced."""
    faults = [
        Fault(kind="crash", region="east", start_ms=10_000, end_ms=20_000),
        Fault(kind="crash", region="east", start_ms=200_000),
    ]
    once = worlds.policy(max_failovers_per_h=1)
    result = Simulation(
        once, faults, duration_ms=240_000, with_payments=False, leader="south"
    ).run()
    assert len(result.moved["east"]) == 2
    assert result.weights[-1][1][0] == 0
    return len(result.failed["east"]) == 1


def suspicion_waits_before_it_fences():
    """East is dead for 5 s: its weight moves and comes back, it is not fenced."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=15_000)]
    return not worlds.run(faults, duration_ms=30_000).failed
