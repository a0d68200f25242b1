"""Whole replicas in this process, on a real etcd, with or without mutual TLS; and an agent's voice for each region."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc._cython import cygrpc

from controlplane import config
from controlplane.adapters.wire import timestamp
from controlplane.app import Replica
from controlplane.clock import SystemClock
from controlplane.dev.ca import DevelopmentCa, Identity
from controlplane.dev.process import free_ports
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc, agent_pb2, agent_pb2_grpc

REGIONS = ("east", "north", "south")
READY_S = 100
"""Only a hung replica needs that long."""


def settings(
    endpoints: list[str],
    directory: Path,
    ports: dict[str, tuple[int, int]],
    cluster: str,
    **tls: Any,
) -> dict[str, Any]:
    """The configuration all replicas share."""
    shares = {
        "east": ("primary", 7000, 6000),
        "north": ("standby", 2500, 4500),
        "south": ("dr", 500, 3000),
    }
    return {
        "cluster": {"name": cluster},
        "regions": {
            name: {
                "role": role,
                "share_bp": share,
                "capacity_tps": capacity,
                "replicas": [{"id": f"{name}-0", "grpc": f"127.0.0.1:{ports[name][0]}"}],
            }
            for name, (role, share, capacity) in shares.items()
        },
        "channels": {
            "alipay": {"regions": ["east", "north", "south"], "demand_tps": 2000},
            "unionpay": {"regions": ["east", "north"], "demand_tps": 600},
        },
        "coordination": {"endpoints": endpoints},
        "policy": {
            "tick_ms": 200,
            "report_interval_ms": 200,
            "ramp_step_ms": 400,
            "hold_down_ms": 1000,
        },
        "server": {"state_dir": str(directory)},
        **tls,
    }


@dataclass(slots=True)
class Lab:
    """Three replicas, their addresses, and how to talk to them."""

    directory: Path
    ca: DevelopmentCa | None
    ports: dict[str, tuple[int, int]]
    replicas: dict[str, Replica] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    talkers: list[asyncio.Task[None]] = field(default_factory=list)

    def address(self, region: str = "east") -> str:
        """GRPC address of a region's replica."""
        return f"127.0.0.1:{self.ports[region][0]}"

    def channel(self, region: str = "east", who: Identity | None = None) -> grpc.aio.Channel:
        """Open a channel, with a certificate when there is an authority."""
        if self.ca is None:
            return grpc.aio.insecure_channel(self.address(region))
        who = who or self.ca.issue("breakglass", "test")
        credentials = grpc.ssl_channel_credentials(
            who.ca.read_bytes(), who.key.read_bytes(), who.cert.read_bytes()
        )
        return grpc.aio.secure_channel(self.address(region), credentials)

    @contextlib.asynccontextmanager
    async def admin(self, region: str = "east", who: Identity | None = None) -> AsyncIterator[Any]:
        """Give an AdminService stub."""
        async with self.channel(region, who) as channel:
            yield admin_pb2_grpc.AdminServiceStub(channel)

    def leader(self) -> str | None:
        """Region of the replica that leads."""
        for region, replica in self.replicas.items():
            elector = getattr(replica, "elector", None)
            if not self.tasks[region].done() and elector and elector.leadership:
                return region
        return None

    async def stop(self, region: str) -> None:
        """End one replica as SIGTERM would."""
        self.replicas[region].stop()
        await self.tasks[region]

    async def talk(self, region: str) -> None:
        """Report for a region, all well, to its replica, until cancelled."""
        others = [name for name in REGIONS if name != region]
        who = self.ca.issue("agent", region, f"{region}-agent-0") if self.ca else None
        boot, seq = random.randrange(1, 1 << 40), 0
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with self.channel(region, who) as channel:
                    call = agent_pb2_grpc.AgentServiceStub(channel).Report()
                    while True:
                        seq += 1
                        await call.write(report(region, others, boot, seq))
                        if await call.read() is grpc.aio.EOF:
                            break
                        await asyncio.sleep(0.1)
            await asyncio.sleep(0.2)


def report(region: str, others: list[str], boot: int, seq: int) -> agent_pb2.ReportRequest:
    """A report of a region where all is well."""
    return agent_pb2.ReportRequest(
        agent_id=f"{region}-agent-0",
        region=region,
        boot=boot,
        seq=seq,
        sent_at=timestamp(SystemClock().wall_ms()),
        ingress=[
            agent_pb2.IngressReport(region=name, ok=seq, last_success_age_ms=10) for name in others
        ],
    )


@contextlib.asynccontextmanager
async def running(
    endpoints: list[str], directory: Path, cluster: str, *, redis: int = 0, tls: bool = False
) -> AsyncIterator[Lab]:
    """Three replicas with a plan, and agents that report."""
    found = free_ports(6)
    ports = {name: (found[2 * i], found[2 * i + 1]) for i, name in enumerate(REGIONS)}
    ca = DevelopmentCa(directory / "ca", SystemClock()) if tls else None
    lab = Lab(directory, ca, ports)
    try:
        for name in REGIONS:
            extra: dict[str, Any] = {}
            if redis:
                extra["locks"] = {"primary": f"127.0.0.1:{redis}"}
            if ca is not None:
                who = ca.issue("replica", name, f"{name}-0")
                extra["tls"] = {
                    "ca_file": str(who.ca),
                    "cert_file": str(who.cert),
                    "key_file": str(who.key),
                }
            data = settings(endpoints, directory / name, ports, cluster, **extra)
            data["cluster"] |= {"id": f"{name}-0", "region": name}
            data["server"] |= {
                "grpc_listen": lab.address(name),
                "http_listen": f"127.0.0.1:{ports[name][1]}",
            }
            replica = Replica(config.parse(yaml.safe_dump(data)), SystemClock())
            lab.replicas[name] = replica
            lab.tasks[name] = asyncio.ensure_future(replica.run())
            lab.talkers.append(asyncio.ensure_future(lab.talk(name)))
        async with asyncio.timeout(READY_S):
            while not await _healthy(lab):
                await asyncio.sleep(0.05)
        yield lab
    finally:
        for task in lab.talkers:
            task.cancel()
        for name, task in lab.tasks.items():
            lab.replicas[name].stop()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _healthy(lab: Lab) -> bool:
    for task in lab.tasks.values():
        if task.done():
            task.result()  # shows why it ended
    plans = [replica.board.plan for replica in lab.replicas.values()]
    everybody = all(_regions_heard(replica) == set(REGIONS) for replica in lab.replicas.values())
    return (
        everybody
        and lab.leader() is not None
        and all(
            plan is not None and all(s.verdict == "healthy" for s in plan.regions) for plan in plans
        )
    )


def _regions_heard(replica: Replica) -> set[str]:
    """Regions whose agents a replica knew of at its last tick, its own or by the others' digests."""
    loop = getattr(replica, "loop", None)  # there once it has connected
    evidence = loop.evidence if loop else None
    if evidence is None:
        return set()
    silent_after_ms = replica.topology.policy.silent_after_ms
    return {str(r.region) for r in evidence.regions if r.agents_heard(silent_after_ms)}


async def half_close(call: Any) -> None:
    """End the client's side of a stream. When the server ends the call in that moment there is nothing
    left to close, and the stock client raises an error of its core that says nothing of the status."""
    with contextlib.suppress(cygrpc.InternalError):
        await call.done_writing()


def mutation(**fields: Any) -> pb.Mutation:
    """What travels with a change in tests."""
    return pb.Mutation(**{"request_id": str(uuid.uuid4()), "reason": "test", **fields})
