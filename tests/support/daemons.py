"""Three whole replicas as processes of their own on a real etcd, one a region, and agents that say all is well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml

from controlplane.dev.process import Child, free_ports
from controlplane.dev.servers import http_get
from controlplane.v1 import admin_pb2_grpc, routing_pb2, routing_pb2_grpc
from tests.operate.lab import REGIONS, Lab, settings
from tests.support.replicas import ROOT, until

READY_S = 300.0
"""Only a hung replica needs that long; on a starved machine a start takes a minute."""


@dataclass(slots=True)
class Daemons:
    """Replica processes by region; `lab` knows their addresses and speaks for the agents."""

    lab: Lab
    children: dict[str, Child] = field(default_factory=dict)
    talkers: list[asyncio.Task[None]] = field(default_factory=list)

    def status(self, region: str) -> dict[str, Any] | None:
        """What a replica says of itself; None when it does not answer."""
        answer = http_get(self.lab.ports[region][1], "/api/status", 2)
        return json.loads(answer[1]) if answer and answer[0] == 200 else None

    def ready(self, region: str) -> bool:
        """Whether a replica serves a plan."""
        answer = http_get(self.lab.ports[region][1], "/readyz", 2)
        return bool(answer and answer[0] == 200)

    async def ask(self, region: str, method: str, request: Any, timeout_s: float = 10) -> Any:
        """Call one method of a replica's AdminService; grpc.aio.AioRpcError when it refuses."""
        async with self.lab.channel(region) as channel:
            call = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
            return await call(request, timeout=timeout_s)

    async def drains(self, region: str) -> set[str]:
        """Regions that the plan in force, as a replica follows it, calls drained."""
        async with self.lab.channel(region) as channel:
            stub = routing_pb2_grpc.RoutingServiceStub(channel)
            plan = await stub.GetPlan(routing_pb2.GetPlanRequest(), timeout=30, wait_for_ready=True)
        return {s.name for s in plan.regions if s.drained}


@contextlib.asynccontextmanager
async def daemons(
    endpoints: list[str], directory: Path, cluster: str, **sections: dict[str, Any]
) -> AsyncIterator[Daemons]:
    """Start three replicas; `sections` are merged into their configuration."""
    found = free_ports(6)
    ports = {name: (found[2 * i], found[2 * i + 1]) for i, name in enumerate(REGIONS)}
    lab = Lab(directory, None, ports)
    group = Daemons(lab)
    try:
        for name in REGIONS:
            data = settings(endpoints, directory / name, ports, cluster)
            for section, values in sections.items():
                data[section] = {**data.get(section, {}), **values}
            data["cluster"] |= {"id": f"{name}-0", "region": name}
            data["server"] |= {
                "grpc_listen": lab.address(name),
                "http_listen": f"127.0.0.1:{ports[name][1]}",
            }
            path = directory / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(data))
            argv = [sys.executable, "-m", "controlplane.cli.main", "controlplane", "--config"]
            child = Child(
                name, [*argv, str(path)], directory / f"{name}.log",
                env={"GRPC_ENABLE_FORK_SUPPORT": "0"}, cwd=ROOT,
            )  # fmt: skip
            group.children[name] = child.start()
            group.talkers.append(asyncio.ensure_future(lab.talk(name)))
        for name in REGIONS:
            await until(lambda n=name: group.ready(n), f"{name} is ready", READY_S)
        yield group
    finally:
        for task in group.talkers:
            task.cancel()
        await asyncio.gather(*group.talkers, return_exceptions=True)
        for child in group.children.values():
            child.resume()
            child.kill()


def refused(error: grpc.aio.AioRpcError) -> bool:
    """Whether a replica said no, in contrast to saying nothing or nothing certain."""
    return error.code() in {
        grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.ABORTED,
    }  # fmt: skip
