"""Whoever gives up leaves nothing behind: not when its call is lost with the link, nor when it is
cancelled between two calls, nor when it vanishes behind a dead network."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from lock_lab import PATIENT, Lab, until

from controlplane.adapters.grpc_server import OPTIONS
from controlplane.adapters.lock_client import LockClient, SyncLockClient
from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.locks.audit import AuditLog
from controlplane.locks.direct import DirectLocks
from controlplane.locks.grant import Mode
from controlplane.locks.manager import LockManager
from controlplane.model.errors import UnavailableError
from controlplane.v1 import lock_pb2, lock_pb2_grpc
from tests.support.proxy import Proxy

TTL = 30_000
SOON = 20_000
"""Waits shorter than the TTL: a lock that was left behind is not free by then."""


@pytest.fixture
async def proxy(lab: Lab) -> AsyncIterator[Proxy]:
    """Before Redis."""
    found = await Proxy(lab.server.port).start()
    yield found
    await found.stop()


async def behind(lab: Lab, proxy: Proxy) -> LockManager:
    """A manager that reaches Redis through the proxy, and whose scripts Redis knows."""
    link = RedisLink(RedisAddress(port=proxy.port), call_timeout_ms=500)
    locks = await lab.manager(limits=PATIENT, mode=Mode.LINEAGE, link=link)
    grant = await locks.acquire("a", owner="first", ttl_ms=TTL)
    await locks.release("a", owner="first", token=grant.token)
    return locks


async def counter(lab: Lab) -> int:
    """Counter of the token that holds "a", once somebody does."""
    async with asyncio.timeout(20):
        while not (found := await lab.redis("HGET", lab.key("l", "a"), "counter")):
            await asyncio.sleep(0.002)
    return int(found)


@contextlib.asynccontextmanager
async def reply_lost(lab: Lab, proxy: Proxy) -> AsyncIterator[None]:
    """The body's call reaches Redis, is granted, and its link breaks before the answer."""
    proxy.lose_replies = True
    yield
    await counter(lab)
    proxy.cut()
    proxy.lose_replies = False


async def test_a_first_call_lost_with_its_link_is_given_back(lab: Lab, proxy: Proxy) -> None:
    """The caller does not wait, so it gives up; what it was granted goes once there is a link."""
    locks = await behind(lab, proxy)
    async with reply_lost(lab, proxy):
        lost = asyncio.ensure_future(locks.acquire("a", owner="gone", ttl_ms=TTL))
    with pytest.raises(UnavailableError):
        await lost
    following = await locks.acquire("a", owner="next", ttl_ms=TTL, wait_ms=SOON)
    assert following.token.counter == 3
    assert not locks._owed


async def test_a_repetition_takes_over_what_was_given_up(lab: Lab, proxy: Proxy) -> None:
    """The same request again before there is a link: it gets the token of the lost answer."""
    locks = await behind(lab, proxy)
    ask = {"owner": "back", "ttl_ms": TTL, "request": str(uuid.uuid4())}
    async with reply_lost(lab, proxy):
        lost = asyncio.ensure_future(locks.acquire("a", **ask))
    with pytest.raises(UnavailableError):
        await lost
    again = await locks.acquire("a", **ask, wait_ms=SOON)
    assert again.token.counter == 2
    state = await locks.inspect("a")
    assert [holder.token for holder in state.holders] == [again.token]


async def test_a_withdrawal_lost_with_its_link_is_sent_again(lab: Lab, proxy: Proxy) -> None:
    """A waiter is cancelled while nothing reaches Redis any more; its place goes all the same."""
    locks = await behind(lab, proxy)
    await locks.acquire("a", owner="holder", ttl_ms=TTL)
    waiting = asyncio.ensure_future(locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=SOON))
    async with asyncio.timeout(20):
        while not (await locks.inspect("a")).waiters:
            await asyncio.sleep(0.002)
    proxy.lose_requests = True
    waiting.cancel()
    await asyncio.wait({waiting})
    await asyncio.sleep(0)  # the withdrawal leaves
    proxy.cut()
    proxy.lose_requests = False
    async with asyncio.timeout(20):
        while await lab.redis("EXISTS", lab.key("q", "a")):
            await asyncio.sleep(0.002)


async def test_a_call_later_than_its_withdrawal_is_not_run(lab: Lab, proxy: Proxy) -> None:
    """The network keeps a call back until its link has been given up and replaced."""
    locks = await behind(lab, proxy)
    gate = proxy.gate = asyncio.Event()
    with pytest.raises(UnavailableError):
        await locks.acquire("a", owner="gone", ttl_ms=TTL)
    proxy.gate = None
    await locks.acquire("b", owner="o", ttl_ms=TTL, wait_ms=SOON)  # over the new link
    gate.set()
    await until(lambda: proxy.connections == 1)
    assert not (await locks.inspect("a")).holders


async def test_a_thread_that_gives_up_leaves_nothing(lab: Lab, proxy: Proxy) -> None:
    """DirectLocks too: at once over another connection, or with the next call."""
    locks = await behind(lab, proxy)
    direct = DirectLocks(RedisAddress(port=proxy.port), prefix=lab.prefix, limits=PATIENT)
    grant = await asyncio.to_thread(direct.acquire, "b", owner="o", ttl_ms=TTL)
    async with reply_lost(lab, proxy):
        lost = asyncio.ensure_future(
            asyncio.to_thread(direct.acquire, "a", owner="gone", ttl_ms=TTL)
        )
    with pytest.raises(UnavailableError):
        await lost
    await asyncio.to_thread(direct.renew, grant)
    assert not direct._owed
    await locks.acquire("a", owner="next", ttl_ms=TTL, wait_ms=SOON)
    direct.close()


