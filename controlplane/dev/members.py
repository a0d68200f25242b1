"""The processes of the local topology: what each is started with, and how to see that it is ready.

A region's members are everything whose loss is the loss of that region: its etcd members, Redis,
Sentinel, gateway, replica and agent. Envoy and the payer belong to no region: they stand where the
shop stands.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from controlplane.adapters.xds_bootstrap import TlsPaths, envoy_bootstrap
from controlplane.dev.ca import SERVER_NAME
from controlplane.dev.layout import Layout
from controlplane.dev.process import Child, find_binary
from controlplane.dev.servers import etcd_args, redis_args
from controlplane.dev.settings import DATAPLANE, SERVICE_NAME, authority, config_file

SENTINEL_QUORUM = 2
SENTINEL_DOWN_AFTER_MS = 2000
SENTINEL_FAILOVER_TIMEOUT_MS = 10_000
# A primary that has lost both replicas takes no writes: nobody would have them after its death.
REDIS_SAFETY = (
    "--min-replicas-to-write", "1", "--min-replicas-max-lag", "2",
    "--maxmemory-policy", "noeviction",
)  # fmt: skip


# -P: the working directory is the user's and holds no module of ours
PYTHON = (sys.executable, "-P")


class Role(StrEnum):
    """What a process is."""

    ETCD = "etcd"
    REDIS = "redis"
    SENTINEL = "sentinel"
    GATEWAY = "gateway"
    REPLICA = "replica"
    AGENT = "agent"
    ENVOY = "envoy"
    PAYER = "payer"


class State(StrEnum):
    """What the kernel says of a process."""

    RUNNING = "running"
    HUNG = "hung"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process. `region` is empty for what belongs to no region; `port` answers when ready."""

    name: str
    role: Role
    region: str
    port: int
    child: Child

    @property
    def state(self) -> State:
        """Running, hung (stopped by a signal) or dead, whoever sent the signal."""
        if not self.child.alive:
            return State.DEAD
        try:
            stat = Path(f"/proc/{self.child.pid}/stat").read_text()
        except OSError:
            return State.DEAD
        return State.HUNG if stat.rpartition(")")[2].split()[0] in {"T", "t"} else State.RUNNING


def infrastructure(layout: Layout) -> list[Member]:
    """Return etcd and Redis of every region, and the gateways, which need nobody."""
    members = [_etcd(layout, name, region) for name, region in layout.etcd_members.items()]
    for region in layout.regions:
        members += [_redis(layout, region), _gateway(layout, region)]
    return members


def daemons(layout: Layout) -> list[Member]:
    """Weir itself and the Sentinels: they expect the infrastructure."""
    members = []
    for region in layout.regions:
        members += [_sentinel(layout, region), _weir(layout, region, Role.REPLICA)]
        members.append(_weir(layout, region, Role.AGENT))
    return members


def _etcd(layout: Layout, name: str, region: str) -> Member:
    content = layout.content
    args = etcd_args(
        name,
        layout.state_dir / "etcd",
        layout.etcd_ports,
        heartbeat_ms=content.etcd_heartbeat_ms,
        election_ms=content.etcd_election_ms,
    )
    child = Child(name, [find_binary("etcd"), *args], layout.log(name))
    port = layout.ports[f"{name}/client"]
    return Member(name=name, role=Role.ETCD, region=region, port=port, child=child)


def redis_argv(layout: Layout, region: str, replica_of: int) -> list[str]:
    """Return how to start a region's Redis below the primary on port `replica_of` (0: alone)."""
    data = layout.state_dir / "redis" / region
    data.mkdir(parents=True, exist_ok=True)
    port = layout.ports[f"redis-{region}/redis"]
    return [find_binary("redis-server"), *redis_args(port, data, replica_of), *REDIS_SAFETY]


def _redis(layout: Layout, region: str) -> Member:
    name = f"redis-{region}"
    primary = layout.regions[0]
    replica_of = 0 if region == primary else layout.ports[f"redis-{primary}/redis"]
    child = Child(name, redis_argv(layout, region, replica_of), layout.log(name))
    port = layout.ports[f"{name}/redis"]
    return Member(name=name, role=Role.REDIS, region=region, port=port, child=child)


