"""The stream of lock calls that threads share, against a real service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
import pytest
from lock_lab import Lab, until
from lock_served import Older, Served, serve

from controlplane.adapters import lock_stream_sync
from controlplane.adapters.lock_client import SyncLockClient
from controlplane.adapters.lock_stream_sync import SyncLockStream
from controlplane.adapters.lock_wire import acquire_request
from controlplane.locks.errors import LockHeldError
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.v1 import lock_pb2

TTL = 30_000
THREADS = 16
T = TypeVar("T")


@pytest.fixture
async def served(lab: Lab) -> AsyncIterator[Served]:
    """The service."""
    found = await serve(lab)
    yield found
    await found.server.stop(None)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads of the client."""
    with ThreadPoolExecutor(THREADS) as found:
        yield found


async def run(pool: ThreadPoolExecutor, work: Callable[..., T], *args: Any) -> T:
    """Run something that blocks, while the service goes on in this loop."""
    async with asyncio.timeout(60):
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)


def ask(owner: str, wait_ms: int = 0) -> lock_pb2.AcquireRequest:
    """A request for "a"."""
    return acquire_request("a", {
        "owner": owner, "ttl_ms": TTL, "wait_ms": wait_ms, "mode": None, "request": None,
    })  # fmt: skip


async def test_threads_share_one_stream(served: Served, pool: ThreadPoolExecutor) -> None:
    """Sixteen threads, every call over a single gRPC call, each with its own answer or error."""
    with grpc.insecure_channel(served.address) as channel:
        locks = SyncLockClient([channel])
        seen: list[int] = []

        def work(number: int) -> int:
            grant = locks.acquire(f"n{number}", owner="o", ttl_ms=TTL)
            assert locks.renew(grant).token == grant.token
            with pytest.raises(LockHeldError):
                locks.acquire(f"n{number}", owner="p", ttl_ms=TTL)
            with pytest.raises(InvalidInputError):
                locks.acquire(f"n{number}", owner="p", ttl_ms=1)
            seen.append(len(served.servicer._open))
            assert locks.release(grant) == 0
            assert locks.release(grant) is None
            return grant.token.value

        tokens = await asyncio.gather(*(run(pool, work, number) for number in range(THREADS)))
        assert len(set(tokens)) == THREADS
        assert set(seen) == {1}


async def test_a_call_that_is_not_answered_in_time_leaves_the_queue(
    served: Served, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever gave up gets no grant later, however long nothing else was asked."""
    monkeypatch.setattr(lock_stream_sync, "IDLE_S", 0.05)
    held = await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    with grpc.insecure_channel(served.address) as channel:
        stream = SyncLockStream(channel)
        gone = asyncio.ensure_future(run(pool, stream.ask, "acquire", ask("w", 60_000), 3_000, "a"))
        await served.waiters(1)
        with pytest.raises(UnavailableError, match="no answer"):
            await gone
        await served.waiters(0)
        await served.manager.release("a", owner="holder", token=held.token)
        assert not (await served.manager.inspect("a")).holders


class Interrupt(BaseException):
    """As KeyboardInterrupt, which comes between any two steps."""


async def test_an_interrupted_caller_gives_back_what_it_was_granted(
    served: Served, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes when the answer lies there and has not been taken."""

    class Mine(lock_stream_sync.SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            """Interrupted at the very end, in the thread that asked."""
            found = super().get(block, timeout)
            if isinstance(found, lock_pb2.SessionAnswer):
                raise Interrupt
            return found

    monkeypatch.setattr(lock_stream_sync, "SimpleQueue", Mine)
    with grpc.insecure_channel(served.address) as channel:
        with pytest.raises(Interrupt):
            await run(pool, SyncLockStream(channel).ask, "acquire", ask("gone"), 60_000, "a")
        grant = await served.manager.acquire("a", owner="next", ttl_ms=TTL, wait_ms=20_000)
        assert grant.token.counter == 2, "it had been granted"


async def test_a_broken_stream_fails_its_calls_and_the_next_call_opens_another(
    lab: Lab, served: Served, pool: ThreadPoolExecutor
) -> None:
    """What is in flight is asked again at the other replica with the same request id."""
    other = await serve(lab)
    held = await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    with (
        grpc.insecure_channel(served.address) as first,
        grpc.insecure_channel(other.address) as second,
    ):
        locks = SyncLockClient([first, second])

        def wait() -> int:
            return locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=60_000).token.value

        waiting = asyncio.ensure_future(run(pool, wait))
        await served.waiters(1)
        await served.server.stop(None)
        await until(lambda: other.manager.hand_offs)
        await other.manager.release("a", owner="holder", token=held.token)
        assert await waiting > held.token.value
        alone = SyncLockStream(first)
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await run(pool, alone.ask, "acquire", ask("o"), 60_000, "a")
    await other.server.stop(None)


async def test_a_closed_channel_ends_the_stream(served: Served, pool: ThreadPoolExecutor) -> None:
    """Who waits is told, the queue is left, and no thread stays."""

    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread not in pool._threads}

    before = threads()
    await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    channel = grpc.insecure_channel(served.address)
    stream = SyncLockStream(channel)
    waiting = asyncio.ensure_future(run(pool, stream.ask, "acquire", ask("w", 60_000), 60_000, "a"))
    await served.waiters(1)
    await run(pool, channel.close)
    with pytest.raises(UnavailableError):
        await waiting
    await served.waiters(0)
    await until(lambda: threads() <= before, deadline_s=20)


