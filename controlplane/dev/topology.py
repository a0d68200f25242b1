"""topology.json: what runs where, for scripts, checks and the CLI."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

from controlplane.dev.cluster import Cluster
from controlplane.dev.members import Member, Role
from controlplane.dev.process import find_binary
from controlplane.dev.settings import OPERATOR, authority, config_file

_VERSION = re.compile(rb"\d+\.\d+\.\d+")


async def versions() -> dict[str, str]:
    """Ask etcd, Redis and Envoy for their versions."""
    names = {"etcd": "etcd", "redis": "redis-server", "envoy": "envoy"}
    found = await asyncio.gather(*(_version(find_binary(name)) for name in names.values()))
    return dict(zip(names, found, strict=True))


async def _version(binary: str) -> str:
    process = await asyncio.create_subprocess_exec(
        binary, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    match = _VERSION.search(out)
    return match.group().decode() if match else "unknown"


def describe(cluster: Cluster, of_servers: dict[str, str], redis_primary: int) -> dict[str, Any]:
    """Return the content of topology.json as pinned by the public contract, and our additions.

    `redis_primary` is the port of the Redis that is primary now.
    """
    layout = cluster.layout
    first = layout.regions[0]
    envoy = cluster.members["envoy"]
    ca = authority(layout)
    return {
        **({"tls": _operator(ca)} if ca.exists() else {}),
        "ready": True,
        "versions": of_servers,
        "etcd": layout.etcd_endpoints,
        "redis": {
            "primary": f"127.0.0.1:{redis_primary}",
            "all": [layout.address(f"redis-{region}/redis") for region in layout.regions],
            "sentinels": [layout.address(f"sentinel-{region}/redis") for region in layout.regions],
        },
        "replicas": [
            _process(m) | {"grpc": layout.address(f"{m.name}/grpc"), "http": _address(m)}
            for m in cluster.of_role(Role.REPLICA)
        ],
        "agents": [_process(m) | {"http": _address(m)} for m in cluster.of_role(Role.AGENT)],
        "regions": {
            region: {
                "pids": [member.child.pid for member in cluster.of_region(region)],
                "ingress": layout.gateway(region),
                "processes": {m.name: m.child.pid for m in cluster.of_region(region)},
            }
            for region in layout.regions
        },
        "envoy": {
            "pid": envoy.child.pid,
            "listener": layout.address("envoy/listener"),
            "admin": layout.address("envoy/admin"),
        },
        "payer": {"pid": cluster.members["payer"].child.pid, "http": layout.address("payer/http")},
        "ledgers": {region: str(layout.ledgers / f"{region}.jsonl") for region in layout.regions},
        "console": f"http://{layout.address(f'{first}-0/http')}/",
        "config": str(config_file(layout, "weir")),
        "pid": os.getpid(),
    }


def _operator(ca: Path) -> dict[str, str]:
    """Files with which the CLI speaks to the replicas (with --tls)."""
    return {
        "ca_file": str(ca / "ca.pem"),
        "cert_file": str(ca / f"breakglass-{OPERATOR}.pem"),
        "key_file": str(ca / f"breakglass-{OPERATOR}.key"),
    }


def _process(member: Member) -> dict[str, Any]:
    return {"id": member.name, "region": member.region, "pid": member.child.pid}


def _address(member: Member) -> str:
    return f"127.0.0.1:{member.port}"