def _sentinel(layout: Layout, region: str) -> Member:
    name = f"sentinel-{region}"
    port = layout.ports[f"{name}/redis"]
    primary = layout.ports[f"redis-{layout.regions[0]}/redis"]
    data = layout.state_dir / "redis" / name
    data.mkdir(parents=True, exist_ok=True)
    conf = data / "sentinel.conf"  # Sentinel writes into it what it learns
    conf.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {data}\n"
        f"sentinel monitor {SERVICE_NAME} 127.0.0.1 {primary} {SENTINEL_QUORUM}\n"
        f"sentinel down-after-milliseconds {SERVICE_NAME} {SENTINEL_DOWN_AFTER_MS}\n"
        f"sentinel failover-timeout {SERVICE_NAME} {SENTINEL_FAILOVER_TIMEOUT_MS}\n"
    )
    conf.chmod(0o600)
    child = Child(name, [find_binary("redis-server"), str(conf), "--sentinel"], layout.log(name))
    return Member(name=name, role=Role.SENTINEL, region=region, port=port, child=child)


def _gateway(layout: Layout, region: str) -> Member:
    name = f"gateway-{region}"
    port = layout.ports[f"{name}/http"]
    argv = [
        *PYTHON, "-m", "controlplane.dev.gateway",
        "--region", region,
        "--port", str(port),
        "--fault-port", str(layout.ports[f"{name}/fault"]),
        "--ledger", str(layout.ledgers / f"{region}.jsonl"),
    ]  # fmt: skip
    child = Child(name, argv, layout.log(name))
    return Member(name=name, role=Role.GATEWAY, region=region, port=port, child=child)


def _weir(layout: Layout, region: str, role: Role) -> Member:
    command, suffix = ("controlplane", "0") if role is Role.REPLICA else ("agent", "agent-0")
    name = f"{region}-{suffix}"
    argv = [
        *PYTHON, "-m", "controlplane.cli.main",
        command, "--config", str(config_file(layout, name)),
    ]  # fmt: skip
    child = Child(name, argv, layout.log(name))
    port = layout.ports[f"{name}/http"]
    return Member(name=name, role=role, region=region, port=port, child=child)


def _envoy_tls(layout: Layout) -> TlsPaths | None:
    folder = authority(layout)
    if not folder.exists():
        return None
    return TlsPaths(
        ca_file=str(folder / "ca.pem"),
        cert_file=str(folder / f"dataplane-{DATAPLANE}.pem"),
        key_file=str(folder / f"dataplane-{DATAPLANE}.key"),
        server_name=SERVER_NAME,
    )


def envoy(layout: Layout) -> Member:
    """Return the Envoy in front, which takes everything from any of the replicas over ADS."""
    bootstrap = envoy_bootstrap(
        servers=[layout.address(f"{region}-0/grpc") for region in layout.regions],
        listener_port=layout.ports["envoy/listener"],
        admin_port=layout.ports["envoy/admin"],
        node_id="weir-dev-envoy",
        tls=_envoy_tls(layout),
    )
    path = layout.state_dir / "config" / "envoy.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bootstrap, indent=1))
    argv = [
        find_binary("envoy"), "--config-path", str(path),
        # hot restart would keep files in shared memory, outside the state directory
        "--disable-hot-restart",
        "--concurrency", "2", "--log-level", "warning",
    ]  # fmt: skip
    child = Child("envoy", argv, layout.log("envoy"))
    port = layout.ports["envoy/admin"]
    return Member(name="envoy", role=Role.ENVOY, region="", port=port, child=child)


def payer(layout: Layout, rate_per_s: float) -> Member:
    """Return the payer, which sends through Envoy."""
    port = layout.ports["payer/http"]
    argv = [
        *PYTHON, "-m", "controlplane.dev.payer",
        "--target", layout.address("envoy/listener"),
        "--rate", f"{rate_per_s:g}",
        "--port", str(port),
        "--journal", str(layout.state_dir / "payer.jsonl"),
    ]  # fmt: skip
    child = Child("payer", argv, layout.log("payer"))
    return Member(name="payer", role=Role.PAYER, region="", port=port, child=child)