async def test_a_stream_without_calls_ends_and_the_next_call_opens_another(
    served: Served, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no room at the replica; one that waits is not without calls."""
    monkeypatch.setattr(lock_stream_sync, "IDLE_S", 0.05)
    held = await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    with grpc.insecure_channel(served.address) as channel:
        stream = SyncLockStream(channel)
        for turn in range(2):
            waiting = asyncio.ensure_future(
                run(pool, stream.ask, "acquire", ask(f"w{turn}", 60_000), 60_000, "a")
            )
            await served.waiters(1)
            for _ in range(3):  # it would have ended
                await asyncio.to_thread(threading.Event().wait, lock_stream_sync.IDLE_S)
            await served.manager.release("a", owner=held.owner, token=held.token)
            await waiting
            held = (await served.manager.inspect("a")).holders[0]
            assert held.owner == f"w{turn}"
            await until(lambda: not served.servicer._open)


async def test_calls_to_a_replica_that_hangs_are_refused(
    served: Served, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing leaves while the replica takes nothing; what waits to leave is bounded."""
    monkeypatch.setattr(lock_stream_sync, "OUT_MAX", 3)
    hangs, ended = threading.Event(), threading.Event()

    class Stub:
        def Session(self, requests: Any) -> Iterator[Any]:  # noqa: N802
            """Take no calls, and answer none."""
            hangs.set()
            ended.wait()
            yield from ()

    with grpc.insecure_channel(served.address) as channel:
        stream = SyncLockStream(channel)
        stream._stub = Stub()
        calls = [
            asyncio.ensure_future(
                run(pool, stream.ask, "renew", lock_pb2.RenewRequest(), 60_000, "a")
            )
            for _ in range(3)
        ]
        await until(lambda: stream._session and stream._session._out.qsize() == 3)
        with pytest.raises(UnavailableError, match="takes no calls"):
            await run(pool, stream.ask, "renew", lock_pb2.RenewRequest(), 60_000, "a")
        ended.set()
        for call in calls:
            with pytest.raises(UnavailableError, match="ended"):
                await call
    assert hangs.is_set()


async def test_an_older_server_is_called_method_by_method(
    lab: Lab, pool: ThreadPoolExecutor
) -> None:
    """The client notices once, and goes on without sessions."""
    older = await serve(lab, Older)
    with grpc.insecure_channel(older.address) as channel:
        locks = SyncLockClient([channel])

        def work() -> None:
            for _ in range(2):
                grant = locks.acquire("a", owner="o", ttl_ms=TTL)
                assert locks.release(grant) == 0

        await run(pool, work)
        assert not locks._links[0]._sessions
    await older.server.stop(None)
