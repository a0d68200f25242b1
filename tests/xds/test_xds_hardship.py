"""A real Envoy with what happens seldom: damaged files, a relay that restarts, a channel taken away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest

from agents.xds_files import CDS_FILE, LDS_FILE, RDS_FILE, XdsFiles, eds_file
from agents.xds_relay import AdsRelay
from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS
from controlplane.adapters.xds_bootstrap import envoy_bootstrap, envoy_files_bootstrap
from controlplane.adapters.xds_resources import EDS
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import SystemClock
from controlplane.dev.process import free_port
from controlplane.model.dataplane import ChannelTraffic
from controlplane.model.ids import ChannelName
from tests.xds.lab import UNHURRIED, Envoy, Lab, eventually, plan_of
from tests.xds.test_xds_leaks import explicit_zero, mutated

EAST = {"east": 10_000, "north": 0, "south": 0}
NORTH = {"east": 0, "north": 10_000, "south": 0}


def channel(name: str, **fields: Any) -> ChannelTraffic:
    """Return one channel."""
    return ChannelTraffic(name=ChannelName(name), **{**UNHURRIED, **fields})


async def goes_to(
    envoy: Envoy, http: aiohttp.ClientSession, name: str, answer: tuple[int, str]
) -> None:
    """Wait until payments of a channel are answered so: status and region."""

    async def reached() -> bool:
        return (await envoy.pay(http, name))[:2] == answer

    await eventually(reached, f"{name} is answered {answer}")


@pytest.mark.parametrize("name", [CDS_FILE, RDS_FILE, LDS_FILE, eds_file("alipay")])
async def test_damaged_file_is_mended_by_the_agent(
    lab: Lab, http: aiohttp.ClientSession, scratch: Path, name: str
) -> None:
    """Envoy starts cold while one of its files is cut off in the middle; an agent that starts later
    writes it anew, and Envoy takes it without a restart."""
    envoy, directory = Envoy("envoy-files", scratch), scratch / "xds"
    config, weights = lab.dataplane(channel("alipay")), plan_of(3, {"alipay": EAST})
    where = ("127.0.0.1", envoy.port)
    assert XdsFiles(directory, config, listener=where).write(weights, confirmed=True)
    whole = (directory / name).read_bytes()
    (directory / name).write_bytes(whole[: len(whole) // 2])
    bootstrap = envoy_files_bootstrap(
        directory=str(directory), admin_port=envoy.admin, node_id="envoy-files"
    )
    envoy.start("", bootstrap)
    lab.envoys.append(envoy)

    async def has_seen_it() -> bool:
        try:
            found = await envoy.stats(http, "update_(failure|rejected)$")
        except aiohttp.ClientError:
            return False
        return sum(found.values()) > 0

    await eventually(has_seen_it, f"Envoy has met the damaged file: {envoy.child.tail()}")
    assert XdsFiles(directory, config, listener=where).write(weights, confirmed=True)
    await envoy.ready(http)
    await goes_to(envoy, http, "alipay", (200, "east"))
    assert (directory / name).read_bytes() == whole


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"version_info": 7}', '{"version_info": "x"}', "\udcff"]
)
def test_nonsense_on_disk_does_not_stop_an_agent(lab: Lab, scratch: Path, content: str) -> None:
    """Whatever a file holds, the agent starts, and knows the newest epoch of the intact ones."""
    config = lab.dataplane(channel("alipay"), channel("bank"))
    where = ("127.0.0.1", 1)
    to_east = plan_of(3, {"alipay": EAST, "bank": EAST})
    XdsFiles(scratch, config, listener=where).write(to_east, confirmed=True)
    (scratch / eds_file("alipay")).write_bytes(content.encode(errors="surrogateescape"))
    again = XdsFiles(scratch, config, listener=where)
    assert again.epoch == 3
    assert again.write(to_east, confirmed=True)
    assert json.loads((scratch / eds_file("alipay")).read_text())["version_info"]


class Relay:
    """An agent's relay at one address; it may end and begin again with what its disk has."""

    def __init__(self, lab: Lab) -> None:
        self.port, self._lab, self._server = free_port(), lab, grpc.aio.server()

    async def begin(self, epoch: int, weights: dict[str, int]) -> AdsRelay:
        """Start with a plan from disk that nobody vouches for."""
        config = self._lab.dataplane(channel("alipay"), channel("ledger", fail_closed=True))
        made = AdsRelay(config, SystemClock())
        await made.take(plan_of(epoch, {"alipay": weights, "ledger": weights}), confirmed=False)
        options = (*ADS_SERVER_OPTIONS, ("grpc.so_reuseport", 0))
        self._server = grpc.aio.server(options=options)
        made.register(self._server)
        assert self._server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        await self._server.start()
        return made

    async def end(self) -> None:
        """End it: its clients lose their connections."""
        await self._server.stop(None)


