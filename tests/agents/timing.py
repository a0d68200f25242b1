"""Time in tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest


class ManualClock:
    """Time stands still until the test moves it; sleeping takes no time and moves it on."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.wall_offset_ms = 1_700_000_000_000

    def monotonic_ms(self) -> int:
        """Return the time the test has set."""
        return self.now_ms

    def wall_ms(self) -> int:
        """Return a wall clock that moves with it."""
        return self.now_ms + self.wall_offset_ms

    async def sleep_ms(self, delay_ms: float) -> None:
        """Move on at once."""
        self.now_ms += int(delay_ms)
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object], what: str, deadline_s: float = 120.0) -> None:
    """Wait for an observable condition; the deadline is generous and only ends a broken test."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"not within {deadline_s:g} s: {what}")
