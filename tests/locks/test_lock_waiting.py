"""Waiting for a lock: order, losses on the way, and what is left behind by whoever goes."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest
from lock_lab import LIMITS, PATIENT, Lab, until

from controlplane.locks.errors import LockHeldError, LockLostError
from controlplane.locks.grant import Grant
from controlplane.locks.manager import LockManager
from controlplane.model.errors import UnavailableError

TTL = 30_000
SHORT = 300
"""For locks that are to expire."""


async def test_waiting_is_first_come_first_served(lab: Lab) -> None:
    """Twenty waiters on two managers get the lock in the order they came."""
    one, two = (
        await lab.manager(limits=PATIENT),
        await lab.manager(limits=PATIENT, may_bump=lambda: False),
    )
    first = await one.acquire("a", owner="holder", ttl_ms=30_000)
    order: list[int] = []

    async def wait(number: int) -> None:
        locks = (one, two)[number % 2]
        grant = await locks.acquire("a", owner=f"w{number}", ttl_ms=TTL, wait_ms=20_000)
        order.append(number)
        await locks.release("a", owner=f"w{number}", token=grant.token)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(wait(number))
            async with asyncio.timeout(20):
                while (await one.inspect("a")).waiters <= number:
                    await asyncio.sleep(0.001)
        await one.release("a", owner="holder", token=first.token)
    assert order == list(range(20))
    assert (await lab.redis("KEYS", "*")) == [lab.fence]


async def test_a_repeated_waiting_request_keeps_its_place(lab: Lab) -> None:
    """A request that is repeated while it waits is one waiter, not two."""
    locks = await lab.manager()
    held = await locks.acquire("a", owner="holder", ttl_ms=30_000)
    request = str(uuid.uuid4())
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(
            locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=20_000, request=request)
        )
        await until(lambda: request in locks.hand_offs)
        await asyncio.sleep(LIMITS.beat_ms * 2.5 / 1000)
        assert (await locks.inspect("a")).waiters == 1
        await locks.release("a", owner="holder", token=held.token)
    assert asked.result().token > held.token


async def test_readers_share_and_writers_do_not_starve(lab: Lab) -> None:
    """Two readers share; a reader that comes after a waiting writer waits behind it."""
    locks = await lab.manager(limits=PATIENT)
    readers = [
        await locks.acquire("a", owner=f"r{i}", ttl_ms=30_000, shared=True) for i in range(2)
    ]
    assert readers[0].token != readers[1].token
    order: list[str] = []

    async def wait(owner: str, shared: bool) -> None:
        grant = await locks.acquire("a", owner=owner, ttl_ms=30_000, wait_ms=20_000, shared=shared)
        order.append(owner)
        await locks.release("a", owner=owner, token=grant.token)

    async with asyncio.TaskGroup() as group:
        for count, (owner, shared) in enumerate((("writer", False), ("late", True)), 1):
            group.create_task(wait(owner, shared))
            async with asyncio.timeout(20):
                while (await locks.inspect("a")).waiters < count:
                    await asyncio.sleep(0.001)
        for i, grant in enumerate(readers):
            await locks.release("a", owner=f"r{i}", token=grant.token)
    assert order == ["writer", "late"]


async def test_a_dead_holder_is_replaced_when_its_time_is_over(lab: Lab) -> None:
    """Nobody tells that a holder died; the first waiter finds it."""
    locks = await lab.manager(limits=PATIENT)
    dead = await locks.acquire("a", owner="dead", ttl_ms=SHORT)
    grant = await locks.acquire("a", owner="next", ttl_ms=TTL, wait_ms=20_000)
    assert grant.token > dead.token
    with pytest.raises(LockLostError):
        await locks.renew("a", owner="dead", token=dead.token, ttl_ms=TTL)
    assert await locks.release("a", owner="dead", token=dead.token) is None
    assert (await locks.inspect("a")).holders[0].owner == "next"


async def test_a_waiter_that_went_away_is_passed_over(lab: Lab) -> None:
    """A cancelled waiter leaves the queue; one whose process died is passed over after its beats."""
    locks = await lab.manager(limits=PATIENT)
    held = await locks.acquire("a", owner="holder", ttl_ms=30_000)
    cancelled = asyncio.ensure_future(
        locks.acquire("a", owner="gone", ttl_ms=30_000, wait_ms=20_000)
    )
    await until(lambda: locks.hand_offs)
    cancelled.cancel()
    await asyncio.wait({cancelled})
    async with asyncio.timeout(20):
        while (await locks.inspect("a")).waiters:
            await asyncio.sleep(0.001)
    # a waiter of a process that died: it is in the queue and its sign of life is old
    await lab.redis("RPUSH", lab.key("q", "a"), "dead-request")
    await lab.redis("HSET", lab.key("w", "a"), "dead-request", "x 30000 1 1 1 nowhere dead")
    async with asyncio.TaskGroup() as group:
        alive = group.create_task(locks.acquire("a", owner="alive", ttl_ms=TTL, wait_ms=20_000))
        async with asyncio.timeout(20):
            while (await locks.inspect("a")).waiters < 2:
                await asyncio.sleep(0.001)
        await locks.release("a", owner="holder", token=held.token)
    assert alive.result().owner == "alive"


async def _waiters(locks: LockManager, count: int) -> None:
    async with asyncio.timeout(20):
        while (await locks.inspect("a")).waiters != count:
            await asyncio.sleep(0.001)


async def test_an_older_attempt_takes_nothing_from_a_newer_one(lab: Lab) -> None:
    """A request waits twice in one process, the first time for a stream that died. The second gets
    the lock; when the first is cancelled after that, the lock stays with its holder."""
    locks = await lab.manager(limits=PATIENT)
    await locks.scripts.run("cancel", "a", 0, "nobody", "none", "nowhere")  # Redis knows it now
    held = await locks.acquire("a", owner="holder", ttl_ms=TTL)
    request = str(uuid.uuid4())

    def attempt(owner: str, request: str | None) -> asyncio.Future[Grant]:
        wait = locks.acquire("a", owner=owner, ttl_ms=TTL, wait_ms=20_000, request=request)
        return asyncio.ensure_future(wait)

    first = attempt("w", request)
    await _waiters(locks, 1)
    told = locks.hand_offs[request]
    second = attempt("w", request)
    await until(lambda: locks.hand_offs[request] is not told)
    other = attempt("other", None)
    await _waiters(locks, 2)
    await locks.release("a", owner="holder", token=held.token)
    grant = await second
    first.cancel()
    await asyncio.wait({first})
    state = await locks.inspect("a")  # on the same connection, so after a withdrawal
    assert [holder.token for holder in state.holders] == [grant.token]
    assert state.waiters == 1
    await locks.release("a", owner="w", token=grant.token)
    assert (await other).token > grant.token
    assert not locks.attempts
    assert not locks.hand_offs


async def test_what_a_newer_attempt_leaves_an_older_one_gives_back(lab: Lab) -> None:
    """The newer of two attempts is cancelled: the place goes. The older one still waits, takes a
    place again at its next beat, and gives it back when it is cancelled too."""
    locks = await lab.manager(limits=replace(PATIENT, beat_ms=1_000))
    held = await locks.acquire("a", owner="holder", ttl_ms=TTL)
    request = str(uuid.uuid4())
    attempts = []
    for _ in range(2):
        told = locks.hand_offs.get(request)
        wait = locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=50_000, request=request)
        attempts.append(asyncio.ensure_future(wait))
        await until(lambda told=told: locks.hand_offs.get(request) is not told)
        await _waiters(locks, 1)
    for attempt in reversed(attempts):
        await _waiters(locks, 1)
        attempt.cancel()
        await _waiters(locks, 0)
    assert not locks.attempts
    await locks.release("a", owner="holder", token=held.token)
    assert not (await locks.inspect("a")).holders


async def test_cancelled_before_the_first_answer(lab: Lab) -> None:
    """A call that has left for Redis is granted there although its caller has gone: the lock is
    given back, not kept for nobody until its time is over."""
    locks = await lab.manager(limits=PATIENT)
    grant = await locks.acquire("a", owner="o", ttl_ms=TTL)  # from here on Redis knows the script
    await locks.release("a", owner="o", token=grant.token)
    gone = asyncio.ensure_future(locks.acquire("a", owner="gone", ttl_ms=TTL))
    await asyncio.sleep(0)  # its first step: the call is on its way
    gone.cancel()
    await asyncio.wait({gone})
    following = await locks.acquire("a", owner="next", ttl_ms=TTL, wait_ms=5_000)
    assert following.token.counter == grant.token.counter + 2, "it had been granted"


async def test_the_wait_ends_on_time(lab: Lab) -> None:
    """A waiter that is not served is refused and leaves no trace in the queue."""
    locks = await lab.manager(limits=PATIENT)
    await locks.acquire("a", owner="holder", ttl_ms=30_000)
    with pytest.raises(LockHeldError):
        await locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=50)
    async with asyncio.timeout(20):
        while (await locks.inspect("a")).waiters:
            await asyncio.sleep(0.001)


async def test_a_lost_notification_is_made_up_for(lab: Lab) -> None:
    """A waiter that was never told finds out at its next beat."""
    locks = await lab.manager()
    held = await locks.acquire("a", owner="holder", ttl_ms=30_000)
    locks._told = lambda payload: None
    locks._link._handlers[locks._channel.encode()] = locks._told
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(locks.acquire("a", owner="w", ttl_ms=5_000, wait_ms=20_000))
        async with asyncio.timeout(20):
            while not (await locks.inspect("a")).waiters:
                await asyncio.sleep(0.001)
        await locks.release("a", owner="holder", token=held.token)
    assert waiter.result().token > held.token


async def test_the_queue_is_bounded(lab: Lab) -> None:
    """One waiter more than allowed is sent away with a time to come back."""
    limits = replace(PATIENT, waiters_max=1)
    locks = await lab.manager(limits=limits)
    await locks.acquire("a", owner="holder", ttl_ms=30_000)
    waiter = asyncio.ensure_future(locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=20_000))
    async with asyncio.timeout(20):
        while not (await locks.inspect("a")).waiters:
            await asyncio.sleep(0.001)
    with pytest.raises(UnavailableError, match="wait already"):
        await locks.acquire("a", owner="w2", ttl_ms=TTL, wait_ms=1)
    waiter.cancel()
    await asyncio.wait({waiter})


@pytest.mark.parametrize("shared", [False, True])
async def test_a_late_withdrawal_takes_nothing_from_a_repetition(lab: Lab, shared: bool) -> None:
    """A request that went on through another replica is not withdrawn by the first one, neither its
    place in the queue nor its grant."""
    one, two = await lab.manager(limits=PATIENT), await lab.manager(limits=PATIENT)
    held = await one.acquire("a", owner="holder", ttl_ms=TTL)
    ask = {"owner": "o", "ttl_ms": TTL, "wait_ms": 20_000, "shared": shared, "request": "r"}
    first = asyncio.ensure_future(one.acquire("a", **ask))
    await until(lambda: one.hand_offs)
    async with asyncio.timeout(20):
        while (await one.inspect("a")).waiters != 1:
            await asyncio.sleep(0.002)
    packed = await lab.redis("HGET", lab.key("w", "a"), "r")
    second = asyncio.ensure_future(two.acquire("a", **ask))
    async with asyncio.timeout(20):
        while await lab.redis("HGET", lab.key("w", "a"), "r") == packed:
            await asyncio.sleep(0.002)
    first.cancel()
    await asyncio.wait({first})
    await one.inspect("a")  # behind the withdrawal on the same connection
    await one.release("a", owner="holder", token=held.token)
    grant = await second
    argv = (0, "o", "r", one._channel)
    assert await one.scripts.run("cancel", "a", *argv) == [b"gone"]
    assert (await two.inspect("a")).holders[0].token == grant.token
    assert await two.scripts.run("cancel", "a", 0, "o", "r", two._channel) == [b"released"]
