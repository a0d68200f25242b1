"""The ADS server on a real socket: limits, reasons, registry of subscribers, confirmation."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.rpc import status_pb2

from controlplane.adapters.xds_admission import AdsLimits, NoMetrics
from controlplane.adapters.xds_ads import (
    ADS_SERVER_OPTIONS,
    REMEMBERED_MAX,
    AdsService,
)
from controlplane.adapters.xds_resources import CDS, EDS
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import SystemClock
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Endpoint, RegionEndpoints
from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.plan import Event
from tests.xds.lab import eventually, plan, plan_of

WEIGHTS = {"east": 6000, "north": 4000}


class ManualClock(SystemClock):
    """The machine's clock, moved ahead by hand; it stands while `frozen_ms` is set."""

    def __init__(self) -> None:
        self.ahead_ms, self.frozen_ms = 0, -1

    def freeze(self) -> None:
        """Stand still: from now on time passes by hand only."""
        self.frozen_ms = super().monotonic_ms()

    def monotonic_ms(self) -> int:
        """Return the machine's time, moved ahead."""
        now_ms = super().monotonic_ms() if self.frozen_ms < 0 else self.frozen_ms
        return now_ms + self.ahead_ms


class Counting(NoMetrics):
    """Counts refusals and answers."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self.reasons[reason] += 1

    def acked(self, type_name: str) -> None:
        """Count an ACK."""
        self.answers[f"ack-{type_name}"] += 1

    def nacked(self, type_name: str) -> None:
        """Count a NACK."""
        self.answers[f"nack-{type_name}"] += 1


class Server:
    """An ADS server with its parts at hand."""

    def __init__(self, limits: AdsLimits) -> None:
        self.clock, self.metrics, self.events = ManualClock(), Counting(), list[Event]()
        self.ads = AdsService(
            clock=self.clock, limits=limits, metrics=self.metrics, on_event=self.events.append
        )
        self.address = ""

    def publish(self, epoch: int, config: DataPlane | None = None, **options: bool) -> bool:
        """Publish an epoch."""
        return self.ads.publish(
            Snapshot.build(plan(epoch, WEIGHTS), config or dataplane()), **options
        )


def dataplane(*names: str, fail_closed: bool = False, stale_ms: int = 2000) -> DataPlane:
    """Return two regions and some channels."""
    return DataPlane(
        regions=tuple(
            RegionEndpoints(
                region=RegionName(name), endpoints=(Endpoint(host="10.0.0.1", port=port),)
            )
            for name, port in (("east", 1), ("north", 2))
        ),
        channels=tuple(
            ChannelTraffic(name=ChannelName(name), fail_closed=fail_closed)
            for name in names or ("alipay",)
        ),
        stale_after_ms=stale_ms,
    )


@asynccontextmanager
async def serving(**limits: int) -> AsyncIterator[Server]:
    """Run a server."""
    made = Server(AdsLimits(**limits))
    server = grpc.aio.server(options=ADS_SERVER_OPTIONS)
    made.ads.register(server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)


class Peer:
    """A raw client of one stream."""

    def __init__(self, link: grpc.aio.Channel, name: str) -> None:
        self.name = name
        self.call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(link).StreamAggregatedResources()
        self.last: Any = None

    async def ask(self, type_url: str = EDS, *names: str) -> Peer:
        """Subscribe."""
        node = base_pb2.Node(id=self.name, locality=base_pb2.Locality(region="east"))
        request = discovery_pb2.DiscoveryRequest(node=node, type_url=type_url, resource_names=names)
        await self.call.write(request)
        return self

    async def read(self) -> Any:
        """Return the next response."""
        self.last = await self.call.read()
        assert self.last is not grpc.aio.EOF, await self.call.details()
        return self.last

    async def ack(self, *names: str, error: str = "") -> None:
        """Answer the last response."""
        request = discovery_pb2.DiscoveryRequest(
            type_url=self.last.type_url,
            resource_names=names or ["payments.alipay"],
            version_info=self.last.version_info,
            response_nonce=self.last.nonce,
        )
        if error:
            request.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
        await self.call.write(request)


@asynccontextmanager
async def silent_peers(server: Server, *names: str) -> AsyncIterator[list[Peer]]:
    """Connect raw clients over one link, in this order; they say nothing. One that is refused must
    not write: if its status arrives meanwhile, the stock client puts INTERNAL in its place."""
    async with grpc.aio.insecure_channel(server.address) as link:
        made = []
        for name in names:
            made.append(Peer(link, name))
            await made[-1].call.initial_metadata()
        yield made
        for peer in made:
            peer.call.cancel()


@asynccontextmanager
async def peers(server: Server, *names: str) -> AsyncIterator[list[Peer]]:
    """Connect raw clients that have subscribed."""
    async with silent_peers(server, *names) as made:
        for peer in made:
            await peer.ask(EDS, "payments.alipay")
        yield made


def applied(server: Server) -> dict[str, int]:
    """Epoch by subscriber."""
    return {s.name: int(s.applied_epoch) for s in server.ads.subscribers()}


async def test_every_subscriber_and_its_epoch_is_known() -> None:
    """Acknowledged epochs are named per subscriber; who refuses or says nothing is a laggard, with
    an age that grows, and a refusal is counted and told."""
    async with serving() as server, peers(server, "a", "b", "c") as (a, b, c):
        server.publish(1)
        for peer in (a, b, c):
            await peer.read()
            await peer.ack()
        await eventually(lambda: applied(server) == {"a": 1, "b": 1, "c": 1}, "all at 1")
        assert {s.age_ms for s in server.ads.subscribers()} == {0}
        assert server.ads.laggards() == ()
        server.publish(2)
        for peer in (a, b, c):
            await peer.read()
        await a.ack()
        await b.ack(error="no such weight")
        await eventually(lambda: server.metrics.answers["nack-eds"] == 1, "refusal counted")
        await eventually(lambda: applied(server) == {"a": 2, "b": 1, "c": 1}, "a at 2")
        server.clock.ahead_ms += 7000
        ages = {s.name: s.age_ms for s in server.ads.laggards()}
        assert sorted(ages) == ["b", "c"]
        refused = {s.name: s.error for s in server.ads.subscribers()}
        assert refused == {"a": "", "b": "eds: no such weight", "c": ""}
        assert ages["c"] >= 7000
        assert "no such weight" in server.events[-1].message
        assert {(s.kind, s.region) for s in server.ads.subscribers()} == {("envoy", "east")}


async def test_departed_subscribers_are_remembered_for_a_while() -> None:
    """A data plane that left may still carry payments by its last plan: it is named, ages, and is
    forgotten after `remember_ms`."""
    async with serving(remember_ms=60_000) as server:
        server.publish(1)
        async with peers(server, "gone") as (peer,):
            await peer.read()
            await peer.ack()
            await eventually(lambda: applied(server) == {"gone": 1}, "applied")
            assert server.ads.subscribers()[0].age_ms == 0
        await eventually(lambda: not server.ads._sessions, "departed")
        server.clock.ahead_ms += 30_000
        assert [s.age_ms >= 30_000 for s in server.ads.subscribers()] == [True]
        server.clock.ahead_ms += 31_000
        assert server.ads.subscribers() == ()
        assert REMEMBERED_MAX >= 1000


async def test_two_streams_of_one_name_count_as_the_slower() -> None:
    """A gRPC process opens a stream per target: a process has applied what all its streams applied."""
    async with serving() as server, peers(server, "same", "same") as (one, two):
        server.publish(1)
        for peer in (one, two):
            await peer.read()
            await peer.ack()
        await eventually(lambda: applied(server) == {"same": 1}, "both at 1")
        server.publish(2)
        await one.read()
        await one.ack()
        await two.read()
        await eventually(lambda: server.metrics.answers["ack-eds"] == 3, "one at 2")
        assert applied(server) == {"same": 1}


async def test_older_epochs_are_not_published() -> None:
    """Night 1: a delayed worker publishes an older plan. It is refused, the newer one stays."""
    async with serving() as server:
        assert server.publish(5)
        assert not server.publish(4)
        assert server.ads.snapshot is not None
        assert server.ads.snapshot.epoch == 5


async def test_number_of_streams_is_bounded() -> None:
    """The stream above the limit is refused with a reason; a free place is taken again."""
    async with serving(streams_max=1) as server:
        server.publish(1)
        async with peers(server, "first") as (first,):
            await first.read()
            async with silent_peers(server, "second") as (second,):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await second.call.read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "1 data planes are connected" in (refused.value.details() or "")
            assert server.metrics.reasons == {"full": 1}


async def test_restart_herd_is_admitted_at_a_bounded_rate() -> None:
    """Streams beyond the burst are told to come again; time gives new places."""
    async with serving(admit_burst=3, admit_per_s=1) as server:
        server.clock.freeze()
        server.publish(1)
        async with silent_peers(server, *"abcdef") as herd:
            for peer in herd[:3]:
                await peer.ask(EDS, "payments.alipay")
            answers = await asyncio.gather(
                *(peer.call.read() for peer in herd), return_exceptions=True
            )
        refused = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        assert len(refused) == 3
        assert {error.code() for error in refused} == {grpc.StatusCode.UNAVAILABLE}
        server.clock.ahead_ms += 1000
        async with peers(server, "later") as (later,):
            assert (await later.read()).version_info


async def test_slow_subscriber_is_dropped_and_others_are_not() -> None:
    """A client that reads nothing ends with the reason `slow`; another keeps receiving."""
    names = [f"channel-{i}" for i in range(400)]
    wide = dataplane(*names)

    def publish(epoch: int) -> None:
        routes = dict.fromkeys(names, WEIGHTS)
        server.ads.publish(Snapshot.build(plan_of(epoch, routes), wide))

    async with (
        serving(write_timeout_ms=200) as server,
        grpc.aio.insecure_channel(server.address) as link,
        grpc.aio.insecure_channel(
            server.address, options=(("grpc.use_local_subchannel_pool", 1),)
        ) as own_link,
    ):
        wanted = [f"payments.{name}" for name in names]
        slow = await Peer(link, "slow").ask(EDS, *wanted)
        quick = await Peer(own_link, "quick").ask(EDS, *wanted)
        epoch = 0
        async with asyncio.timeout(60):
            while not server.metrics.reasons["slow"]:
                epoch += 1
                publish(epoch)
                await quick.read()
        publish(epoch + 1)
        while (await quick.read()).version_info.partition(".")[0] != str(epoch + 1):
            pass
        assert server.metrics.reasons == {"slow": 1}
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await _drain(slow, [])
        assert ended.value.code() in {
            grpc.StatusCode.RESOURCE_EXHAUSTED,  # it began to read in time to hear why
            grpc.StatusCode.CANCELLED,
        }
        assert "slow: took no message for 200 ms" in server.events[-1].message
        slow.call.cancel()
        quick.call.cancel()


async def test_broken_client_ends_its_own_stream_only() -> None:
    """Too many names are INVALID_ARGUMENT with the field's name; other streams go on."""
    async with serving() as server, peers(server, "good", "bad") as (good, bad):
        server.publish(1)
        await good.read()
        await bad.ask(CDS, *(f"n{i}" for i in range(2000)))
        answers = [await bad.call.read()]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _drain(bad, answers)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "resource_names" in (refused.value.details() or "")
        server.publish(2)
        assert (await good.read()).version_info.startswith("2.")


