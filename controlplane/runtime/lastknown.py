"""What a replica last read of etcd, kept for when etcd does not answer.

Who asks to look never waits for etcd long: while it answers, for `PATIENCE_MS` at most; while it is
known not to, not at all. Either way there is an answer, with its age. Only `run` reads, so any
number of callers cost one read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from controlplane.clock import Clock
from controlplane.model.errors import WeirError

PATIENCE_MS: Final = 100
"""Longest wait of a caller for etcd: a part of the 300 ms that a read command may take."""
FRESH_MS: Final = 500
"""What is only shown may be this old: one read for all consoles."""
KEPT_MS: Final = 5_000
"""Without anybody asking it is read this often, so that there is something to know."""
NEVER_MS: Final = -1
"""Age of what was never read."""

T = TypeVar("T")


async def in_time(read: Callable[[], Awaitable[T]], answers: Callable[[], bool]) -> T:
    """Read etcd, for PATIENCE_MS at most; TimeoutError then, and at once while it is known not to
    answer."""
    if not answers():
        raise TimeoutError
    async with asyncio.timeout(PATIENCE_MS / 1000):
        return await read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Known(Generic[T]):
    """A value, None when there never was one. `old_ms` is None while it is fresh, else its age,
    NEVER_MS without a value."""

    value: T | None
    old_ms: int | None


class LastKnown(Generic[T]):
    """The last value of `read`, which gives bytes; `decode` is called when somebody looks.

    `own` is a value this replica has by itself, without a read: None while it has none. `answers`
    tells whether etcd is believed to answer. `run` must be running.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        decode: Callable[[bytes], T | None],
        *,
        own: Callable[[], T | None],
        answers: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._read = read
        self._decode = decode
        self._own = own
        self._answers = answers
        self._clock = clock
        self._raw: bytes | None = None
        self._value: T | None = None
        self._read_ms: int | None = None
        self._wanted = asyncio.Event()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Read now and then, and when somebody asks, until cancelled; what fails leaves what is
        known."""
        while True:
            if not self._take_own():
                with contextlib.suppress(WeirError):
                    self._keep(await self._read())
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((FRESH_MS if self._take_own() else KEPT_MS) / 1000):
                    await self._wanted.wait()

    async def get(self) -> Known[T]:
        """Return the value, read again when it is old and etcd answers in time."""
        if not self._take_own() and self._old_ms() is not None:
            with contextlib.suppress(TimeoutError):
                await in_time(self._asked, self._answers)
        if self._raw is not None:
            self._value, self._raw = self._decode(self._raw), None
        return Known(value=self._value, old_ms=self._old_ms())

    async def _asked(self) -> None:
        self._wanted.set()
        await self._news.wait()

    def _take_own(self) -> bool:
        own = self._own()
        if own is not None:
            self._value, self._raw = own, None
            self._read_ms = self._clock.monotonic_ms()
        return own is not None

    def _keep(self, raw: bytes) -> None:
        if raw:
            self._raw, self._read_ms = raw, self._clock.monotonic_ms()
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _old_ms(self) -> int | None:
        if self._read_ms is None:
            return NEVER_MS
        age_ms = self._clock.monotonic_ms() - self._read_ms
        return age_ms if age_ms > FRESH_MS else None
