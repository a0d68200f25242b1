"""The agent as node-local ADS server: its Envoy follows it, and it does not claim too much."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import grpc.aio
import pytest

from agents.xds_relay import AdsRelay
from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS
from controlplane.adapters.xds_bootstrap import envoy_bootstrap
from controlplane.clock import SystemClock
from controlplane.model.dataplane import DataPlane
from controlplane.model.errors import UnavailableError
from tests.xds.lab import Envoy, Lab, eventually, plan

EAST = {"east": 10_000, "north": 0, "south": 0}
NORTH = {"east": 0, "north": 10_000, "south": 0}


class Node:
    """One machine: an agent's relay and its Envoy."""

    def __init__(self, dataplane: DataPlane, scratch: Path) -> None:
        self.relay = AdsRelay(dataplane, SystemClock())
        self.envoy = Envoy("envoy-node", scratch)
        self._server = grpc.aio.server(options=ADS_SERVER_OPTIONS)

    async def start(self, lab: Lab) -> None:
        """Serve and start Envoy, which knows the relay only."""
        self.relay.register(self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        bootstrap = envoy_bootstrap(
            servers=[f"127.0.0.1:{port}"],
            listener_port=self.envoy.port,
            admin_port=self.envoy.admin,
            node_id="envoy-node",
        )
        self.envoy.start("", bootstrap)
        lab.envoys.append(self.envoy)

    async def stop(self) -> None:
        """Stop the relay."""
        await self._server.stop(None)


@pytest.fixture
async def node(lab: Lab, scratch: Path) -> AsyncIterator[Node]:
    """Return a machine without any replica: the laboratory's server is stopped."""
    await lab.stop_serving()
    (channel,) = lab.dataplane().channels
    made = Node(lab.dataplane(replace(channel, fail_closed=True)), scratch)
    try:
        yield made
    finally:
        await made.stop()


async def taken(node: Node, epoch: int, weights: dict[str, int]) -> None:
    """Offer a plan, as the agent does, until the machine's Envoy has applied it."""

    async def applied() -> bool:
        try:
            await node.relay.take(plan(epoch, weights), confirmed=True)
        except UnavailableError:
            return False
        return [s.applied_epoch for s in node.relay.ads.subscribers()] == [epoch]

    await eventually(applied, f"epoch {epoch} applied by the machine's Envoy")


async def test_plan_from_disk_then_from_a_replica(
    lab: Lab, node: Node, http: aiohttp.ClientSession
) -> None:
    """With no replica Envoy starts from the agent's plan, the single-writer channel closed until a
    replica vouches for it; a new plan is taken only when Envoy has applied it."""
    await node.relay.take(plan(3, EAST), confirmed=False)
    await node.start(lab)
    await node.envoy.ready(http)
    assert (await node.envoy.pay(http))[0] == 503

    async def open_again() -> bool:
        await taken(node, 3, EAST)
        return (await node.envoy.pay(http))[:2] == (200, "east")

    await eventually(open_again, "channel open once the plan is confirmed")
    await taken(node, 4, NORTH)


async def test_agent_does_not_claim_what_its_envoy_has_not_applied(
    lab: Lab, node: Node, http: aiohttp.ClientSession
) -> None:
    """A hung Envoy makes `take` raise with its name; awake, it applies the same plan."""
    await node.relay.take(plan(1, EAST), confirmed=True)
    await node.start(lab)
    await node.envoy.ready(http)
    await eventually(lambda: not node.relay.ads.laggards(), "first plan applied")
    node.envoy.child.pause()
    with pytest.raises(UnavailableError, match="envoy-node"):
        await node.relay.take(plan(2, NORTH), confirmed=True)
    node.envoy.child.resume()
    await taken(node, 2, NORTH)
