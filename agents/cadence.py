"""When a target is probed. Pure: time and randomness come in.

Each target has its own grid, one slot an interval, with a random offset, so that the agents of a
region and the targets of an agent do not probe in step; each slot is jittered within itself. The
grid does not drift, so the rate is exactly one probe an interval over any longer time. Slots missed
(the probe took longer, the machine was stopped) are skipped, never made up for: a burst after a
pause would be an attack on the very thing that is recovering.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

JITTER: Final = 0.1
"""Part of the interval by which a probe may be later than its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One turn of a target: its place on the grid, and when it is due; ms of monotonic time."""

    nominal_ms: float
    due_ms: float


def first_slot(now_ms: float, interval_ms: float, rng: random.Random) -> Slot:
    """Return the first turn, anywhere within one interval from now."""
    return _slot(now_ms + rng.random() * interval_ms, interval_ms, rng)


def next_slot(previous: Slot, now_ms: float, interval_ms: float, rng: random.Random) -> Slot:
    """Return the next turn that is not over: never earlier than now, at most two intervals away."""
    late_ms = now_ms - previous.nominal_ms
    missed = max(1, -int(-late_ms // interval_ms))
    return _slot(previous.nominal_ms + missed * interval_ms, interval_ms, rng)


def _slot(nominal_ms: float, interval_ms: float, rng: random.Random) -> Slot:
    return Slot(nominal_ms=nominal_ms, due_ms=nominal_ms + rng.random() * JITTER * interval_ms)
