"""An orderly end loses nobody and sends nobody elsewhere in one crowd: virtual time, seeded, real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2_grpc
from google.rpc import error_details_pb2

from controlplane.adapters import draining
from controlplane.adapters.draining import Draining
from controlplane.adapters.lock_client import LockClient
from controlplane.adapters.peers import RECONNECT_BASE_MS, DigestFeed, PeerLinks, PeerService
from controlplane.dev.process import free_port
from controlplane.model.evidence import Digest
from controlplane.model.ids import RegionName, ReplicaId
from controlplane.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    agent_pb2_grpc,
    lock_pb2,
    lock_pb2_grpc,
    peer_pb2_grpc,
    routing_pb2,
    routing_pb2_grpc,
)
from tests.operate.lab import Lab, report
from tests.operate.test_changes import details
from tests.support.stepclock import StepClock

EACH = 20
STEP_MS = 50.0
GRACE_S = 100
"""Real time, so long that nothing ends by it: what ends was ended one by one."""


class Silent(
    routing_pb2_grpc.RoutingServiceServicer,
    lock_pb2_grpc.LockServiceServicer,
    admin_pb2_grpc.AdminServiceServicer,
):
    """A stream that yields, one whose handler reads and writes by itself, and a call that waits."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self.open = 0
        self.sessions_at: list[float] = []

    async def WatchPlan(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Have nothing to say."""
        del request, context
        self.open += 1
        await asyncio.Event().wait()
        yield

    async def Session(self, requests: Any, context: Any) -> None:  # noqa: N802
        """Never answer a lock call."""
        del context
        self.open += 1
        self.sessions_at.append(self._clock.now_ms)
        async for _ in requests:
            pass

    async def WaitOperation(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Wait."""
        del request, context
        self.open += 1
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(clock: StepClock) -> AsyncIterator[tuple[Silent, Draining, Any, str]]:
    """Serve; yield what is served, what drains it, the server and its address."""
    drains = Draining(clock, random.Random(7))
    server = grpc.aio.server(interceptors=[drains])
    silent = Silent(clock)
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(silent, server)
    lock_pb2_grpc.add_LockServiceServicer_to_server(silent, server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(silent, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield silent, drains, server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes; the test's own limit ends a broken one."""
    while not condition():
        await asyncio.sleep(0.005)


async def test_streams_end_one_by_one_and_single_calls_after_them() -> None:
    """Twenty watchers, lock clients and waiting calls of a replica that stops: in every 50 ms of the
    window a few streams end, the calls in the time after it, each told to ask another replica; the lock
    clients arrive at the next replica as they left the first."""
    clock = StepClock()
    async with contextlib.AsyncExitStack() as stack:
        first, drains, server, address = await stack.enter_async_context(serving(clock))
        second, _, _, elsewhere = await stack.enter_async_context(serving(clock))
        one, other = [
            await stack.enter_async_context(grpc.aio.insecure_channel(a)) for a in (address, elsewhere)
        ]  # fmt: skip
        watch, admin = (
            routing_pb2_grpc.RoutingServiceStub(one),
            admin_pb2_grpc.AdminServiceStub(one),
        )
        streams = [
            asyncio.ensure_future(watch.WatchPlan(routing_pb2.WatchPlanRequest()).read())
            for _ in range(EACH)
        ]
        clients = [LockClient([one, other]) for _ in range(EACH)]
        locks = [
            asyncio.ensure_future(
                client.acquire("n", owner=str(i), ttl_ms=60_000, wait_ms=300_000)
            )
            for i, client in enumerate(clients)
        ]  # fmt: skip
        calls = [
            asyncio.ensure_future(admin.WaitOperation(admin_pb2.WaitOperationRequest()))
            for _ in range(EACH)
        ]
        await until(lambda: first.open == 3 * EACH)

        stopping = asyncio.ensure_future(server.stop(GRACE_S))
        telling = asyncio.ensure_future(drains.drain(4 * draining.WINDOW_MS))
        await until(lambda: clock.sleeping == 3 * EACH)
        began_ms, ended, per_step = clock.now_ms, 0, []
        while clock.sleeping:
            ended += clock.advance(STEP_MS)
            while sum(s.done() for s in (*streams, *calls)) + len(second.sessions_at) < ended:
                await asyncio.sleep(0.005)
            per_step.append(sum(s.done() for s in streams) + len(second.sessions_at))
            if clock.now_ms - began_ms <= draining.WINDOW_MS:
                assert not any(c.done() for c in calls)
        window = int(draining.WINDOW_MS / STEP_MS)
        assert per_step[window - 1] == per_step[-1] == 2 * EACH
        assert max(b - a for a, b in zip([0, *per_step], per_step, strict=False)) <= EACH // 2
        assert len(set(second.sessions_at)) > EACH // 3

        await telling
        await asyncio.wait({stopping})
        for task in (*streams, *calls):
            error = task.exception()
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "ask another one" in str(error.details())
            assert details(error, error_details_pb2.RetryInfo)
        for task in locks:
            task.cancel()
        await asyncio.wait(locks)
        for client in clients:
            await client.aclose()


async def test_a_call_that_its_caller_gave_up_is_no_refusal() -> None:
    """A caller that goes leaves nothing behind to be ended."""
    clock = StepClock()
    async with (
        serving(clock) as (silent, drains, _, address),
        grpc.aio.insecure_channel(address) as one,
    ):
        call = routing_pb2_grpc.RoutingServiceStub(one).WatchPlan(routing_pb2.WatchPlanRequest())
        await until(lambda: silent.open == 1)
        call.cancel()
        await until(lambda: not drains._streams)
        await drains.drain(1_000)
        assert clock.sleeping == 0


def digest(name: str, seq: int) -> Digest:
    """A digest of a replica that has nothing to tell."""
    return Digest(replica=ReplicaId(name), region=RegionName("east"), boot=1, seq=seq)


class Book:
    """Keeps who was heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def put(self, found: Digest, now_ms: int) -> bool:
        """Keep the name."""
        del now_ms
        self.heard.append(str(found.replica))
        return True


async def peer(port: int, clock: Any) -> tuple[Any, int]:
    """Start the replica that all others dial."""
    feed = DigestFeed()
    await feed.publish(digest("z", 1))
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    peer_pb2_grpc.add_PeerServiceServicer_to_server(PeerService(feed, Book(), clock), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, bound


async def test_peers_return_at_moments_of_their_own_however_often_one_restarts() -> None:
    """Ten replicas lose a peer in one instant, six times: each waits a time of its own, below the first
    bound every time (the peer had spoken), and is back."""
    clock, many = StepClock(), 10
    books, pauses = [Book() for _ in range(many)], []
    server, port = await peer(free_port(), clock)

    class Noting(StepClock):
        async def sleep_ms(self, delay_ms: float) -> None:
            pauses.append(delay_ms)
            await clock.sleep_ms(delay_ms)

    async with asyncio.TaskGroup() as group:
        running = []
        for i, book in enumerate(books):
            feed = DigestFeed()
            await feed.publish(digest(f"a{i}", 1))
            links = PeerLinks(
                f"a{i}", {"z": f"127.0.0.1:{port}"}, feed, book, Noting(), random.Random(i),
                lambda address: grpc.aio.insecure_channel(
                    address, [("grpc.use_local_subchannel_pool", 1)]
                ),
            )  # fmt: skip
            running.append(group.create_task(links.run()))
        for turn in range(1, 7):
            await until(lambda: all(len(book.heard) >= turn for book in books))  # noqa: B023
            pauses.clear()
            await server.stop(0)
            await until(lambda: clock.sleeping == many)
            assert len(set(pauses)) == many
            assert max(pauses) <= RECONNECT_BASE_MS, turn
            assert max(pauses) - min(pauses) > RECONNECT_BASE_MS / 3
            server, _ = await peer(port, clock)
            clock.advance(RECONNECT_BASE_MS)
        for task in running:
            task.cancel()
    await server.stop(0)


async def end_of(call: Any) -> tuple[grpc.StatusCode, str | None]:
    """Read a stream to its end; its status and text."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code(), await call.details()


async def test_a_whole_replica_ends_every_kind_of_stream_and_hears_reports_until_then(
    lab: Lab,
) -> None:
    """SIGTERM at a replica: reports, plans, events, lock sessions and xDS end with UNAVAILABLE and not with a
    reset; until an agent's stream ends its reports still reach the other replicas."""
    for talker in lab.talkers:
        talker.cancel()
    async with lab.channel("north") as channel:
        agent = agent_pb2_grpc.AgentServiceStub(channel).Report()
        boot = uuid.uuid4().int >> 80
        await agent.write(report("north", ["east", "south"], boot, 1))
        assert not (await agent.read()).error.message
        plans = routing_pb2_grpc.RoutingServiceStub(channel).WatchPlan(
            routing_pb2.WatchPlanRequest(subscriber="north/late", region="north", kind="agent")
        )
        epoch = (await plans.read()).epoch
        events = admin_pb2_grpc.AdminServiceStub(channel).WatchEvents(
            admin_pb2.WatchEventsRequest(backlog=1)
        )
        await events.read()
        session = lock_pb2_grpc.LockServiceStub(channel).Session()
        await session.write(lock_pb2.SessionRequest(calls=[lock_pb2.SessionCall(id=1)]))
        assert (await session.read()).answers[0].error.message

        xds = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources()
        await xds.initial_metadata()

        replica, east, clock = lab.replicas["north"], lab.replicas["east"], StepClock()
        replica.draining._clock = clock
        patient = replica.config.server.model_copy(update={"grace_s": 4 * GRACE_S})
        replica.config = replica.config.model_copy(update={"server": patient})
        stopped = asyncio.ensure_future(lab.stop("north"))
        await until(lambda: clock.sleeping >= 5)
        late = report("north", ["east", "south"], boot + 1, 1)
        late.agent_id, late.applied_epoch = "late", epoch
        await agent.write(late)
        await until(
            lambda: any(
                (subscriber.name, subscriber.applied_epoch) == ("north/late", epoch)
                for found, _ in east.book.entries(east.clock.monotonic_ms())
                for subscriber in found.subscribers
            )
        )
        clock.advance(draining.WINDOW_MS)
        codes = {}
        for name, call in (
            ("reports", agent), ("plans", plans), ("events", events), ("locks", session), ("xds", xds),
        ):  # fmt: skip
            codes[name] = await end_of(call)
        await stopped
        assert {code for code, _ in codes.values()} == {grpc.StatusCode.UNAVAILABLE}, codes
        assert all("ask another one" in str(text) for _, text in codes.values()), codes


async def test_what_had_come_in_and_was_not_begun_is_told_too() -> None:
    """A call whose handler starts after the end has begun gets the same answer, at once: nobody
    would end it later."""
    clock = StepClock()
    async with serving(clock) as (_, drains, _, address):
        await drains.drain(1000)  # nothing is under way: it is over at once
        async with grpc.aio.insecure_channel(address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="this replica stops") as refused:
                await stub.WaitOperation(admin_pb2.WaitOperationRequest(id="o"), timeout=GRACE_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            streamed = routing_pb2_grpc.RoutingServiceStub(channel).WatchPlan(
                routing_pb2.WatchPlanRequest(), timeout=GRACE_S
            )
            with pytest.raises(grpc.aio.AioRpcError, match="this replica stops"):
                await streamed.read()
