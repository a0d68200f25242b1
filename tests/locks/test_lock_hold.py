"""Holding a lock for a block: renewed in time, told in time, several at once, and straight from
Redis."""

from __future__ import annotations

import asyncio
import threading

import pytest
from lock_lab import LIMITS, PATIENT, Lab, until

from controlplane.adapters.redis_address import RedisAddress
from controlplane.locks.direct import DirectLocks
from controlplane.locks.errors import LineageError, LockHeldError, LockLostError
from controlplane.locks.hold import hold, hold_all
from controlplane.model.errors import InvalidInputError

TTL = 300


async def test_a_block_longer_than_the_ttl_keeps_the_lock(lab: Lab) -> None:
    """Renewal moves the deadline and keeps the token; leaving the block frees the lock."""
    locks = await lab.manager(limits=PATIENT)
    async with hold(locks, "a", ttl_ms=6_000, owner="o") as held:
        first = held.grant
        await until(lambda: held.grant is not first)
        held.check()
        assert held.token == first.token.value
        assert held.grant.deadline_ms > first.deadline_ms
    assert not (await locks.inspect("a")).holders


async def test_the_holder_is_told_before_its_time_is_over(lab: Lab) -> None:
    """Redis hangs: the block is cancelled while the lock is still its own, never after."""
    locks = await lab.manager()
    assert lab.server.child is not None
    with pytest.raises(LockLostError):  # noqa: PT012 - it is raised in the middle of the block
        async with hold(locks, "a", ttl_ms=4_000, owner="o", margin_ms=2_500) as held:
            lab.server.child.pause()
            try:
                await asyncio.sleep(60)
            finally:
                late = locks.clock.monotonic_ms() - held.grant.deadline_ms
                assert held.lost.is_set()
                lab.server.child.resume()
    assert late < 0


async def test_the_error_of_the_block_comes_out_as_it_is(lab: Lab) -> None:
    """What the block raises is not wrapped, and the lock is free afterwards."""
    locks = await lab.manager()
    with pytest.raises(KeyError):
        async with hold(locks, "a", ttl_ms=TTL):
            raise KeyError("x")
    assert not (await locks.inspect("a")).holders


async def test_several_at_once_cannot_deadlock(lab: Lab) -> None:
    """Twelve tasks that want overlapping pairs, named in any order, all get through."""
    locks = await lab.manager(limits=PATIENT)
    names = ["a", "b", "c"]
    done: list[int] = []

    async def work(number: int) -> None:
        pair = [names[number % 3], names[(number + 1) % 3]]
        async with hold_all(
            locks, pair[:: 1 if number % 2 else -1], ttl_ms=5_000, wait_ms=30_000
        ) as held:
            assert set(held) == set(pair)
            done.append(number)

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(work(number))
    assert sorted(done) == list(range(12))
    assert await lab.redis("KEYS", "*") == [lab.fence]


async def test_direct_locks_share_the_protocol(lab: Lab) -> None:
    """Threads straight on Redis and a manager see the same locks and one order of tokens."""
    locks = await lab.manager(limits=PATIENT)
    direct = DirectLocks(RedisAddress(port=lab.server.port), prefix=lab.prefix, limits=PATIENT)
    first = await locks.acquire("a", owner="o", ttl_ms=30_000)

    def work() -> list[int]:
        tokens = []
        with pytest.raises(LockHeldError):
            direct.acquire("a", owner="t", ttl_ms=30_000)
        grant = direct.acquire("a", owner="t", ttl_ms=30_000, wait_ms=20_000)
        tokens.append(grant.token.value)
        assert direct.renew(grant).token == grant.token
        assert direct.release(grant) == 0
        assert direct.release(grant) is None
        with pytest.raises(LockLostError):
            direct.renew(grant)
        with pytest.raises(InvalidInputError, match="lock service"):
            direct.acquire("a", owner="t", ttl_ms=40_000)
        with direct.hold("a", ttl_ms=30_000) as held:
            tokens.append(held.token.value)
        return tokens

    task = asyncio.ensure_future(asyncio.to_thread(work))
    async with asyncio.timeout(20):
        while not (await locks.inspect("a")).waiters:
            await asyncio.sleep(0.002)
    await locks.release("a", owner="o", token=first.token)
    tokens = [first.token.value, *await task]
    assert tokens == sorted(set(tokens))
    direct.close()


async def test_direct_locks_wait_in_the_same_queue(lab: Lab) -> None:
    """Eight threads on one name: everybody gets it, in turn, and nothing is left behind."""
    await lab.manager(limits=PATIENT)
    direct = DirectLocks(RedisAddress(port=lab.server.port), prefix=lab.prefix, limits=PATIENT)
    counts = [0] * 8

    def work(number: int) -> None:
        for _ in range(20):
            with direct.hold("a", ttl_ms=30_000, owner=f"t{number}", wait_ms=30_000):
                counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    direct.close()
    assert counts == [20] * 8
    assert await lab.redis("KEYS", "*") == [lab.fence]


async def test_direct_locks_refuse_a_lost_lineage(lab: Lab) -> None:
    """Without the fence nothing is granted; the control plane puts a new epoch in force, not the
    worker."""
    leads = [True]
    await lab.manager(may_bump=lambda: leads[0])
    direct = DirectLocks(RedisAddress(port=lab.server.port), prefix=lab.prefix, limits=LIMITS)
    before = await asyncio.to_thread(direct.acquire, "a", owner="t", ttl_ms=TTL)
    leads[0] = False
    await lab.redis("FLUSHALL")
    with pytest.raises(LineageError):
        await asyncio.to_thread(direct.acquire, "a", owner="t", ttl_ms=TTL)
    leads[0] = True
    after = await asyncio.to_thread(direct.acquire, "a", owner="t", ttl_ms=TTL, wait_ms=20_000)
    assert after.token > before.token
    direct.close()
