"""The only place that reads a clock or draws a seed. Everything else receives time as an
argument."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Monotonic ms for decisions and deadlines, wall ms for people, and a way to wait."""

    def monotonic_ms(self) -> int:
        """Milliseconds of a clock that never goes back; its origin means nothing."""
        ...

    def wall_ms(self) -> int:
        """Unix time in ms, for people and logs only."""
        ...

    async def sleep_ms(self, delay_ms: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clocks. CLOCK_BOOTTIME, so that a suspended machine notices that time went
    on."""

    def monotonic_ms(self) -> int:
        """Milliseconds since boot, including suspension."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def wall_ms(self) -> int:
        """Unix time in ms."""
        return time.time_ns() // 1_000_000

    async def sleep_ms(self, delay_ms: float) -> None:
        """Wait on the running loop."""
        await asyncio.sleep(delay_ms / 1000)


def rfc3339(wall_ms: int) -> str:
    """Render Unix ms as RFC 3339 UTC with milliseconds."""
    moment = datetime.fromtimestamp(wall_ms / 1000, tz=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{wall_ms % 1000:03d}Z"


def seeded(seed: int | None = None) -> random.Random:
    """Return a generator for jitter; pass a seed in tests."""
    return random.Random(seed)


def fresh_boot_id() -> int:
    """Draw the random number (1 to 2^62) that tells one life of a process from the next."""
    return random.SystemRandom().randrange(1, 1 << 62)


def precise_ms() -> float:
    """Milliseconds with fractions of a clock that never goes back, for measuring short spans.

    Not the loop's clock: uvloop reads that once an iteration, in whole milliseconds.
    """
    return time.perf_counter_ns() / 1_000_000
