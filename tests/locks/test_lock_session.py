"""Many lock calls over one stream, through the client and with a raw stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import code_pb2
from lock_lab import Lab
from lock_served import Older, Raw, Served, acquire, serve

from controlplane.adapters import lock_session
from controlplane.adapters.lock_client import LockClient
from controlplane.locks.errors import LockHeldError, LockLostError
from controlplane.locks.grant import Mode
from controlplane.locks.hold import hold
from controlplane.locks.token import Token
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.v1 import lock_pb2, lock_pb2_grpc

TTL = 30_000


@pytest.fixture
async def served(lab: Lab) -> AsyncIterator[Served]:
    """The service."""
    found = await serve(lab)
    yield found
    await found.server.stop(None)


async def test_hundreds_of_calls_share_one_stream(served: Served) -> None:
    """Three hundred locks taken, renewed and given back at once, over a single gRPC call."""
    async with grpc.aio.insecure_channel(served.address) as channel:
        locks = LockClient([channel])

        async def work(number: int) -> Token:
            name, owner = f"n{number}", f"o{number}"
            grant = await locks.acquire(name, owner=owner, ttl_ms=TTL, mode=Mode.LINEAGE)
            fresh = await locks.renew(name, owner=owner, token=grant.token, ttl_ms=TTL)
            assert (fresh.token, fresh.verified) == (grant.token, True)
            assert await locks.release(name, owner=owner, token=grant.token) == 0
            return grant.token

        tokens = await asyncio.gather(*map(work, range(300)))
        assert len(set(tokens)) == 300
        async with hold(locks, "a", ttl_ms=TTL) as held:
            assert held.token > max(tokens).value
            with pytest.raises(LockHeldError):
                await locks.acquire("a", owner="p", ttl_ms=TTL)
            with pytest.raises(InvalidInputError) as refused:
                await locks.acquire("a", owner="p", ttl_ms=1)
            assert refused.value.field == "ttl_ms"
        with pytest.raises(LockLostError):
            await locks.renew("a", owner="p", token=Token(1, 1), ttl_ms=TTL)
        async with locks:
            pass  # closed; the next call opens a new stream
        assert (await locks.acquire("a", owner="o", ttl_ms=TTL)).verified


async def test_a_cancelled_waiter_leaves_the_queue(served: Served) -> None:
    """Cancelling a call, closing a client and losing a client all withdraw what waits."""
    held = await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    async with grpc.aio.insecure_channel(served.address) as channel:
        locks = LockClient([channel])
        calls = [
            asyncio.ensure_future(locks.acquire("a", owner=f"w{i}", ttl_ms=TTL, wait_ms=60_000))
            for i in range(3)
        ]
        await served.waiters(3)
        calls[0].cancel()
        await served.waiters(2)
        await locks.aclose()
        await served.waiters(0)
        for call in calls[1:]:
            with pytest.raises(UnavailableError):
                await call
        waiting = asyncio.ensure_future(locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=60_000))
        await served.waiters(1)
    with pytest.raises(UnavailableError):
        await waiting
    await served.waiters(0)
    await served.manager.release("a", owner="holder", token=held.token)
    assert not (await served.manager.inspect("a")).holders


async def test_a_grant_that_crosses_its_withdrawal_is_given_back(served: Served) -> None:
    """The caller went while the answer was on its way; the lock is free for the next one."""
    async with grpc.aio.insecure_channel(served.address) as channel:
        raw = Raw(channel)
        first = (await raw.ask(acquire(1))).grant
        withdrawn = lock_pb2.SessionCall(id=2, withdraw=1)
        answer = await raw.ask(withdrawn, acquire(3, owner="next", wait_ms=20_000))
        assert answer.grant.counter == first.counter + 1


async def test_a_late_withdrawal_spares_a_repetition_over_another_stream(served: Served) -> None:
    """The request was repeated, to the same replica over another stream, and its caller holds the
    lock by that; only a withdrawal of the repetition gives it back."""
    await served.manager.scripts.run("cancel", "a", 0, "nobody", "none", "nowhere")
    async with grpc.aio.insecure_channel(served.address) as channel:
        one, two = Raw(channel), Raw(channel)
        request = str(uuid.uuid4())
        first = (await one.ask(acquire(1, request_id=request))).grant
        again = (await two.ask(acquire(1, request_id=request))).grant
        assert again.token == first.token
        withdraw = lock_pb2.SessionCall(id=2, withdraw=1)
        refused = await one.ask(withdraw, acquire(3, owner="other"))
        assert refused.error.code == code_pb2.FAILED_PRECONDITION
        following = await two.ask(withdraw, acquire(3, owner="next", wait_ms=20_000))
        assert following.grant.counter == first.counter + 1


async def test_a_withdrawal_means_the_newest_call_of_its_number(served: Served) -> None:
    """A number that is used again names the new call; what the old one was granted stays."""
    await served.manager.scripts.run("cancel", "a", 0, "nobody", "none", "nowhere")
    async with grpc.aio.insecure_channel(served.address) as channel:
        raw = Raw(channel)
        first = (await raw.ask(acquire(1))).grant
        assert (await raw.ask(acquire(1, owner="other"))).error.code
        withdraw = lock_pb2.SessionCall(id=2, withdraw=1)
        assert (await raw.ask(withdraw, acquire(3, owner="other"))).error.code
        state = await served.manager.inspect("a")
        assert [holder.token.value for holder in state.holders] == [first.token]


async def test_every_call_is_answered_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also an empty one, one withdrawn in the very message that brought it, one whose number is in
    use, and one too many; then the stream ends by itself."""
    monkeypatch.setattr(lock_session, "CALLS_MAX", 2)
    async with grpc.aio.insecure_channel(served.address) as channel:
        stream = lock_pb2_grpc.LockServiceStub(channel).Session()
        calls = [
            lock_pb2.SessionCall(id=1),
            acquire(2),
            acquire(3, owner="w", wait_ms=60_000),
            acquire(3, owner="x"),
            acquire(4, owner="y"),
            lock_pb2.SessionCall(id=5, withdraw=3),
            lock_pb2.SessionCall(id=6, withdraw=99),
        ]
        await stream.write(lock_pb2.SessionRequest(calls=calls))
        await stream.done_writing()
        answers: list[lock_pb2.SessionAnswer] = []
        async with asyncio.timeout(30):
            while (response := await stream.read()) is not grpc.aio.EOF:
                answers += response.answers
        assert await stream.code() is grpc.StatusCode.OK
    found = sorted((answer.id, answer.error.code) for answer in answers)
    assert found == sorted([
        (1, code_pb2.INVALID_ARGUMENT), (2, code_pb2.OK), (3, code_pb2.INVALID_ARGUMENT),
        (3, code_pb2.CANCELLED), (4, code_pb2.UNAVAILABLE),
    ])  # fmt: skip


