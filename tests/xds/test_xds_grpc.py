"""Stock proxyless gRPC obeys the same plan: weights, fences, lost regions, lost replicas."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from controlplane.adapters.xds_bootstrap import grpc_bootstrap
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.model.dataplane import (
    ChannelTraffic,
    DataPlane,
    Endpoint,
    Reaction,
    RegionEndpoints,
)
from controlplane.model.ids import ChannelName, RegionName
from tests.xds.grpc_client import METHOD
from tests.xds.lab import REGIONS, UNHURRIED, Lab, eventually, plan, plan_of


class Backend:
    """One region's gRPC service: answers its name, or hangs."""

    def __init__(self, region: str) -> None:
        self.region, self.arrivals, self.port = region, 0, 0
        self.resume = asyncio.Event()
        self.resume.set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> Backend:
        """Listen."""
        self._server = grpc.aio.server()
        service, _, method = METHOD.strip("/").partition("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(self._pay)}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def _pay(self, _request: bytes, _context: Any) -> bytes:
        self.arrivals += 1
        await self.resume.wait()
        return self.region.encode()

    async def stop(self) -> None:
        """Close the socket and all connections."""
        self.resume.set()
        if self._server:
            await self._server.stop(None)


class Client:
    """The child process with the stock client."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def pay(
        self, count: int, deadline_ms: int = 20_000, channel: str = "alipay"
    ) -> Counter[str]:
        """Make calls, all at once; return how many each region took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{count} {deadline_ms} {channel}\n".encode())
        line = await self._process.stdout.readline()
        return Counter(json.loads(line))


@pytest.fixture
async def backends() -> AsyncIterator[dict[str, Backend]]:
    """Return one service per region."""
    made = {region: await Backend(region).start() for region in REGIONS}
    yield made
    for backend in made.values():
        await backend.stop()


@asynccontextmanager
async def client(*servers: str) -> AsyncIterator[Client]:
    """Run the stock client with a generated bootstrap."""
    bootstrap = grpc_bootstrap(servers=servers, node_id="grpc-0", region="east")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.xds.grpc_client", stdin=PIPE, stdout=PIPE,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)},
    )  # fmt: skip
    try:
        yield Client(process)
    finally:
        process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


def dataplane(
    backends: dict[str, Backend], *channels: ChannelTraffic, **reaction: Any
) -> DataPlane:
    """Return the configuration that matches the services."""
    return DataPlane(
        regions=tuple(
            RegionEndpoints(
                region=RegionName(name),
                endpoints=(Endpoint(host="127.0.0.1", port=backend.port),),
            )
            for name, backend in sorted(backends.items())
        ),
        channels=channels or (ChannelTraffic(name=ChannelName("alipay"), **UNHURRIED),),
        reaction=Reaction(**reaction),
    )


async def applied(lab: Lab, epoch: int) -> None:
    """Wait until the gRPC client has applied an epoch."""
    await eventually(
        lambda: [(s.kind, s.applied_epoch) for s in lab.ads.subscribers()] == [("grpc", epoch)],
        f"epoch {epoch} applied by gRPC",
    )


async def goes_to(client: Client, wanted: set[str]) -> None:
    """Wait until calls reach exactly these regions."""

    async def reached() -> bool:
        return set(await client.pay(20)) == wanted

    await eventually(reached, f"calls go to {wanted}")


async def test_weights_and_fence(lab: Lab, backends: dict[str, Backend]) -> None:
    """Calls follow the weights, nothing reaches a region at 0, and the applied epoch is known."""
    config = dataplane(backends)
    lab.ads.publish(Snapshot.build(plan(1, {"east": 6000, "north": 4000, "south": 0}), config))
    async with client(lab.address) as stock:
        await goes_to(stock, {"east", "north"})
        await applied(lab, 1)
        found = await stock.pay(500)
        assert 200 < found["east"] < 400
        lab.ads.publish(Snapshot.build(plan(2, {"east": 0, "north": 0, "south": 10_000}), config))
        await applied(lab, 2)
        await goes_to(stock, {"south"})
        before = backends["east"].arrivals + backends["north"].arrivals
        assert await stock.pay(200) == {"south": 200}
        assert backends["east"].arrivals + backends["north"].arrivals == before


async def test_lost_live_region_does_not_leak(lab: Lab, backends: dict[str, Backend]) -> None:
    """With the only live region dead, calls fail as unavailable; the fenced regions get none."""
    weights = {"east": 0, "north": 0, "south": 10_000}
    lab.ads.publish(Snapshot.build(plan(1, weights), dataplane(backends)))
    async with client(lab.address) as stock:
        await goes_to(stock, {"south"})
        await backends["south"].stop()
        await goes_to(stock, {"error:UNAVAILABLE"})
        assert backends["east"].arrivals == backends["north"].arrivals == 0


