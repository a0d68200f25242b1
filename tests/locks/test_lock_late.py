"""What arrives late, after its caller has gone on: calls of a process that hung, and old words."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import code_pb2
from lock_lab import LIMITS, PATIENT, Lab, until
from lock_served import Raw, Served, acquire, serve

from controlplane.adapters.redis_address import RedisAddress
from controlplane.adapters.redis_sync import BlockingRedis
from controlplane.locks.direct import DirectLocks
from controlplane.locks.errors import LockLostError
from controlplane.locks.grant import Grant, Limits
from controlplane.locks.manager import LockManager
from controlplane.locks.register import Record
from controlplane.locks.tenure import Tenure
from controlplane.locks.token import Token
from controlplane.model.errors import UnavailableError
from controlplane.ports import Put
from controlplane.v1 import lock_pb2

TTL = 30_000


@pytest.fixture
async def served(lab: Lab) -> AsyncIterator[Served]:
    """The service."""
    found = await serve(lab)
    yield found
    await found.server.stop(None)


@pytest.mark.parametrize("shared", [False, True])
async def test_a_late_call_of_another_process_takes_no_grant_along(lab: Lab, shared: bool) -> None:
    """A replica hung, its caller went on to another one and holds the lock by that; now the first
    one wakes, asks for the lock, and learns that its caller has gone."""
    late, other = await lab.manager(limits=PATIENT), await lab.manager(limits=PATIENT)
    ask = {"owner": "o", "ttl_ms": TTL, "shared": shared, "request": "r"}
    grant = await other.acquire("a", **ask)
    assert (await late.acquire("a", **ask)).token == grant.token
    argv = (0, "o", "r", late._channel)
    assert await late.scripts.run("cancel", "a", *argv) == [b"gone"]
    assert [holder.token for holder in (await other.inspect("a")).holders] == [grant.token]


async def test_a_late_call_over_an_older_stream_takes_no_grant_along(served: Served) -> None:
    """The same within one replica: a call on the stream that its caller left is read after the
    repetition on the newer one, and then that stream ends."""
    await served.manager.scripts.run("cancel", "a", 0, "nobody", "none", "nowhere")
    async with grpc.aio.insecure_channel(served.address) as channel:
        older, newer = Raw(channel), Raw(channel)
        for number, raw in enumerate((older, newer)):  # opened in this order
            await raw.ask(acquire(1, name=f"n{number}"))
        request = str(uuid.uuid4())
        grant = (await newer.ask(acquire(2, request_id=request))).grant
        late = await older.ask(acquire(2, request_id=request))
        assert late.error.code == code_pb2.UNAVAILABLE
        withdraw = lock_pb2.SessionCall(id=3, withdraw=2)
        assert (await older.ask(withdraw, acquire(4, owner="p"))).error.code
        state = await served.manager.inspect("a")
        assert [holder.token.value for holder in state.holders] == [grant.token]


async def test_nested_entries_come_and_go_for_ever(lab: Lab) -> None:
    """However many entries one grant has seen: a repeated call counts once, and what is remembered
    of it stays small."""
    locks = await lab.manager(limits=PATIENT)
    outer = await locks.acquire("a", owner="o", ttl_ms=TTL, reentrant=True)
    for turn in range(200):
        for _ in range(2):  # a reply was lost
            inner = await locks.acquire(
                "a", owner="o", ttl_ms=TTL, reentrant=True, request=f"enter{turn}"
            )
            assert (inner.token, inner.entries) == (outer.token, 2)
        for _ in range(2):
            left = await locks.release(
                "a", owner="o", token=outer.token, request=f"leave{turn}", whole=False
            )
            assert left == 1
    assert sum(map(len, await lab.redis("HGETALL", lab.key("l", "a")))) < 2_000
    assert await locks.release("a", owner="o", token=outer.token, whole=False) == 0


async def test_a_hand_off_to_many_readers_keeps_within_the_counter(lab: Lab) -> None:
    """One hand-off mints many tokens; none of them reaches into the next epoch's."""
    leads = [True]
    locks = await lab.manager(limits=PATIENT, may_bump=lambda: leads[0])
    leads[0] = False
    held = await locks.acquire("a", owner="o", ttl_ms=TTL)
    readers = [
        asyncio.ensure_future(
            locks.acquire("a", owner=f"r{i}", ttl_ms=TTL, wait_ms=60_000, shared=True)
        )
        for i in range(3)
    ]
    await _waiters(locks, 3)
    await lab.redis("HSET", lab.fence, "counter", str((1 << 32) - 3))
    await locks.release("a", owner="o", token=held.token)
    holders = (await locks.inspect("a")).holders
    assert all(holder.token.counter < 1 << 32 for holder in holders)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)


