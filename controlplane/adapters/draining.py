"""An orderly end of a replica: its streams end one by one, not all at once.

Theory. `Server.stop(grace)` sends GOAWAY, lets nobody new in, and when the grace is over ends
everything that is left in one instant. Whoever lost a stream opens it elsewhere, so all agents,
data planes, watchers and lock clients of this replica would arrive at the next one together. Here
each stream ends at a random moment of a window instead, and each single call that is still waiting
at one of the time after it, with UNAVAILABLE and RetryInfo: what to do is to ask another replica.
A call that had come in but was not begun is told so at once.

Clients of ours add a jitter of their own (agents, peers), Envoy and gRPC theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any, Final

from controlplane.adapters.handlers import Inner, Wrapping, answers_of, rewrapped
from controlplane.adapters.rpc_errors import abort
from controlplane.clock import Clock
from controlplane.model.errors import UnavailableError

WINDOW_MS: Final = 1_000
"""Streams end within this; less than what makes a region silent."""
ABORT_S: Final = 1.0
"""A peer that reads nothing does not read its status either."""
RETRY_MS: Final = 100
_WHY: Final = "this replica stops; ask another one"


class Draining(Wrapping):
    """Knows every call under way. It must be the outermost interceptor."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._streams: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()
        self._told: set[asyncio.Task[Any]] = set()
        self._begun = False

    def wrapped(self, handler: Any, method: str) -> Any:
        """Keep every call of the handler in mind while it is under way."""
        del method
        return rewrapped(handler, single=self._single, streaming=self._streaming)

    async def drain(self, grace_ms: float) -> None:
        """End what is under way now: streams within the window, single calls before the grace is
        over. Returns when all have been told."""
        self._begun = True
        window_ms = min(WINDOW_MS, grace_ms / 2)
        async with asyncio.TaskGroup() as group:
            for task in self._streams:
                group.create_task(self._end(task, self._rng.uniform(0, window_ms)))
            for task in self._calls:
                group.create_task(self._end(task, self._rng.uniform(window_ms, grace_ms * 0.9)))

    async def _end(self, task: asyncio.Task[Any], after_ms: float) -> None:
        await self._clock.sleep_ms(after_ms)
        if task in self._streams or task in self._calls:  # else its status is on its way already
            self._told.add(task)
            task.cancel()

    async def _single(self, inner: Inner, request: Any, context: Any) -> Any:
        task = _this()
        await self._refuse_late(context)
        self._calls.add(task)
        try:
            return await inner(request, context)
        except asyncio.CancelledError:
            await self._refuse(task, context)
            raise
        finally:
            self._forget(task)

    async def _streaming(self, inner: Inner, request: Any, context: Any) -> AsyncIterator[Any]:
        task = _this()
        await self._refuse_late(context)
        self._streams.add(task)
        try:
            async for answer in answers_of(inner, request, context):
                yield answer
        except asyncio.CancelledError:
            await self._refuse(task, context)
            raise
        finally:
            self._forget(task)

    async def _refuse(self, task: asyncio.Task[Any], context: Any) -> None:
        """Give a status to a call that we ended; one that its caller gave up needs none."""
        if task not in self._told:
            return
        task.uncancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABORT_S):
                await abort(context, UnavailableError(_WHY, RETRY_MS))

    async def _refuse_late(self, context: Any) -> None:
        if self._begun:
            await abort(context, UnavailableError(_WHY, RETRY_MS))

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._streams.discard(task)
        self._calls.discard(task)
        self._told.discard(task)


def _this() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
