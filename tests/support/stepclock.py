"""A clock that a test moves by steps: whoever sleeps wakes in the step that reaches his time, and not before."""

from __future__ import annotations

import asyncio


class StepClock:
    """Virtual time for waits that go through a `Clock`; sockets go on in real time."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic_ms(self) -> int:
        """Return the time the test has set."""
        return int(self.now_ms)

    def wall_ms(self) -> int:
        """Return a wall clock that moves with it."""
        return int(self.now_ms) + 1_700_000_000_000

    async def sleep_ms(self, delay_ms: float) -> None:
        """Sleep until the test has moved the time that far."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_ms + delay_ms, future))
        await future

    @property
    def sleeping(self) -> int:
        """How many wait."""
        return sum(not future.done() for _, future in self._sleepers)

    def advance(self, by_ms: float) -> int:
        """Move on and wake whose time has come; return how many those were."""
        self.now_ms += by_ms
        due = [f for at_ms, f in self._sleepers if at_ms <= self.now_ms and not f.done()]
        self._sleepers = [(at_ms, f) for at_ms, f in self._sleepers if at_ms > self.now_ms]
        for future in due:
            future.set_result(None)
        return len(due)