async def test_hung_region_is_ejected(lab: Lab, backends: dict[str, Backend]) -> None:
    """A region that answers nothing is set aside by the client's outlier detection."""
    weights = {"east": 5000, "north": 5000, "south": 0}
    lab.ads.publish(Snapshot.build(plan(1, weights), dataplane(backends)))
    async with client(lab.address) as stock:
        await goes_to(stock, {"east", "north"})
        backends["east"].resume.clear()

        async def ejected() -> bool:
            return await stock.pay(10, 1000) == {"north": 10}

        await eventually(ejected, "hung region ejected")
        assert backends["south"].arrivals == 0


FOR_EVER = {"return_after_ms": 3_600_000, "ejection_max_ms": 3_600_000}


async def test_one_of_two_hung_regions_stays(lab: Lab, backends: dict[str, Backend]) -> None:
    """Calls that no region answers in time may be the provider's fault: one region is set aside,
    the other one is not, and takes calls as soon as it answers."""
    config = dataplane(backends, **FOR_EVER)
    lab.ads.publish(Snapshot.build(plan(1, {"east": 5000, "north": 5000, "south": 0}), config))
    async with client(lab.address) as stock:
        await goes_to(stock, {"east", "north"})
        for region in ("east", "north"):
            backends[region].resume.clear()
        await _ejected(stock, backends, {"east", "north"}, 1)
        await stock.pay(40, 500)
        for region in ("east", "north"):
            backends[region].resume.set()
        (found,) = (await stock.pay(40)).items()
        assert found in {("east", 40), ("north", 40)}


async def test_the_last_region_is_not_ejected(lab: Lab, backends: dict[str, Backend]) -> None:
    """Where the plan leaves one region, calls that it does not answer in time set nothing aside; and
    one that was set aside before is back with that plan."""
    config = dataplane(backends, **FOR_EVER)
    lab.ads.publish(Snapshot.build(plan(1, {"east": 5000, "north": 5000, "south": 0}), config))
    async with client(lab.address) as stock:
        await goes_to(stock, {"east", "north"})
        backends["north"].resume.clear()
        await _ejected(stock, backends, {"north"}, 1)
        lab.ads.publish(Snapshot.build(plan(2, {"east": 0, "north": 10_000, "south": 0}), config))
        await applied(lab, 2)
        for _ in range(5):
            assert set(await stock.pay(10, 500)) == {"error:DEADLINE_EXCEEDED"}
        backends["north"].resume.set()
        assert await stock.pay(10) == {"north": 10}


async def _ejected(stock: Client, backends: dict[str, Backend], hung: set[str], count: int) -> None:
    """Call until so many of the hung regions are not called any more."""

    async def done() -> bool:
        before = {region: backends[region].arrivals for region in hung}
        await stock.pay(40, 500)
        quiet = [region for region in hung if backends[region].arrivals == before[region]]
        return len(quiet) >= count

    await eventually(done, f"{count} of {hung} ejected")


async def test_control_plane_gone_and_back(lab: Lab, backends: dict[str, Backend]) -> None:
    """Without a control plane calls go on by the last plan; the newer one arrives with it."""
    config = dataplane(backends)
    lab.ads.publish(Snapshot.build(plan(1, {"east": 10_000}), config))
    async with client(lab.address) as stock:
        await goes_to(stock, {"east"})
        await lab.stop_serving()
        assert await stock.pay(50) == {"east": 50}
        lab.ads.publish(Snapshot.build(plan(2, {"east": 0, "north": 10_000}), config))
        await lab.serve()
        await goes_to(stock, {"north"})
        await applied(lab, 2)


async def test_a_channel_that_fails_closed(lab: Lab, backends: dict[str, Backend]) -> None:
    """Without a staleness bound in gRPC its replica closes a single-writer channel, calls fail as
    unavailable, no region gets one, another channel goes on; confirmed, it is open again."""
    config = dataplane(
        backends,
        ChannelTraffic(name=ChannelName("alipay"), **UNHURRIED),
        ChannelTraffic(name=ChannelName("ledger"), fail_closed=True, **UNHURRIED),
    )
    to_east = {name: {"east": 10_000} for name in ("alipay", "ledger")}
    made = Snapshot.build(plan_of(1, to_east), config)
    lab.ads.publish(made, confirmed=False)
    async with client(lab.address) as stock:
        assert await stock.pay(5) == {"east": 5}
        assert set(await stock.pay(5, channel="ledger")) == {"error:UNAVAILABLE"}
        assert backends["east"].arrivals == 5
        lab.ads.publish(made)

        async def opened() -> bool:
            return await stock.pay(5, channel="ledger") == {"east": 5}

        await eventually(opened, "open once confirmed")


async def test_first_replica_dead(lab: Lab, backends: dict[str, Backend]) -> None:
    """The generated bootstrap names all replicas in one target: a dead first one does not matter."""
    dead = await Backend("none").start()
    await dead.stop()
    lab.ads.publish(Snapshot.build(plan(1, {"north": 10_000}), dataplane(backends)))
    async with client(f"127.0.0.1:{dead.port}", lab.address) as stock:
        await goes_to(stock, {"north"})
