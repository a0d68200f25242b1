"""The detector's words: what it says of a region's silence is true, and said when it means something."""

import pytest

from controlplane.decision.detector import BLIND_MS
from controlplane.decision.explain import explain
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.evidence import Evidence, IngressView, RegionEvidence
from controlplane.model.intents import NO_INTENTS
from controlplane.model.plan import Phase
from controlplane.simulation.demo import demo_topology

TOPOLOGY = demo_topology()
NAMES = ("east", "north", "south")
TICK_MS = TOPOLOGY.policy.tick_ms


class World:
    """A leader in South that is told, tick by tick, of East's reports and of probes of East."""

    def __init__(self, state=None):
        self.state = state or State.initial(TOPOLOGY)
        self.now_ms = 0
        self.failures = 0
        self.events = []

    @property
    def east(self):
        """What the decision remembers of East."""
        return self.state.memory.regions["east"]

    def tick(self, ticks=1, *, report_age_ms=100, reached=True):
        """Tell `ticks` times the same; an age of "grows" counts from the first of them. `reached` is
        None for a region that nobody has ever reached."""
        for i in range(ticks):
            self.now_ms += TICK_MS
            self.failures = 0 if reached else self.failures + 2
            age_ms = 100 + TICK_MS * i if report_age_ms == "grows" else report_age_ms
            evidence = Evidence(
                regions=tuple(self.region(name, age_ms, reached) for name in NAMES),
                leader_region="south",
            )
            decided = step(TOPOLOGY, self.state, evidence, NO_INTENTS, self.now_ms)
            self.state = decided.state
            self.events += [(self.now_ms, event) for event in decided.events]

    def region(self, name, age_ms, reached):
        """Evidence of one region: all are well but East, as told."""
        seen = reached or name == "east"
        views = [
            IngressView(target=t, ok=2, last_success_age_ms=90)
            if t != "east" or seen
            else IngressView(
                target=t,
                failed=2,
                last_success_age_ms=None if reached is None else 250 * self.failures,
                failures_since_success=self.failures,
            )
            for t in NAMES
            if t != name
        ]
        silent = name == "east" and (age_ms is None or not reached)
        return RegionEvidence(
            region=name,
            report_age_ms=age_ms if name == "east" else 100,
            ingress=() if silent else tuple(views),
        )

    def times(self, kind):
        """When events of a kind were said."""
        return [at_ms for at_ms, event in self.events if event.kind == kind]

    def explained(self):
        """What `explain` says of East's evidence."""
        steps = explain(TOPOLOGY, self.state, self.state.memory.plan, "alipay")
        return next(s.detail for s in steps if s.rule == "evidence")


def successor(world):
    """The next leader, which reads the state and has heard nothing yet."""
    return World(State.from_bytes(world.state.to_bytes()).rebased())


def test_a_region_that_dies_with_its_leader_is_not_said_to_have_never_reported():
    """East was well for 10 s under one leader and dies before the next has heard it: the cause says
    that no report came since the term began and how long ago that was, never "never"."""
    first = World()
    first.tick(20)
    world = successor(first)
    while world.east.phase is not Phase.FAILED:
        world.tick(report_age_ms=None, reached=False)
        assert "never" not in world.east.cause
        assert "never" not in world.explained()
        assert world.now_ms < 30_000
    began_s = world.now_ms / 1000
    wanted = f"no report since this leader's term began, {began_s:.1f} s ago"
    assert wanted in world.east.cause
    assert wanted in world.explained()


def test_a_region_that_never_was_is_said_to_have_never_reported():
    """East is configured and nobody ever hears or reaches it: that is what is said, with how far
    back the record reaches."""
    world = World()
    world.tick(60, report_age_ms=None, reached=None)
    assert world.east.phase is not Phase.HEALTHY
    assert world.east.cause.startswith("never reported in the ")


def test_a_region_heard_in_this_term_is_said_to_be_silent_for_so_long():
    """The usual case keeps its figure: the age of the last report."""
    world = World()
    world.tick(20)
    world.tick(10, report_age_ms="grows", reached=False)
    assert world.east.cause.startswith("no report for ")


def test_blind_is_said_once_for_one_silence_and_not_for_weather():
    """Silence of up to 19 s is not called blind; one of a minute is, once, at `BLIND_MS`, and it is
    over with the first fresh report."""
    world = World()
    world.tick(20)
    world.tick((BLIND_MS - 1000) // TICK_MS, report_age_ms="grows")
    world.tick(2)
    assert world.times("region_blind") == []
    began_ms = world.now_ms
    world.tick(60_000 // TICK_MS, report_age_ms="grows")
    (said_ms,) = world.times("region_blind")
    assert said_ms - began_ms == pytest.approx(BLIND_MS, abs=TICK_MS)
    assert world.times("region_sighted") == []
    assert world.east.phase is Phase.HEALTHY
    world.tick()
    assert world.times("region_sighted") == [world.now_ms]


def test_blind_stays_while_reports_are_missing():
    """A new leader that has not heard East, and a vantage that loses sight of it for a moment, do
    not make a blind region see: only a report does."""
    first = World()
    first.tick(20)
    first.tick(60, report_age_ms="grows")
    world = successor(first)
    world.tick(10, report_age_ms=None)
    world.tick(2, report_age_ms=None, reached=False)
    world.tick(10, report_age_ms=None)
    assert world.east.blind
    assert world.times("region_sighted") == world.times("region_blind") == []
    world.tick()
    assert len(world.times("region_sighted")) == 1


def test_a_region_that_only_never_reports_is_blind_too():
    """East is reached and its agents never came: that is said as well."""
    world = World()
    world.tick(60, report_age_ms=None)
    assert len(world.times("region_blind")) == 1
    assert world.east.phase is Phase.HEALTHY
