"""Ask members of etcd directly whether they take writes, beside whatever uses them.

Open loop: a put every `every_ms` at each member in turn, none waits for another, none is repeated.
The longest time without a success is etcd's own share of an outage: its election, its disk. What
a client loses beyond that is the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from statistics import median_low

import grpc
from etcd3 import etcdrpc

from controlplane.clock import SystemClock

CLOCK = SystemClock()
KEY = b"/direct"


class Direct:
    """Puts at members. `answered` holds when a success came, in s of the monotonic clock."""

    def __init__(self, timeout_s: float) -> None:
        self.answered: list[float] = []
        self.took_ms: list[int] = []
        self._timeout_s = timeout_s
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, endpoints: Sequence[str], every_ms: float) -> None:
        """Ask until cancelled."""
        async with contextlib.AsyncExitStack() as stack:
            stubs = [
                etcdrpc.KVStub(await stack.enter_async_context(grpc.aio.insecure_channel(e)))
                for e in endpoints
            ]
            for stub in itertools.cycle(stubs):
                task = asyncio.ensure_future(self._put(stub))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
                await asyncio.sleep(every_ms / 1000)

    async def _put(self, stub: etcdrpc.KVStub) -> None:
        sent = CLOCK.monotonic_ms()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.Put(etcdrpc.PutRequest(key=KEY, value=b"x"), timeout=self._timeout_s)
            self.answered.append(CLOCK.monotonic_ms() / 1000)
            self.took_ms.append(CLOCK.monotonic_ms() - sent)

    def median_ms(self) -> int:
        """Return how long a success took in the median."""
        return median_low(self.took_ms or [0])

    def longest_gap_ms(self) -> float:
        """Return the longest time without a success, in ms."""
        return longest_ms(self.answered)


def longest_ms(moments: Sequence[float]) -> float:
    """Return the longest gap between moments in s, in ms."""
    return max((1000 * (b - a) for a, b in itertools.pairwise(moments)), default=0.0)


@contextlib.asynccontextmanager
async def direct(
    endpoints: Sequence[str], every_ms: float, timeout_s: float
) -> AsyncIterator[Direct]:
    """Ask members while the block runs."""
    asker = Direct(timeout_s)
    task = asyncio.ensure_future(asker.ask(endpoints, every_ms))
    try:
        yield asker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
