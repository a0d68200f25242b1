"""Two of three regions dark, real processes (nights 4 and 5): one region alone serves and can be read, and moved for
its own data planes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from controlplane.adapters.xds_resources import EDS
from controlplane.dev.process import Child, free_ports
from controlplane.dev.servers import EtcdCluster, http_get, scratch_root, wait_until
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc, routing_pb2, routing_pb2_grpc
from tests.operate.lab import REGIONS, mutation, settings

DARK_S = 100
"""Only a hung process needs that long."""
GATEWAYS = {"east": 1001, "north": 1002, "south": 1003}


@dataclass
class World:
    """Three replicas and three etcd members as processes."""

    etcd: EtcdCluster
    replicas: dict[str, Child]
    grpc: dict[str, str]
    http: dict[str, int]
    directory: Path

    def status(self, region: str = "east") -> dict[str, Any]:
        """What a region's replica says of itself."""
        answer = http_get(self.http[region], "/api/status", 5)
        return json.loads(answer[1]) if answer else {}

    def go_dark(self, alone: str = "east") -> None:
        """Kill the other two: replicas and etcd members, as the loss of the regions does."""
        for name, member in zip(REGIONS, self.etcd.members, strict=True):
            if name != alone:
                self.replicas[name].kill()
                member.child.kill()
        wait_until(lambda: self.status(alone).get("coordinated") is False, "no quorum", DARK_S)

    def come_back(self) -> None:
        """Start the etcd member of North again: two of three are a quorum."""
        self.etcd.members[1].child.start()


@pytest.fixture
def world() -> Iterator[World]:
    """East, North and South with a committed plan."""
    directory = Path(tempfile.mkdtemp(prefix="weir-dark-", dir=scratch_root()))
    etcd = EtcdCluster(directory, size=3).start()
    found = free_ports(6)
    ports = {name: (found[2 * i], found[2 * i + 1]) for i, name in enumerate(REGIONS)}
    replicas = {}
    for name in REGIONS:
        data = settings(etcd.endpoints, directory / name, ports, "dark")
        data["cluster"] |= {"id": f"{name}-0", "region": name}
        data["channels"]["unionpay"]["single_writer"] = True
        for region, port in GATEWAYS.items():
            data["regions"][region]["endpoints"] = [f"127.0.0.1:{port}"]
        rpc, http = ports[name]
        data["server"] |= {"grpc_listen": f"127.0.0.1:{rpc}", "http_listen": f"127.0.0.1:{http}"}
        path = directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        argv = [sys.executable, "-m", "controlplane.cli.main", "controlplane", "--config", path]
        replicas[name] = Child(name, [str(a) for a in argv], directory / f"{name}.log").start()
    made = World(
        etcd,
        replicas,
        {name: f"127.0.0.1:{ports[name][0]}" for name in REGIONS},
        {name: ports[name][1] for name in REGIONS},
        directory,
    )
    try:
        wait_until(
            lambda: made.status().get("coordinated") is True and made.status()["plan_epoch"] > 0,
            "a plan",
            DARK_S,
        )
        yield made
    finally:
        for child in replicas.values():
            child.kill()
        etcd.stop()
        shutil.rmtree(directory, ignore_errors=True)


class DataPlane:
    """A subscriber of endpoints: remembers the version and weights it was sent last, acknowledging each."""

    def __init__(self) -> None:
        self.version = ""
        self.weights: dict[int, int] = {}
        self.changed = asyncio.Condition()

    async def follow(self, channel: grpc.aio.Channel) -> None:
        """Follow alipay's endpoints until cancelled."""
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources()
        request = discovery_pb2.DiscoveryRequest(
            type_url=EDS, resource_names=["payments.alipay"], node={"id": "dp-0"}
        )
        await call.write(request)
        while (answer := await call.read()) is not grpc.aio.EOF:
            (packed,) = answer.resources
            cla = endpoint_pb2.ClusterLoadAssignment.FromString(packed.value)
            async with self.changed:
                self.version = answer.version_info
                self.weights = {
                    lb.endpoint.address.socket_address.port_value: lb.health_status
                    and locality.load_balancing_weight.value
                    for locality in cla.endpoints
                    for lb in locality.lb_endpoints
                }
                self.changed.notify_all()
            request.version_info, request.response_nonce = answer.version_info, answer.nonce
            await call.write(request)

    async def until(self, what: Any) -> None:
        """Wait until `what(version)` holds."""
        async with asyncio.timeout(DARK_S), self.changed:
            await self.changed.wait_for(lambda: what(self.version))


@contextlib.asynccontextmanager
async def following(address: str) -> AsyncIterator[tuple[DataPlane, grpc.aio.Channel]]:
    """A data plane that has its first endpoints."""
    async with grpc.aio.insecure_channel(address) as channel:
        plane = DataPlane()
        task = asyncio.ensure_future(plane.follow(channel))
        try:
            await plane.until(bool)
            yield plane, channel
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await task


async def says(world: World, *args: str, code: int, words: str, at: str = "east") -> None:
    """Run the command line at a region until it ends with this code and says this; a starved replica may
    answer too late at first."""
    seen: tuple[int | None, str] = (None, "")
    try:
        async with asyncio.timeout(DARK_S):
            while seen[0] != code or words not in seen[1]:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "controlplane.cli.main", *args,
                    env={**os.environ, "WEIR_SERVER": world.grpc[at]},
                    stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                )  # fmt: skip
                out, _ = await process.communicate()
                seen = (process.returncode, out.decode())
    except TimeoutError:
        pytest.fail(f"{args}: {seen}")


