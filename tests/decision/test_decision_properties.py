"""What holds for every decision, over drawn fault episodes."""

import random
from dataclasses import replace

import numpy as np
import pytest
from episodes import (
    ALL_BREAKERS,
    END_MS,
    QUICK,
    REGIONS,
    TOPOLOGY,
    Episode,
    Invariants,
    content,
    episodes,
    taken_over,
)
from hypothesis import HealthCheck, example, given, settings

from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.intents import NO_INTENTS, Drain, Intents
from controlplane.model.plan import Phase
from controlplane.simulation.faults import Fault, Noise
from controlplane.simulation.run import Simulation

some = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
few = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))


EVERY_STATE = Episode(
    faults=(
        Fault(kind="crash", region="east", start_ms=10_000, end_ms=25_000),
        Fault(kind="errors", region="north", channel="wechatpay", start_ms=34_000, rate=0.5),
    ),
    intents=(),
    noise=Noise(),
    seed=3,
    leader="south",
)
"""One world that visits every phase and every breaker state."""


def test_every_plan_of_every_episode_is_sound():
    """Sum, range, drained and failed at 0, epoch exactly with content, bounded steps: always. And
    the worlds that this is tested on did visit every phase and breaker state: else it proves little."""
    phases, breakers = set(), set()

    @some
    @example(EVERY_STATE)
    @given(episodes)
    def sound(episode):
        checks = Invariants()
        for tick in episode.simulation().ticks():
            checks.tick(tick)
        assert checks.before is not None
        phases.update(checks.phases)
        breakers.update(checks.breakers)

    sound()
    assert phases == set(Phase)
    assert breakers == ALL_BREAKERS


class Recorded:
    """The inputs of one run, to be decided again in other ways."""

    def __init__(self, episode):
        self.inputs = []
        original = step
        world = episode.simulation()
        ticks = []

        def keep(topology, state, evidence, intents, now_ms):
            self.inputs.append((evidence, intents, now_ms))
            decided = original(topology, state, evidence, intents, now_ms)
            ticks.append(decided)
            return decided

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("controlplane.simulation.run.step", keep)
            for _ in world.ticks():
                pass
        self.answers = ticks

    def again(self, shift_ms=0, change=lambda evidence: evidence, between=lambda state: state):
        """Decide the same inputs again; returns epochs, contents and events of every tick."""
        state = State.initial(QUICK)
        out = []
        for evidence, intents, now_ms in self.inputs:
            decided = step(QUICK, between(state), change(evidence), intents, now_ms + shift_ms)
            state = decided.state
            out.append((decided.plan.epoch, content(decided.plan), decided.events))
        assert state.to_bytes() == self.answers[-1].state.to_bytes() or shift_ms
        return out


def one_leader(episode):
    """The episode without faults that change the leader: its clock has one origin."""
    kept = tuple(f for f in episode.faults if f.kind not in ("crash", "isolate"))
    crash = Fault(kind="crash", region="east", start_ms=9000, end_ms=30_000)
    return replace(episode, faults=(*kept, crash), leader="south")


@few
@given(episodes)
def test_time_shift_permutation_and_serialisation_change_nothing(episode: Episode):
    """Another clock origin, another order of the evidence, a state through its bytes at every tick:
    the same plans, epochs, events and final bytes."""
    run = Recorded(one_leader(episode))
    expected = [(one.plan.epoch, content(one.plan), one.events) for one in run.answers]
    assert run.again(shift_ms=987_654_321) == expected
    dice = random.Random(episode.seed)

    def shuffled(evidence):
        regions = [
            replace(r, ingress=tuple(dice.sample(r.ingress, len(r.ingress))))
            for r in evidence.regions
        ]
        dice.shuffle(regions)
        return replace(evidence, regions=tuple(regions))

    assert run.again(change=shuffled) == expected
    assert run.again(between=taken_over) == expected


@few
@given(episodes)
def test_a_takeover_at_any_tick_continues(episode: Episode):
    """A new leader with another clock goes on mid-open, mid-ramp, mid-suspicion: sound plans, rising
    epochs, and no phase that starts anew."""
    run = Recorded(one_leader(episode))
    cut = random.Random(episode.seed).randrange(10, len(run.inputs))
    state = State.initial(QUICK)
    checks = Invariants()
    for i, (evidence, intents, now_ms) in enumerate(run.inputs):
        if i == cut:
            state = taken_over(state).rebased()
        shift = -1_000_000 if i >= cut else 0
        before = state
        decided = step(QUICK, state, evidence, intents, now_ms + shift)
        state = decided.state
        checks.tick(type("T", (), {"step": decided, "intents": intents})())
        if i == cut:
            one = run.answers[i].state.memory  # the leader that was not interrupted
            for name, memory in before.memory.regions.items():
                after = state.memory.regions[name]
                begun = one.regions[name].since_ms == one.now_ms
                if after.phase is memory.phase and not begun:
                    assert (after.since_ms, after.symptom_ms) == (
                        memory.since_ms,
                        memory.symptom_ms,
                    )
            assert 0 < state.memory.now_ms - before.memory.now_ms <= QUICK.policy.tick_ms


@pytest.mark.parametrize("liar", REGIONS)
@pytest.mark.parametrize("leader", REGIONS)
def test_one_lying_vantage_never_fails_a_region(liar, leader):
    """A vantage that says every probe of one region, or of everybody, failed: nobody moves."""
    for peer in ("", *(r for r in REGIONS if r != liar)):
        world = Simulation(
            TOPOLOGY,
            [Fault(kind="liar", region=liar, peer=peer, start_ms=5000)],
            duration_ms=40_000,
            leader=leader,
            with_payments=False,
        )
        result = world.run()
        assert not result.failed
        assert not result.moved


