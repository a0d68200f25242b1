"""How late this agent's own timers fire.

An observer whose loop hangs sees every target slow. It says so in its report, and the leader then
disregards what it blames on others.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from controlplane.clock import Clock, precise_ms

BEAT_MS: Final = 50.0
MAX_SAMPLES: Final = 256
"""More than 12 s of beats; older ones fall out when nobody asks."""
QUANTILE: Final = 0.99


class LoopLag:
    """Measures by sleeping `BEAT_MS` and looking how much later it woke."""

    def __init__(self) -> None:
        self._late_ms: deque[float] = deque(maxlen=MAX_SAMPLES)
        self._last_ms = 0.0

    def add(self, late_ms: float) -> None:
        """Note one lateness."""
        self._late_ms.append(max(0.0, late_ms))

    def take(self) -> float:
        """Return the 99th percentile since the last call in ms; the last value when none came."""
        if self._late_ms:
            ordered = sorted(self._late_ms)
            self._last_ms = ordered[math.ceil(QUANTILE * len(ordered)) - 1]
            self._late_ms.clear()
        return self._last_ms

    async def run(self, clock: Clock) -> None:
        """Measure for ever."""
        while True:
            asked_ms = precise_ms()
            await clock.sleep_ms(BEAT_MS)
            self.add(precise_ms() - asked_ms - BEAT_MS)
