"""The probing schedule, as properties of a pure function."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from agents.cadence import JITTER, Slot, first_slot, next_slot

intervals = st.floats(min_value=1.0, max_value=60_000.0)
times = st.floats(min_value=0.0, max_value=1e12)


@given(seed=st.integers(), now=times, interval=intervals)
def test_first_turn_lies_within_an_interval_and_its_jitter(
    seed: int, now: float, interval: float
) -> None:
    """A new target is probed soon, and not all targets at once."""
    slot = first_slot(now, interval, random.Random(seed))
    assert now <= slot.nominal_ms <= slot.due_ms <= now + (1 + JITTER) * interval + 1


@given(seed=st.integers(), now=times, interval=intervals, late=st.floats(0, 1e9))
def test_next_turn_is_never_over_and_never_far(
    seed: int, now: float, interval: float, late: float
) -> None:
    """However late we are, the next turn is in the future, and at most two intervals away."""
    previous = Slot(nominal_ms=now, due_ms=now)
    slot = next_slot(previous, now + late, interval, random.Random(seed))
    slack = 1e-6 * (now + late + interval) + 1e-6
    assert slot.due_ms >= now + late - slack
    assert slot.nominal_ms <= now + late + interval + slack
    assert slot.due_ms <= now + late + 2 * interval + slack


@given(seed=st.integers(), pauses=st.lists(st.floats(0, 5.0), min_size=1, max_size=50))
def test_no_burst_after_a_pause(seed: int, pauses: list[float]) -> None:
    """Turns missed in a pause are skipped: never two turns of one target within its jitter."""
    interval, rng = 100.0, random.Random(seed)
    now = 0.0
    slot = first_slot(now, interval, rng)
    for pause in pauses:
        now = slot.due_ms + pause * interval  # the probe, or a stopped machine, took this long
        following = next_slot(slot, now, interval, rng)
        assert following.due_ms - slot.due_ms >= interval * (1 - JITTER) - 1e-6
        slot = following


def test_rate_is_exact_and_does_not_drift() -> None:
    """A thousand turns take a thousand intervals, whatever the jitter."""
    interval, rng = 500.0, random.Random(7)
    slot = first = first_slot(0.0, interval, rng)
    for _ in range(1000):
        slot = next_slot(slot, slot.due_ms + 20.0, interval, rng)
    assert abs(slot.nominal_ms - first.nominal_ms - 1000 * interval) < 1e-3


def test_same_seed_same_schedule() -> None:
    """Time and randomness are inputs: the schedule replays."""

    def run(seed: int) -> list[Slot]:
        rng = random.Random(seed)
        slots = [first_slot(0.0, 500.0, rng)]
        for _ in range(20):
            slots.append(next_slot(slots[-1], slots[-1].due_ms, 500.0, rng))
        return slots

    assert run(3) == run(3)
    assert run(3) != run(4)
