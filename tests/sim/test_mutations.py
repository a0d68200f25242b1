"""Each protective rule is removed in turn, and the property it protects is seen to fail.

A test that stays green without the rule proves nothing about the rule.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from controlplane.decision import cells, circuits, detector, phases, planning, step, votes
from controlplane.decision.cells import observe_cells
from controlplane.decision.state import State
from controlplane.decision.world import compiled
from controlplane.model.audit import check
from controlplane.model.errors import Alarm
from controlplane.model.evidence import Evidence, Gains
from controlplane.model.intents import Drain, Intents
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault, Noise
from controlplane.simulation.run import Simulation
from controlplane.simulation.scenarios import flapping

TOPOLOGY = demo_topology()


def policy(**changes):
    """The demo under another policy."""
    return replace(TOPOLOGY, policy=replace(TOPOLOGY.policy, **changes))


def run(faults, topology=TOPOLOGY, **options):
    """Run a short world; by default without payments."""
    options = {"duration_ms": 60_000, "with_payments": False, "leader": "south"} | options
    return Simulation(topology, faults, **options).run()


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
    """Up 20 s, down 20 s for half an hour: one failure."""
    result = run(flapping("east", 20_000, 20_000, 1_200_000), duration_ms=1_300_000)
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


MUTANTS = [
    (liar_and_a_blind_region, detector, "WITNESSES", 1),
    (incident_is_not_learned, cells, "CALM", math.inf),
    (removals_are_capped, phases.Removals, "refusal", lambda *_, **__: ""),
    (liar_is_void, votes, "_blames_everyone", lambda *_: False),
    (leader_pauses, step, "_passed", lambda memory, _policy, now: now - (memory.clock_ms or now)),
    (weather_moves_little, votes, "_nats", lambda _loss: 100.0),
    (flapping_is_one_failover, phases, "_return_signal", lambda *_: (phases.Signal.READY, "")),
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
    ("holds", "module", "name", "without"), MUTANTS, ids=lambda v: getattr(v, "__name__", "")[:40]
)
def test_without_its_rule_the_property_fails(holds, module, name, without, monkeypatch):
    """With the rule the property holds; with the rule removed the same check finds it broken."""
    assert holds()
    monkeypatch.setattr(module, name, without)
    if name == "HIGHEST_EPOCH":
        monkeypatch.setattr(step, "EPOCH_JUMP", math.inf)
    assert not holds()
