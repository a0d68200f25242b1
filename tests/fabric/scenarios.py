"""What goes wrong, one function each.

A scenario prepares (moves leaders where they must be lost), injects its fault at `t0`, and is
watched for `watch_s`. `victim` is the region that must lose its traffic; empty when none must.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from tests.fabric import places
from tests.fabric.lab import Lab, LabError
from tests.fabric.network import SHOP
from tests.fabric.places import FILES_PORT

EAST = "east"
GREY_CHANNEL = "alipay"
FLAP_S = 1.5
FLAP_FOR_S = 30.0
LEADER_ATTEMPTS = 12

Step = Callable[[Lab], Awaitable[None]]


async def _nothing(_lab: Lab) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One fault. `fails_region`: the victim must be declared failed. `reachable`: its own replica
    still has a quorum, so that it is a live subscriber that must follow. `watch_s` bounds the watch,
    which ends `OBSERVED_S` after the outcome is complete where one is due."""

    name: str
    about: str
    inject: Step
    prepare: Step = _nothing
    victim: str = EAST
    fails_region: bool = True
    moves_weight: bool = True
    reachable: bool = False
    watch_s: float = 35.0


async def kill(lab: Lab) -> None:
    """Kill every process of the region."""
    for child in lab.of(EAST):
        child.signal(signal.SIGKILL)


async def hang(lab: Lab) -> None:
    """Stop every process of the region; its sockets stay open."""
    for child in lab.of(EAST):
        child.pause()


async def isolate(lab: Lab) -> None:
    """Drop everything from and to the region."""
    lab.network.isolate(EAST)


async def silence(lab: Lab) -> None:
    """Drop everything from the region: it hears, nobody hears it."""
    lab.network.silence(EAST)


async def black_hole(lab: Lab) -> None:
    """Drop what goes to the region's gateway; its agent reports that all is well."""
    lab.network.black_hole(EAST, lab.layout.ports[f"gateway-{EAST}/http"])


async def grey(lab: Lab) -> None:
    """Let a provider fail and slow down behind one region."""
    lab.fault(EAST, GREY_CHANNEL, '{"errors": 0.3, "latency_ms": 900}')


async def flap(lab: Lab) -> None:
    """Hang and wake the region, 1.5 s each, for 30 s."""
    end_ms = lab.clock.monotonic_ms() + FLAP_FOR_S * 1000
    while lab.clock.monotonic_ms() < end_ms:
        await hang(lab)
        await asyncio.sleep(FLAP_S)
        for child in lab.of(EAST):
            child.resume()
        await asyncio.sleep(FLAP_S)


async def leader_to_east(lab: Lab) -> None:
    """Restart leading replicas elsewhere until east's replica leads."""
    for _ in range(LEADER_ATTEMPTS):
        leader = await lab.leader()
        if leader == EAST:
            await lab.until(lab.healthy, "healthy with the leader in the region to lose")
            return
        if leader:
            child = lab.children[f"{leader}-0"]
            await asyncio.to_thread(child.stop)
            child.process = None  # ended on purpose
            await lab.until(lambda gone=leader: _leads_elsewhere(lab, gone), "a new leader")
            child.start()
        await asyncio.sleep(0.5)
    raise LabError("east's replica never led")


async def _leads_elsewhere(lab: Lab, gone: str) -> bool:
    return await lab.leader() not in {"", gone}


async def etcd_leader_to_east(lab: Lab) -> None:
    """Move raft's leadership to a member of east."""
    target = lab.layout.address("etcd-east-0/client")
    for _ in range(LEADER_ATTEMPTS):
        leader = await lab.etcd_leader()
        if leader.startswith(f"etcd-{EAST}"):
            return
        if leader:
            status = await lab.ask(target, "/v3/maintenance/status", "POST", {})
            member = status["header"]["member_id"] if status else ""
            await lab.ask(
                lab.layout.address(f"{leader}/client"),
                "/v3/maintenance/transfer-leadership", "POST", {"targetID": member},
            )  # fmt: skip
        await asyncio.sleep(0.5)
    raise LabError("no member of east ever led etcd")


async def no_control_plane(lab: Lab) -> None:
    """Kill every replica, etcd member and Redis."""
    for child in lab.named("etcd-", "redis-", *(f"{region}-0" for region in lab.layout.regions)):
        child.signal(signal.SIGKILL)


async def cold_start(lab: Lab) -> None:
    """Kill the whole control plane and Envoy; start an Envoy from the agent's files alone, and pay
    through it."""
    await no_control_plane(lab)
    for child in lab.named("envoy", *(f"{region}-agent-0" for region in lab.layout.regions)):
        child.signal(signal.SIGKILL)
    lab.start("envoy-cold", SHOP, places.envoy_argv(lab.layout, files=True))
    target = f"{lab.network.address(SHOP)}:{FILES_PORT}"
    lab.start_payer(20, target, "payer-cold")


_ALL = (
    Scenario(name="region-killed", about="every process of east killed", inject=kill),
    Scenario(name="region-hung", about="every process of east stopped", inject=hang),
    Scenario(name="region-isolated", about="east cut off from everybody", inject=isolate),
    Scenario(name="one-way", about="east hears everybody, nobody hears east", inject=silence),
    Scenario(
        name="black-hole", about="the route to east's gateway leads nowhere", inject=black_hole,
        reachable=True,
    ),
    Scenario(
        name="provider-grey", about="alipay behind east: 30 % errors, 900 ms", inject=grey,
        fails_region=False, reachable=True,
    ),
    Scenario(
        name="flapping", about="east hangs 1.5 s, is well 1.5 s, for 30 s", inject=flap,
        fails_region=False, moves_weight=False, watch_s=4,
    ),
    Scenario(
        name="leader-lost", about="east hung, with the leading replica in it",
        prepare=leader_to_east, inject=hang,
    ),
    Scenario(
        name="etcd-leader-lost", about="east hung, with raft's leader in it",
        prepare=etcd_leader_to_east, inject=hang,
    ),
    Scenario(
        name="control-plane-gone", about="all replicas, etcd and Redis killed",
        inject=no_control_plane, victim="", fails_region=False, moves_weight=False, watch_s=15,
    ),
    Scenario(
        name="cold-start", about="no control plane, Envoy starts from files", inject=cold_start,
        victim="", fails_region=False, moves_weight=False, watch_s=10,
    ),
)  # fmt: skip
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