async def test_a_lost_replica_is_left_for_the_next(lab: Lab, served: Served) -> None:
    """What is in flight when a replica stops is asked again elsewhere with the same request id; the
    one that answered is asked first from then on."""
    other = await serve(lab)
    held = await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    async with (
        grpc.aio.insecure_channel(served.address) as first,
        grpc.aio.insecure_channel(other.address) as second,
    ):
        locks = LockClient([first, second])
        waiting = asyncio.ensure_future(locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=60_000))
        await served.waiters(1)
        await served.server.stop(None)
        async with asyncio.timeout(20):
            while not other.manager.hand_offs:
                await asyncio.sleep(0.002)
        await other.manager.release("a", owner="holder", token=held.token)
        assert (await waiting).token > held.token
        assert locks._at == 1
        with pytest.raises(UnavailableError):
            await LockClient([first]).acquire("b", owner="o", ttl_ms=TTL)
    await other.server.stop(None)


async def test_an_older_server_is_called_method_by_method(lab: Lab) -> None:
    """The client notices once, and goes on without sessions."""
    older = await serve(lab, Older)
    async with grpc.aio.insecure_channel(older.address) as channel:
        locks = LockClient([channel])
        for _ in range(2):
            grant = await locks.acquire("a", owner="o", ttl_ms=TTL)
            assert await locks.release("a", owner="o", token=grant.token) == 0
        assert not locks._links[0]._sessions
    await older.server.stop(None)