async def test_plan_from_disk_serves_all_but_what_fails_closed() -> None:
    """After a restart without quorum the last plan is served, a single-writer channel is not,
    until the plan is confirmed."""
    config = dataplane(fail_closed=True)
    async with serving() as server, peers(server, "a") as (peer,):
        server.publish(7, config, confirmed=False)
        assert not _has_endpoints(await peer.read())
        await peer.ack()
        server.ads.confirm()
        assert _has_endpoints(await peer.read())


async def test_confirmations_that_stop_close_what_fails_closed() -> None:
    """A replica that loses its quorum closes single-writer channels at its own subscribers, after
    the same bound at which cut-off ones stop by themselves."""
    config = dataplane(fail_closed=True, stale_ms=400)
    async with serving() as server, peers(server, "a") as (peer,):
        server.clock.freeze()
        server.publish(1, config)
        assert _has_endpoints(await peer.read())
        await peer.ack()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(server.ads.run())
            await asyncio.sleep(0)  # it has seen the confirmation
            server.clock.ahead_ms += 401
            assert not _has_endpoints(await peer.read())
            watching.cancel()
        assert server.events[-1].kind == "xds_unconfirmed"


async def test_confirmation_renews_expiring_endpoints_only() -> None:
    """Channels that fail open are not sent again with every confirmation."""
    async with serving() as server, peers(server, "a") as (peer,):
        server.publish(1)
        await peer.read()
        await peer.ack()
        for _ in range(3):
            server.ads.confirm()
        server.publish(2)
        assert (await peer.read()).version_info.startswith("2.")


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ({"east": 9999}, "sum to 9999"),
        ({"east": 10_001, "north": -1}, "sum to 10000"),
        ({"west": 10_000}, "no endpoints"),
        ({}, "sum to 0"),
    ],
)
def test_bad_plans_never_become_a_snapshot(weights: dict[str, int], fault: str) -> None:
    """Never empty, never all-off: what does not add up is refused where it would be served."""
    with pytest.raises(InvalidInputError, match=fault):
        Snapshot.build(plan(1, weights), dataplane())


def test_plan_without_any_configured_channel_is_refused() -> None:
    """A plan that would empty every data plane is refused."""
    with pytest.raises(InvalidInputError, match="never empty"):
        Snapshot.build(plan(1, WEIGHTS, channel="other"), dataplane())


async def _drain(peer: Peer, answers: list[Any]) -> None:
    """Read until the stream ends with an error."""
    while True:
        answers.append(await peer.call.read())


def _has_endpoints(response: Any) -> bool:
    return any(
        endpoint_pb2.ClusterLoadAssignment.FromString(r.value).endpoints for r in response.resources
    )
