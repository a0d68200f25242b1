"""The demo's layout, with every process at the address of its region.

Everything else (configuration files, port uses, content) is what `weir dev` uses: the laboratory
tests the product, not a copy of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from controlplane.adapters.xds_bootstrap import envoy_bootstrap, envoy_files_bootstrap
from controlplane.dev import settings
from controlplane.dev.content import Content, load_content
from controlplane.dev.layout import Layout, port_keys
from controlplane.dev.members import REDIS_SAFETY
from controlplane.dev.process import find_binary
from controlplane.dev.servers import redis_args
from tests.fabric.network import SHOP, Network

BASE_PORT = 20_000
FILES_PORT = 21_000
"""Listener of the Envoy that starts from files."""
FILES_ADMIN = 21_001


class Places(Layout):
    """A layout over several addresses."""

    __slots__ = ()
    network: Network = Network(("east", "north", "south"))

    def place(self, key: str) -> str:
        """Return where a process stands, from its name."""
        for word in key.partition("/")[0].split("-"):
            if word in self.network.places:
                return word
        return SHOP

    def address(self, key: str) -> str:
        """Return host:port of one use."""
        return f"{self.network.address(self.place(key))}:{self.ports[key]}"


def places(state_dir: Path) -> Places:
    """Choose ports; every place has its own, so they are fixed."""
    content: Content = load_content()
    ports = {key: BASE_PORT + number for number, key in enumerate(port_keys(content))}
    return Places(state_dir=state_dir, content=content, ports=ports)


def write_configs(layout: Places, policy: dict[str, Any]) -> None:
    """Write the daemons' configuration, as `weir dev` does."""
    settings.write_configs(layout, policy)
    for region in layout.regions:
        for name in (f"{region}-0", f"{region}-agent-0"):
            path = settings.config_file(layout, name)
            config = yaml.safe_load(path.read_text())
            if "agent" in config:
                listener = f"{layout.network.address(SHOP)}:{FILES_PORT}"
                config["agent"]["xds_listener"] = listener
            else:  # the laboratory's network is private to it, and it listens in as a subscriber
                config["server"]["allow_plaintext"] = True
            path.write_text(yaml.safe_dump(config, sort_keys=False))


def etcd_argv(layout: Places, name: str) -> list[str]:
    """Return how to start one member."""
    content = layout.content
    client, peer = (f"http://{layout.address(f'{name}/{use}')}" for use in ("client", "peer"))
    initial = ",".join(f"{m}=http://{layout.address(f'{m}/peer')}" for m in layout.etcd_members)
    return [
        find_binary("etcd"),
        f"--name={name}",
        f"--data-dir={layout.state_dir / 'etcd' / name}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={initial}",
        "--initial-cluster-state=new",
        "--initial-cluster-token=weir-lab",
        f"--heartbeat-interval={content.etcd_heartbeat_ms}",
        f"--election-timeout={content.etcd_election_ms}",
        "--log-level=warn",
    ]


def redis_argv(layout: Places, region: str) -> list[str]:
    """Return how to start a region's Redis."""
    key = f"redis-{region}/redis"
    data = layout.state_dir / "redis" / region
    data.mkdir(parents=True, exist_ok=True)
    host = layout.network.address(region)
    args = redis_args(layout.ports[key], data, 0)
    args[args.index("127.0.0.1")] = host
    primary = layout.regions[0]
    follow: tuple[str, ...] = ()
    if region != primary:
        follow = ("--replicaof", *layout.address(f"redis-{primary}/redis").split(":"))
    return [
        find_binary("redis-server"), *args, *REDIS_SAFETY, "--protected-mode", "no", *follow,
    ]  # fmt: skip


def gateway_argv(layout: Places, region: str) -> list[str]:
    """Return the module and arguments of a region's gateway."""
    name = f"gateway-{region}"
    return [
        "controlplane.dev.gateway",
        "--region", region,
        "--host", layout.network.address(region),
        "--port", str(layout.ports[f"{name}/http"]),
        "--fault-port", str(layout.ports[f"{name}/fault"]),
        "--ledger", str(layout.ledgers / f"{region}.jsonl"),
    ]  # fmt: skip


def weir_argv(layout: Places, command: str, name: str) -> list[str]:
    """Return the module and arguments of a daemon."""
    path = settings.config_file(layout, name)
    return ["controlplane.cli.main", command, "--config", str(path)]


def envoy_argv(layout: Places, *, files: bool = False) -> list[str]:
    """Return how to start the shop's Envoy, over ADS or from the files of east's agent."""
    shop = layout.network.address(SHOP)
    if files:
        document = envoy_files_bootstrap(
            directory=str(layout.state_dir / "xds" / layout.regions[0]),
            admin_host=shop, admin_port=FILES_ADMIN, node_id="shop-cold",
        )  # fmt: skip
    else:
        document = envoy_bootstrap(
            servers=[layout.address(f"{region}-0/grpc") for region in layout.regions],
            listener_host=shop, listener_port=layout.ports["envoy/listener"],
            admin_host=shop, admin_port=layout.ports["envoy/admin"], node_id="shop",
        )  # fmt: skip
    path = layout.state_dir / "config" / ("envoy-files.json" if files else "envoy.json")
    path.write_text(json.dumps(document))
    return [
        find_binary("envoy"), "--config-path", str(path), "--disable-hot-restart",
        "--concurrency", "1", "--log-level", "warning",
    ]  # fmt: skip
