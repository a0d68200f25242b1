"""The journal: events and failovers as etcd holds them, remembered here for when it does not
answer.

Every replica follows the event keys; consoles and `weir events --follow` are fed from this one
watch, so that a hundred consoles cost etcd nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Generic, Protocol, TypeVar

from controlplane.clock import Clock
from controlplane.model.errors import UnavailableError

MEMORY: Final = 1_000
"""Events remembered by a replica."""
POLL_MS: Final = 500
"""How often new events are looked for: constant work, whether there are any or none."""
PAGE: Final = 200


class Numbered(Protocol):
    """An event with its number."""

    @property
    def id(self) -> int:
        """Strictly increasing number."""
        ...


class Running(Protocol):
    """A failover that may be running."""

    @property
    def outcome(self) -> str:
        """Is it running, completed or reverted."""
        ...


EventT = TypeVar("EventT", bound=Numbered)
FailoverT = TypeVar("FailoverT", bound=Running)
EventT_co = TypeVar("EventT_co", bound=Numbered, covariant=True)
FailoverT_co = TypeVar("FailoverT_co", bound=Running, covariant=True)


class History(Protocol[EventT_co, FailoverT_co]):
    """What the journal reads (adapters.planstore)."""

    async def events(
        self, limit: int = 100, before: int | None = None
    ) -> tuple[Sequence[EventT_co], int | None]:
        """Newest first."""
        ...

    async def failover_messages(self, limit: int = 100) -> Sequence[FailoverT_co]:
        """Newest first."""
        ...


class Journal(Generic[EventT, FailoverT]):
    """Events and failovers with a memory. `on_failover_closed` is called once per failover seen to
    close."""

    def __init__(
        self,
        store: History[EventT, FailoverT],
        clock: Clock,
        on_failovers: Callable[[Sequence[FailoverT]], None] = lambda _f: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._on_failovers = on_failovers
        self._events: deque[EventT] = deque(maxlen=MEMORY)
        self._failovers: list[FailoverT] = []
        self._changed = asyncio.Condition()
        self._answers = True

    async def run(self) -> None:
        """Follow etcd until cancelled; while it does not answer the memory stays."""
        while True:
            try:
                await self.refresh()
                self._answers = True
            except UnavailableError:
                self._answers = False
            await self._clock.sleep_ms(POLL_MS)

    async def refresh(self) -> None:
        """Read what is new."""
        last = self._events[-1].id if self._events else 0
        fresh: list[EventT] = []
        before: int | None = None
        while len(fresh) < MEMORY:
            page, before = await self._store.events(PAGE if last else MEMORY, before)
            fresh.extend(event for event in page if event.id > last)
            if before is None or before <= last or not page or page[-1].id <= last:
                break
        self._failovers = list(await self._store.failover_messages(PAGE))
        self._on_failovers(self._failovers)
        if fresh:
            self._events.extend(sorted(fresh, key=lambda event: event.id))
            async with self._changed:
                self._changed.notify_all()

    async def events(self, limit: int, before: int | None) -> tuple[Sequence[EventT], int | None]:
        """Read events from etcd; from memory while it does not answer: nobody waits for an etcd
        that has just not answered."""
        if self._answers:
            with contextlib.suppress(UnavailableError):
                return await self._store.events(limit, before)
        known = [e for e in reversed(self._events) if before is None or e.id < before]
        page = known[:limit]
        return page, page[-1].id if len(known) > limit else None

    async def failovers(self, limit: int) -> Sequence[FailoverT]:
        """Return failovers, newest first, as last read."""
        return self._failovers[:limit]

    def running_failover(self) -> FailoverT | None:
        """Return the newest running failover."""
        return next((f for f in self._failovers if f.outcome == "running"), None)

    async def follow(self, backlog: int) -> AsyncIterator[EventT]:
        """Yield the last `backlog` events, oldest first, then new ones as they come."""
        past = list(self._events)[-backlog:] if backlog else []
        seen = past[0].id - 1 if past else (self._events[-1].id if self._events else 0)
        while True:
            fresh = [event for event in self._events if event.id > seen]
            for event in fresh:
                yield event
                seen = event.id
            async with self._changed:
                if not self._events or self._events[-1].id <= seen:
                    await self._changed.wait()
