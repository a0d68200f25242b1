"""Configuration files of the local topology's daemons, written from its content and layout.

Every process gets a whole file of its own, in the schema of `controlplane.config`, so that
`weir check-config` and a reload work on each as they would anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from controlplane.config import load
from controlplane.dev.ca import DevelopmentCa
from controlplane.dev.content import DemoChannel, DemoRegion
from controlplane.dev.layout import Layout
from controlplane.model.errors import InvalidInputError

SERVICE_NAME = "weir"
"""Name of the Redis primary at the Sentinels."""
GRACE_S = 2
"""How long a replica may take to say goodbye; nobody waits for it here."""
CONNECT_TIMEOUT_MS = 250
OPERATOR = "local"
DATAPLANE = "envoy"
"""Names of the identities of whoever uses the CLI here, and of Envoy (with --tls)."""

Json = dict[str, Any]


def base_config(layout: Layout) -> Json:
    """Return what all daemons share."""
    content = layout.content
    primary = content.regions[0].name
    return {
        "cluster": {"name": "weir-dev"},
        "regions": {region.name: _region(layout, region) for region in content.regions},
        "channels": {channel.name: _channel(layout, channel) for channel in content.channels},
        "coordination": {"endpoints": layout.etcd_endpoints},
        "locks": {
            "primary": layout.address(f"redis-{primary}/redis"),
            "sentinels": [layout.address(f"sentinel-{name}/redis") for name in layout.regions],
            "service_name": SERVICE_NAME,
        },
        "log": {"level": "info", "format": "json"},
    }


def _region(layout: Layout, region: DemoRegion) -> Json:
    name = region.name
    return {
        "role": region.role,
        "share_bp": region.share_bp,
        "capacity_tps": region.capacity_tps,
        "latency_ms": region.latency_ms,
        "agents_expected": 1,
        "replicas": [
            {
                "id": f"{name}-0",
                "grpc": layout.address(f"{name}-0/grpc"),
                "http": layout.address(f"{name}-0/http"),
            }
        ],
        "ingress": {"kind": "http", "target": layout.gateway(name), "path": "/healthz"},
        "endpoints": [layout.gateway(name)],
    }


def _channel(layout: Layout, channel: DemoChannel) -> Json:
    return {
        "regions": list(channel.regions),
        "demand_tps": channel.demand_tps,
        "timeout_ms": channel.timeout_ms,
        "connect_timeout_ms": CONNECT_TIMEOUT_MS,
        # the region's own way to the provider is part of what a payment there takes
        "p50_ms": channel.p50_ms + min(r.latency_ms for r in layout.content.regions),
        "p99_ms": channel.p99_ms + max(r.latency_ms for r in layout.content.regions),
        "probe": {
            "kind": "http",
            "path": f"/v1/channels/{channel.name}/probe",
            "targets": {name: layout.gateway(name) for name in channel.regions},
        },
    }


def replica_config(layout: Layout, region: str) -> Json:
    """Return the configuration of the region's replica."""
    name = f"{region}-0"
    config = base_config(layout)
    config["cluster"] |= {"id": name, "region": region}
    config["server"] = {
        "grpc_listen": layout.address(f"{name}/grpc"),
        "http_listen": layout.address(f"{name}/http"),
        "state_dir": str(layout.state_dir / "replica" / name),
        "grace_s": GRACE_S,
    }
    return config


def agent_config(layout: Layout, region: str) -> Json:
    """Return the configuration of the region's agent."""
    name = f"{region}-agent-0"
    config = base_config(layout)
    config["cluster"] |= {"id": name, "region": region}
    config["agent"] = {
        "http_listen": layout.address(f"{name}/http"),
        "state_dir": str(layout.state_dir / "agent" / name),
        "xds_dir": str(layout.state_dir / "xds" / region),
        "outcomes_url": f"http://{layout.gateway(region)}/outcomes",
        "queues_url": f"http://{layout.gateway(region)}/queues",
    }
    return config


def config_file(layout: Layout, name: str) -> Path:
    """Return where the configuration of one process lies."""
    return layout.state_dir / "config" / f"{name}.yaml"


def parse_policy(pairs: Iterable[str]) -> Json:
    """Read KEY=VALUE pairs of the policy; InvalidInputError when one is no pair."""
    policy: Json = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise InvalidInputError("--policy", f"must be KEY=VALUE, not {pair!r}")
        policy[key] = yaml.safe_load(value)
    return policy


def authority(layout: Layout) -> Path:
    """Return the folder of the development CA; it exists only with `--tls`."""
    return layout.state_dir / "ca"


def write_configs(layout: Layout, policy: Json, ca: DevelopmentCa | None = None) -> None:
    """Write every file and read it back as the daemon would: a fault shows here, not in a log.

    With a CA every daemon gets a certificate of its own, and the operator and Envoy theirs.
    """
    if ca is not None:
        ca.issue("breakglass", OPERATOR)
        ca.issue("dataplane", DATAPLANE)
    configs = {"weir": base_config(layout)}
    for region in layout.regions:
        configs[f"{region}-0"] = replica_config(layout, region)
        configs[f"{region}-agent-0"] = agent_config(layout, region)
    for name, config in configs.items():
        config["policy"] = policy
        if ca is not None and "region" in config["cluster"]:
            role = "replica" if "server" in config else "agent"
            who = ca.issue(role, config["cluster"]["region"], config["cluster"]["id"])
            config["tls"] = {
                "ca_file": str(who.ca),
                "cert_file": str(who.cert),
                "key_file": str(who.key),
            }
        path = config_file(layout, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        load(path)