@pytest.mark.timeout(300)
async def test_one_region_alone_can_be_moved_for_its_own_data_planes(world: World) -> None:
    """Without a quorum reads say so, a change for everybody explains what is possible instead, a local
    one moves this replica's data planes under the same epoch, obeys the rules, and ends with the quorum."""
    async with following(world.grpc["east"]) as (plane, channel):
        drain = ("drain", "south", "--reason", "test")
        await says(world, *drain, "--local", "--dry-run", code=3, words="coordinated")
        committed = plane.version
        epoch = int(committed.split(".")[0])
        await asyncio.to_thread(world.go_dark)

        await says(world, "status", code=0, words="NO ETCD QUORUM: last known good")
        no_quorum = "etcd has no quorum as east-0 sees it"
        await says(world, *drain, "--yes", code=4, words=no_quorum)
        # East's own member of etcd takes reads and never answers: nobody waits for it
        await says(world, "regions", code=0, words="standby")
        await says(world, "events", code=0, words="leader_elected")
        await says(world, "explain", "alipay", code=0, words="base_share")

        stub = admin_pb2_grpc.AdminServiceStub(channel)
        ask = pb.DrainRegionRequest(region="south", mutation=mutation(local=True, ttl_s=600))
        done = await stub.DrainRegion(ask)
        assert done.local
        assert (await stub.DrainRegion(ask)).id == done.id  # a repeat: one effect, one answer
        await plane.until(lambda version: ".local" in version)
        assert plane.version.startswith(f"{epoch}.")
        assert plane.weights.get(GATEWAYS["south"], 0) == 0
        await says(world, "status", code=0, words="LOCAL OVERRIDE")
        await says(world, "status", code=0, words="drain south: test")

        for request, rule in (
            (stub.DrainRegion(pb.DrainRegionRequest(
                region="east", mutation=mutation(local=True))), "single_writer"),
            (stub.Freeze(pb.FreezeRequest(mutation=mutation(local=True))), "local"),
        ):  # fmt: skip
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await request
            assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert rule in str(failed.value.trailing_metadata()), failed.value
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.DrainRegion(
                pb.DrainRegionRequest(region="south", mutation=mutation(local=True, ttl_s=1801))
            )
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT

        watch = routing_pb2_grpc.RoutingServiceStub(channel).WatchPlan(
            routing_pb2.WatchPlanRequest(subscriber="w", after_epoch=0)
        )
        first, over = await watch.read(), await watch.read()
        assert (first.epoch, first.HasField("local")) == (epoch, False)
        assert (over.epoch, over.local.replica) == (epoch, "east-0")
        assert 0 < over.local.left_ms <= 600_000
        assert sum(w.weight_bp for w in over.routes[0].weights) == 10_000
        watch.cancel()

        world.come_back()
        ended = plane.version
        await plane.until(lambda version: version != ended)
        assert plane.weights.get(GATEWAYS["south"], 0) > 0  # what was committed holds again
        await audited(world, done.id)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("alone", REGIONS)
async def test_night_4_any_region_alone_serves_and_is_operated(world: World, alone: str) -> None:
    """Nothing hidden depends on the sites that are gone: with both others dark, and after a restart of its own,
    each region's replica serves its data planes the last committed plan, answers, and moves what is its own."""
    wait_until(lambda: world.status(alone).get("plan_epoch", 0) > 0, "a plan", DARK_S)
    async with following(world.grpc[alone]) as (plane, _):
        committed, shares = plane.version, dict(plane.weights)
    await asyncio.to_thread(world.go_dark, alone)
    world.replicas[alone].kill()
    world.replicas[alone].start()
    wait_until(lambda: world.status(alone).get("plan_epoch", 0) > 0, "its last plan", DARK_S)
    async with following(world.grpc[alone]) as (plane, _):
        assert plane.weights == shares
        assert plane.version.split(".")[0] == committed.split(".")[0]
        await says(world, "status", code=0, words="NO ETCD QUORUM: last known good", at=alone)
        await says(world, "explain", "alipay", code=0, words="last known good", at=alone)
        ask = (
            "override",
            "alipay",
            "--weights",
            f"{alone}=10000",
            "--for",
            "10m",
            "--reason",
            "test",
        )
        await says(world, *ask, "--local", "--yes", code=0, words="", at=alone)
        await plane.until(lambda version: ".local" in version)
        assert {port for port, weight in plane.weights.items() if weight} == {GATEWAYS[alone]}


async def audited(world: World, op_id: str) -> None:
    """Wait until the record of the local override is in etcd, written after the quorum came back."""
    async with grpc.aio.insecure_channel(world.grpc["east"]) as channel, asyncio.timeout(DARK_S):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        while True:
            try:
                record = await stub.GetOperation(pb.GetOperationRequest(id=op_id))
                break
            except grpc.aio.AioRpcError:  # not written yet
                await asyncio.sleep(0.1)
    assert record.kind == "local_drain"
    assert "without a quorum" in record.message