class Slow(LockServiceServicer):
    """Grants look as if they had waited for their whole time, so that the client renews them; the
    renewal does what the test says."""

    def __init__(self, manager: LockManager, audit: AuditLog) -> None:
        super().__init__(manager, audit)
        self.renewing = asyncio.Event()
        self.fails = False

    async def acquire(self, request: Any, attempt: Any = None) -> lock_pb2.LockGrant:
        """Acquire, as if after a long wait."""
        grant = await super().acquire(request, attempt)
        grant.waited_ms = request.ttl_ms
        return grant

    async def renew(self, request: Any) -> lock_pb2.LockGrant:
        """Fail, or hang."""
        self.renewing.set()
        if self.fails:
            raise UnavailableError("not now")
        return await asyncio.get_running_loop().create_future()


class Hung(LockServiceServicer):
    """Grants, and never answers a renewal."""

    async def renew(self, request: Any) -> lock_pb2.LockGrant:
        """Hang."""
        return await asyncio.get_running_loop().create_future()


class Served:
    """A servicer behind a server with the options of a replica."""

    def __init__(self, servicer: Any, manager: LockManager, server: Any, port: int) -> None:
        self.servicer = servicer
        self.manager = manager
        self.server = server
        self.port = port
        self.address = f"127.0.0.1:{port}"


async def serve(lab: Lab, kind: type[Any]) -> Served:
    """Start one on a free port."""
    manager = await lab.manager(limits=PATIENT)
    servicer = kind(manager, AuditLog(await lab.store(), f"/weir/{lab.prefix}/audit/".encode()))
    server = grpc.aio.server(options=OPTIONS)
    lock_pb2_grpc.add_LockServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return Served(servicer, manager, server, port)


async def test_cancelled_while_a_grant_is_renewed(lab: Lab) -> None:
    """A grant that came late is renewed before it is returned; whoever is cancelled then has not
    got it, so it is given back."""
    served = await serve(lab, Slow)
    async with grpc.aio.insecure_channel(served.address) as channel:
        locks = LockClient([channel])
        gone = asyncio.ensure_future(locks.acquire("a", owner="gone", ttl_ms=TTL))
        await served.servicer.renewing.wait()
        gone.cancel()
        await asyncio.wait({gone})
        await served.manager.acquire("a", owner="next", ttl_ms=TTL, wait_ms=SOON)
    await served.server.stop(None)


async def test_a_grant_that_cannot_be_renewed_is_given_back(lab: Lab) -> None:
    """The same when the renewal fails: the caller hears of the failure, not of the grant."""
    served = await serve(lab, Slow)
    served.servicer.fails = True

    def blocking() -> None:
        with grpc.insecure_channel(served.address) as channel:
            SyncLockClient([channel]).acquire("b", owner="gone", ttl_ms=TTL)

    async with grpc.aio.insecure_channel(served.address) as channel:
        with pytest.raises(UnavailableError):
            await LockClient([channel]).acquire("a", owner="gone", ttl_ms=TTL)
        with pytest.raises(UnavailableError):
            await asyncio.to_thread(blocking)
        for name in ("a", "b"):
            await served.manager.acquire(name, owner="next", ttl_ms=TTL, wait_ms=SOON)
    await served.server.stop(None)


@pytest.mark.parametrize("session", [True, False])
async def test_a_client_behind_a_dead_network_leaves_the_queue(lab: Lab, session: bool) -> None:
    """Half-open: the client's packets stop, its connection does not end. The server's pings find
    out in seconds, so the next in the queue gets what was waited for, and nobody a grant in vain."""
    served = await serve(lab, LockServiceServicer)
    held = await served.manager.acquire("a", owner="holder", ttl_ms=TTL)
    hole = await Proxy(served.port).start()
    async with grpc.aio.insecure_channel(hole.endpoint) as channel:
        locks = LockClient([channel])
        locks._links[0]._sessions = session
        gone = asyncio.ensure_future(locks.acquire("a", owner="gone", ttl_ms=TTL, wait_ms=60_000))
        await until(lambda: served.manager.hand_offs)
        hole.lose_requests = hole.lose_replies = True
        await until(lambda: not served.manager.hand_offs, SOON / 1000)
        await served.manager.release("a", owner="holder", token=held.token)
        assert not (await served.manager.inspect("a")).holders
        gone.cancel()
        await asyncio.wait({gone})
    await hole.stop()
    await served.server.stop(None)


async def test_a_thread_is_told_in_time_although_its_replicas_hang(lab: Lab) -> None:
    """Three replicas that do not answer a renewal are not asked one after the other past the time
    that is left."""
    served = await serve(lab, Hung)

    def work() -> int:
        with grpc.insecure_channel(served.address) as channel:
            locks = SyncLockClient([channel] * 3)
            with locks.hold("a", ttl_ms=4_000, margin_ms=2_500) as held:
                assert held.lost.wait(20)
                return held.grant.deadline_ms - locks.clock.monotonic_ms()

    left_ms = await asyncio.to_thread(work)
    assert left_ms > 0
    await served.server.stop(None)
