"""Breakers: pybreaker over our storage, compared with a machine written down independently."""

import random
from dataclasses import replace

import pytest

from controlplane.decision.breaker import decide, open_ms, wake
from controlplane.decision.state import BreakerMemory
from controlplane.model.plan import Breaker
from controlplane.model.topology import Policy

POLICY = Policy()
NEW = BreakerMemory(region="east", channel="alipay")


class Reference:
    """The breaker as its rules say, without pybreaker."""

    def __init__(self):
        self.state, self.until, self.trips, self.successes = Breaker.CLOSED, None, 0, 0

    def wake(self, now):
        """Let time pass."""
        if self.state is Breaker.OPEN and now >= self.until:
            self.state, self.until, self.successes = Breaker.HALF_OPEN, None, 0

    def decide(self, good, now):
        """Take one decision."""
        if self.state is Breaker.OPEN:
            self.wake(now)
            if self.state is Breaker.OPEN:
                return
        if not good:
            self.trips += 1
            self.state, self.successes = Breaker.OPEN, 0
            self.until = now + open_ms(POLICY, "east", "alipay", self.trips)
        elif self.state is Breaker.HALF_OPEN:
            self.successes += 1
            if self.successes == 2:
                self.state, self.successes = Breaker.CLOSED, 0


def test_equals_a_reference_machine_over_thousands_of_traces():
    """2,000 random traces of 60 decisions and waits: state, deadline, trips agree at every step."""
    rng = random.Random(20)
    seen = set()
    for _ in range(2000):
        ours, theirs, now = NEW, Reference(), 0
        bad = rng.random()
        for _ in range(60):
            now += rng.choice((500, 500, 2500, 9000, 20_000))
            if rng.random() < 0.3:
                ours, _ = wake(ours, POLICY, now), theirs.wake(now)
            else:
                good = rng.random() >= bad
                ours = decide(ours, POLICY, now, good=good)
                theirs.decide(good, now)
            assert ours.state is theirs.state
            assert ours.open_until_ms == theirs.until
            assert ours.trips == theirs.trips
            if ours.state is Breaker.HALF_OPEN:
                assert ours.success_counter == theirs.successes
            seen.add(ours.state)
    assert seen == set(Breaker)


def test_memory_survives_serialisation_between_any_two_decisions():
    """The machine is rebuilt from its record each time: nothing hides inside pybreaker's objects."""
    memory = decide(NEW, POLICY, 0, good=False, cause="errors")
    memory = wake(replace(memory), POLICY, memory.open_until_ms)
    memory = decide(replace(memory), POLICY, 20_000, good=True)
    assert (memory.state, memory.success_counter) == (Breaker.HALF_OPEN, 1)
    assert decide(replace(memory), POLICY, 20_500, good=True).state is Breaker.CLOSED


def test_open_time_doubles_to_its_bound_and_is_spread_by_the_key():
    """10 s, 20 s, 40 s, 60 s, each within 20 %, the same for the same cell, other for another."""
    times = [open_ms(POLICY, "east", "alipay", trips) for trips in range(1, 8)]
    for whole, value in zip((10, 20, 40, 60, 60, 60, 60), times, strict=True):
        assert 0.8 * whole * 1000 <= value <= 1.2 * whole * 1000
    assert times == [open_ms(POLICY, "east", "alipay", trips) for trips in range(1, 8)]
    assert times[0] != open_ms(POLICY, "north", "alipay", 1)


@pytest.mark.parametrize("good", [True, False])
def test_decisions_while_open_change_nothing(good):
    """Until its deadline an open breaker takes no decision, good or bad."""
    memory = decide(NEW, POLICY, 0, good=False, cause="errors")
    assert decide(memory, POLICY, memory.open_until_ms - 1, good=good) == memory