@pytest.mark.parametrize("change_ms", [None, 1000, 4000, 9000])
@pytest.mark.parametrize("dead", REGIONS)
@pytest.mark.parametrize("silent", REGIONS)
def test_a_dead_region_is_at_zero_within_30_s(dead, silent, change_ms):
    """For every region, with one more region's agents dead, any leader (in the dead region too) and
    a change of the leader before, during or after the suspicion: gone within 30 s, and stays gone."""
    for leader in REGIONS:
        faults = [Fault(kind="crash", region=dead, start_ms=20_000)]
        if silent != dead:
            faults.append(Fault(kind="agents", region=silent, start_ms=8000))
        if change_ms is not None:
            faults.append(Fault(kind="leader", start_ms=20_000 + change_ms))
        world = Simulation(
            TOPOLOGY, faults, duration_ms=56_000, leader=leader, with_payments=False, seed=4
        )
        late = [tick.step.plan for tick in world.ticks() if tick.at_ms >= 50_000]
        assert late
        for plan in late:
            assert all(route.weight(dead) == 0 for route in plan.routes)


def test_nothing_is_known_nothing_is_blamed():
    """Cold start: no evidence for minutes gives base shares, nobody is suspect, epoch 1 stays."""
    state = State.initial(TOPOLOGY)
    nothing = Evidence(regions=tuple(RegionEvidence(region=r) for r in REGIONS))
    for tick in range(300):
        decided = step(TOPOLOGY, state, nothing, NO_INTENTS, 500 * tick)
        state = decided.state
        assert decided.plan.epoch == 1
        assert decided.plan.routes[0].weights == (("east", 7000), ("north", 2500), ("south", 500))
        assert not decided.resign


def test_absurd_epochs_are_refused_and_sane_ones_overtaken():
    """A claimed epoch beyond reason is refused with one event; a sane higher one is passed."""
    nothing = Evidence(regions=())
    state = step(TOPOLOGY, State.initial(TOPOLOGY), nothing, NO_INTENTS, 0).state
    kinds = []
    for claimed in (1 << 60, 1 << 60, 2_000_000_000):
        decided = step(TOPOLOGY, state, replace(nothing, highest_epoch=claimed), NO_INTENTS, 1)
        state = decided.state
        kinds.append([event.kind for event in decided.events])
        assert decided.plan.epoch == 1
    assert kinds == [["epoch_refused"], [], ["epoch_refused"]]
    decided = step(TOPOLOGY, state, replace(nothing, highest_epoch=77), NO_INTENTS, 1)
    assert decided.plan.epoch == 78


def test_the_last_region_is_never_drained():
    """All are asked to drain: the one with the largest share stays, the plan is sound."""
    intents = Intents(drains=tuple(Drain(region=r, reason="all") for r in REGIONS))
    decided = step(TOPOLOGY, State.initial(TOPOLOGY), Evidence(regions=()), intents, 0)
    assert [s.drained for s in decided.plan.regions] == [False, True, True]
    assert decided.plan.routes[0].weights == (("east", 10_000), ("north", 0), ("south", 0))


def test_with_only_south_left_unionpay_says_what_is_missing():
    """South does not serve unionpay: the route and one event say who does and why each may not; the
    least bad keeps it, and it is said when somebody serves it again."""
    state = step(TOPOLOGY, State.initial(TOPOLOGY), Evidence(regions=()), NO_INTENTS, 0).state
    away = Intents(drains=(Drain(region="east", reason="x"), Drain(region="north", reason="x")))
    decided = step(TOPOLOGY, state, Evidence(regions=()), away, 500)
    route = decided.plan.route("unionpay")
    lacks = "unionpay needs one of east (drained), north (drained); south does not serve it"
    assert route.reasons[0] == f"no_region: {lacks}; the least bad keeps it"
    assert sum(weight_bp for _, weight_bp in route.weights) == 10_000
    assert decided.plan.route("alipay").weight("south") == 10_000
    said = [e.message for e in decided.events if e.kind == "channel_unserved"]
    assert f"nobody may serve unionpay: {lacks}" in said
    assert len(said) == 2
    again = step(TOPOLOGY, decided.state, Evidence(regions=()), away, 1000)
    assert not again.events
    back = step(TOPOLOGY, again.state, Evidence(regions=()), NO_INTENTS, 1500)
    assert sorted(e.channel for e in back.events if e.kind == "channel_served") == [
        "bank_direct",
        "unionpay",
    ]


def test_a_topology_may_change_under_a_running_decision():
    """A region and a channel go and come: state is realigned by names, plans stay sound."""
    world = Simulation(TOPOLOGY, duration_ms=10_000, seed=2)
    state = None
    for tick in world.ticks():
        state = tick.step.state
    small = replace(
        TOPOLOGY,
        regions=TOPOLOGY.regions[:2],
        channels=tuple(
            replace(c, regions=c.regions[:2]) for c in TOPOLOGY.channels if c.name != "unionpay"
        ),
    )
    decided = step(small, state, Evidence(regions=()), NO_INTENTS, END_MS)
    checks = Invariants(small)
    checks.tick(type("T", (), {"step": decided, "intents": NO_INTENTS})())
    learned = state.columns["learned"][0]
    assert decided.state.columns["learned"][0] == learned
    back = step(TOPOLOGY, decided.state, Evidence(regions=()), NO_INTENTS, END_MS + 500)
    checks = Invariants(TOPOLOGY)
    checks.tick(type("T", (), {"step": back, "intents": NO_INTENTS})())
    assert np.isclose(back.state.columns["learned"][0], learned)