async def test_relay_restarts_while_the_control_plane_is_gone(
    lab: Lab, http: aiohttp.ClientSession, scratch: Path
) -> None:
    """Its Envoy pays on, is not taken back by a disk that is older, and takes the newer plan; the
    single-writer channel stays closed as long as nobody has vouched for a plan."""
    await lab.stop_serving()
    node, envoy = Relay(lab), Envoy("envoy-node", scratch)
    first = await node.begin(3, EAST)
    try:
        bootstrap = envoy_bootstrap(
            servers=[f"127.0.0.1:{node.port}"], listener_port=envoy.port,
            admin_port=envoy.admin, node_id="envoy-node",
        )  # fmt: skip
        envoy.start("", bootstrap)
        lab.envoys.append(envoy)
        await envoy.ready(http)
        await goes_to(envoy, http, "alipay", (200, "east"))
        assert [s.applied_epoch for s in first.ads.subscribers()] == [3]
        for epoch, weights, then in ((2, NORTH, "east"), (4, NORTH, "north")):
            await node.end()
            assert (await envoy.pay(http))[:2] == (200, "east")
            relay = await node.begin(epoch, weights)
            await eventually(lambda now=relay: bool(now.ads._sessions), "Envoy is back")
            await goes_to(envoy, http, "alipay", (200, then))
            assert (await envoy.pay(http, "ledger"))[0] == 503
        assert lab.gateways["north"].arrivals["ledger"] == 0
        assert lab.gateways["east"].arrivals["ledger"] == 0
    finally:
        await node.end()


async def follower(lab: Lab, http: aiohttp.ClientSession, protocol: str) -> Envoy:
    """Start an Envoy that follows the laboratory's server by one of the two protocols."""
    envoy = Envoy("envoy-0", lab.directory)
    bootstrap = envoy_bootstrap(
        servers=[lab.address], listener_port=envoy.port, admin_port=envoy.admin, node_id="envoy-0"
    )
    bootstrap["dynamic_resources"]["ads_config"]["api_type"] = protocol
    envoy.start("", bootstrap)
    lab.envoys.append(envoy)
    await envoy.ready(http)
    return envoy


PROTOCOLS = ("GRPC", "DELTA_GRPC")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_refused_endpoints_then_good_ones(
    lab: Lab, http: aiohttp.ClientSession, protocol: str
) -> None:
    """Envoy refuses one epoch and takes the clusters and routes that came with it; the refusal is
    named until endpoints are taken, which puts the newest plan in force."""
    config = lab.dataplane(channel("alipay"))
    lab.ads.publish(Snapshot.build(plan_of(1, {"alipay": {"east": 5000, "north": 5000}}), config))
    envoy = await follower(lab, http, protocol)
    changed = lab.dataplane(channel("alipay", connect_timeout_ms=4000))
    to_north = Snapshot.build(plan_of(2, {"alipay": NORTH}), changed)
    lab.ads.publish(mutated(to_north, EDS, explicit_zero))

    def said() -> list[tuple[int, str]]:
        return [(s.applied_epoch, s.error[:4]) for s in lab.ads.subscribers()]

    await eventually(lambda: said() == [(1, "eds:")], "the refusal is named")
    lab.ads.publish(Snapshot.build(plan_of(3, {"alipay": NORTH}), changed))
    await eventually(lambda: said() == [(3, "")], "good endpoints are taken")
    await goes_to(envoy, http, "alipay", (200, "north"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_channel_is_taken_away_while_payments_flow(
    lab: Lab, http: aiohttp.ClientSession, protocol: str
) -> None:
    """A channel leaves the configuration: its payment under way is answered, later ones are told
    that they were not sent, another channel's go on, and it may come back."""
    both = lab.dataplane(channel("alipay"), channel("bank"))
    routes = {"alipay": EAST, "bank": EAST}
    lab.ads.publish(Snapshot.build(plan_of(1, routes), both))
    envoy = await follower(lab, http, protocol)
    await goes_to(envoy, http, "bank", (200, "east"))
    lab.gateways["east"].resume.clear()
    arrived = lab.arrivals("bank")["east"]
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(envoy.pay(http, "bank"))
        await eventually(lambda: lab.arrivals("bank")["east"] == arrived + 1, "under way")
        lab.ads.publish(Snapshot.build(plan_of(2, routes), lab.dataplane(channel("alipay"))))

        async def gone() -> bool:
            return "/bank/" not in await envoy.routes(http)

        await eventually(gone, "no route to bank")
        lab.gateways["east"].resume.set()
    assert slow.result()[:2] == (200, "east")
    await goes_to(envoy, http, "bank", (404, ""))
    assert (await envoy.pay(http, "bank"))[2]["x-weir-outcome"] == "not_sent"
    await goes_to(envoy, http, "alipay", (200, "east"))
    lab.ads.publish(Snapshot.build(plan_of(3, routes), both))
    await goes_to(envoy, http, "bank", (200, "east"))
