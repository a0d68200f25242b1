"""Following a lock: told of changes, never polling faster than holds can expire.

Scripts publish changes only while somebody asked for it (`watch_until` in the fence), so that
nobody pays for watching that does not happen. An expiry is not told by anybody: a follower looks
when the holder's time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from controlplane.clock import Clock
from controlplane.locks.grant import LockState
from controlplane.locks.runner import Link, Scripts
from controlplane.model.errors import UnavailableError

FOLLOWERS_MAX: Final = 1_000
"""Streams of one process; each looks once per change."""
REFRESH_MS: Final = 10_000
"""How often a follower says that it still follows; the scripts believe it three times as long."""
EXPIRY_SLACK_MS: Final = 5


class Watches:
    """Followers by lock."""

    def __init__(self, link: Link, scripts: Scripts, clock: Clock) -> None:
        self._link = link
        self._scripts = scripts
        self._clock = clock
        self._followers: dict[str, set[asyncio.Event]] = {}

    async def follow(
        self, name: str, look: Callable[[str], Awaitable[LockState]]
    ) -> AsyncIterator[LockState]:
        """Yield what `look` sees now and whenever it differs in more than its ages."""
        changed = asyncio.Event()
        self._join(name, changed)
        try:
            seen: tuple[object, ...] | None = None
            refreshed = -REFRESH_MS
            while True:
                now = self._clock.monotonic_ms()
                if now - refreshed >= REFRESH_MS:
                    await self._scripts.run("watch", None, 3 * REFRESH_MS)
                    refreshed = now
                changed.clear()
                state = await look(name)
                if (essence := _essence(state)) != seen:
                    seen = essence
                    yield state
                ends = min((h.expires_in_ms + EXPIRY_SLACK_MS for h in state.holders), default=0)
                pause = min(ends or REFRESH_MS, REFRESH_MS)
                try:
                    async with asyncio.timeout(max(pause, EXPIRY_SLACK_MS) / 1000):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._part(name, changed)

    def _join(self, name: str, changed: asyncio.Event) -> None:
        if sum(map(len, self._followers.values())) >= FOLLOWERS_MAX:
            raise UnavailableError(f"locks: {FOLLOWERS_MAX} streams follow locks already")
        followers = self._followers.setdefault(name, set())
        if not followers:
            self._link.subscribe(self._channel(name), lambda _: self._tell(name))
        followers.add(changed)

    def _part(self, name: str, changed: asyncio.Event) -> None:
        followers = self._followers[name]
        followers.discard(changed)
        if not followers:
            del self._followers[name]
            self._link.unsubscribe(self._channel(name))

    def _tell(self, name: str) -> None:
        for changed in self._followers.get(name, ()):
            changed.set()

    def _channel(self, name: str) -> bytes:
        return self._scripts.keys.changes(name).encode()


def _essence(state: LockState) -> tuple[object, ...]:
    holders = tuple((h.owner, h.token, h.entries) for h in state.holders)
    return holders, state.shared, state.waiters