async def _waiters(locks: LockManager, count: int) -> None:
    async with asyncio.timeout(20):
        while (await locks.inspect("a")).waiters != count:
            await asyncio.sleep(0.001)


async def test_a_long_ttl_that_etcd_cannot_take_is_refused_at_once(lab: Lab) -> None:
    """Etcd was restored from a backup and nobody leads: its record is of an older epoch, so it can
    announce nothing for the one in force. Whoever asks is sent away, not kept asking."""
    leads = [True]
    limits = Limits(ttl_min_ms=20, ttl_max_ms=60_000, ttl_usual_ms=300, beat_ms=20_000)
    locks = await lab.manager(limits=limits, may_bump=lambda: leads[0])
    await lab.redis("FLUSHALL")
    await until(lambda: locks.lineage.epoch == 2 and locks.lineage.state == "open")
    grant = await locks.acquire("b", owner="o", ttl_ms=300)
    leads[0] = False
    locks.keeper.kick = lambda: None
    store = await lab.store()
    record = Record(epoch=1, nonce="old").encode()
    await store.txn([], [Put(key=locks.register._key, value=record)])
    async with asyncio.timeout(20):
        with pytest.raises(UnavailableError):
            await locks.acquire("a", owner="o", ttl_ms=TTL)
        with pytest.raises(UnavailableError):
            await locks.renew("b", owner="o", token=grant.token, ttl_ms=TTL)


async def test_a_queue_that_was_evicted_is_made_again(lab: Lab) -> None:
    """The waiter shows at its next beat that it lives, and has a place again."""
    locks = await lab.manager(limits=LIMITS)
    held = await locks.acquire("a", owner="o", ttl_ms=20_000)
    waiting = asyncio.ensure_future(locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=60_000))
    await _waiters(locks, 1)
    await lab.redis("DEL", lab.key("q", "a"))
    await _waiters(locks, 1)
    await locks.release("a", owner="o", token=held.token)
    assert (await waiting).token > held.token


async def test_watching_tells_of_waiters_entries_and_withdrawals(lab: Lab) -> None:
    """Not only of grants and releases."""
    locks = await lab.manager(limits=PATIENT)
    changes = locks.watch("a")

    async def seen() -> tuple[list[tuple[str, int]], int]:
        async with asyncio.timeout(8):  # below the time after which it looks unasked
            state = await anext(changes)
        return [(holder.owner, holder.entries) for holder in state.holders], state.waiters

    assert await seen() == ([], 0)
    grant = await locks.acquire("a", owner="o", ttl_ms=TTL, reentrant=True)
    assert await seen() == ([("o", 1)], 0)
    await locks.acquire("a", owner="o", ttl_ms=TTL, reentrant=True)
    assert await seen() == ([("o", 2)], 0)
    await locks.release("a", owner="o", token=grant.token, whole=False)
    assert await seen() == ([("o", 1)], 0)
    waiting = asyncio.ensure_future(locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=60_000))
    assert await seen() == ([("o", 1)], 1)
    waiting.cancel()
    assert await seen() == ([("o", 1)], 0)
    await changes.aclose()


async def test_an_interrupted_thread_gives_its_place_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DirectLocks: Ctrl-C while it waits; the next call gives the place back."""
    locks = await lab.manager(limits=PATIENT)
    await locks.acquire("a", owner="holder", ttl_ms=TTL)
    direct = DirectLocks(RedisAddress(port=lab.server.port), prefix=lab.prefix, limits=PATIENT)

    def interrupted(self: BlockingRedis, timeout_ms: int) -> bytes | None:
        raise KeyboardInterrupt

    def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BlockingRedis, "wait_push", interrupted)
            with pytest.raises(KeyboardInterrupt):
                direct.acquire("a", owner="gone", ttl_ms=TTL, wait_ms=60_000)
        direct.release(direct.acquire("b", owner="o", ttl_ms=TTL))
        direct.close()

    await asyncio.to_thread(work)
    assert (await locks.inspect("a")).waiters == 0


def test_a_loss_that_is_learnt_while_another_thread_looks_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The renewing thread hears that the lock is lost between the look at the clock and its
    outcome in the thread that asks."""
    grant = Grant(name="a", owner="o", token=Token(1, 1), deadline_ms=9, ttl_ms=9, request="r")
    tenure = Tenure(grant, margin_ms=0)
    real = Tenure.remaining_ms

    def remaining(self: Tenure, now_ms: int) -> int:
        left = real(self, now_ms)
        self.failed(LockLostError("a", "taken away"))
        return left

    monkeypatch.setattr(Tenure, "remaining_ms", remaining)
    assert tenure.over(1)
