"""Others in the same laboratory: the same gateways, payer and faults, another thing in front.

HAProxy and Envoy alone stand where Weir's Envoy stands, with the regions' shares as weights. Each
has the settings people start with and the quickest ones that are reasonable. DNS balancers answer
the payer's own lookups.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from controlplane.adapters import xds_resources as shape
from controlplane.dev.ledger import double_charges
from controlplane.dev.process import find_binary
from controlplane.model.dataplane import ChannelTraffic, Reaction
from controlplane.model.ids import ChannelName
from tests.fabric import places
from tests.fabric.figures import Run, read_payments, switches
from tests.fabric.lab import Lab
from tests.fabric.network import SHOP, Network
from tests.fabric.scenarios import EAST, hang, kill
from tests.fabric.scenarios import flap as flap_region

WARM_S = 4.0
WATCH_S: Mapping[str, float] = {"killed": 30, "hung": 45, "flapping": 4}
DRAIN_S = 9.0
FAULTS = {"killed": kill, "hung": hang, "flapping": flap_region}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Something in front of the regions: how its configuration is written and it is started."""

    name: str
    argv: Callable[[places.Places], list[str]]


def _shares(layout: places.Places) -> list[tuple[str, str, int]]:
    """Return (region, address of its gateway, share in percent: HAProxy weighs up to 256)."""
    return [(r.name, layout.gateway(r.name), r.share_bp // 100) for r in layout.content.regions]


def _listen(layout: places.Places) -> tuple[str, int]:
    return layout.network.address(SHOP), layout.ports["envoy/listener"]


def _haproxy(layout: places.Places, checks: str, server: str, retries: str) -> list[str]:
    host, port = _listen(layout)
    lines = [
        "global", "  maxconn 4000", "defaults", "  mode http", "  timeout connect 1s",
        "  timeout client 30s", "  timeout server 10s", *retries.splitlines(),
        "frontend payments", f"  bind {host}:{port}", "  default_backend regions",
        "backend regions", "  balance roundrobin", "  option httpchk GET /healthz", checks,
    ]  # fmt: skip
    lines += [
        f"  server {name} {address} weight {share} check {server}"
        for name, address, share in _shares(layout)
    ]
    path = layout.state_dir / "config" / "haproxy.cfg"
    path.write_text("\n".join(lines) + "\n")
    return [find_binary("haproxy"), "-W", "-db", "-f", str(path)]


def haproxy_default(layout: places.Places) -> list[str]:
    """Return HAProxy with the checks of its manual: every 2 s, down after 3."""
    return _haproxy(layout, "", "inter 2s fall 3 rise 2", "")


def haproxy_aggressive(layout: places.Places) -> list[str]:
    """Return HAProxy with quick checks and replay, which is unsafe for payments."""
    retries = "  retries 3\n  option redispatch 1\n  retry-on all-retryable-errors"
    return _haproxy(
        layout, "  timeout check 200ms", "inter 200ms fall 2 rise 2 on-marked-down"
        " shutdown-sessions", retries,
    )  # fmt: skip


def _envoy(layout: places.Places, checks: dict[str, Any]) -> list[str]:
    """Return Envoy alone: a static cluster with checks, no plan."""
    host, port = _listen(layout)
    cluster = {
        "name": "regions", "type": "STATIC", "connect_timeout": "0.25s",
        "lb_policy": "ROUND_ROBIN",
        "health_checks": [{**checks, "http_health_check": {"path": "/healthz"}}],
        "load_assignment": {
            "cluster_name": "regions",
            "endpoints": [{"lb_endpoints": [
                {"load_balancing_weight": share, "endpoint": {"address": {"socket_address": {
                    "address": address.rpartition(":")[0],
                    "port_value": int(address.rpartition(":")[2])}}}}
                for _, address, share in _shares(layout)
            ]}],
        },
    }  # fmt: skip
    route = {
        "name": "payments",
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
            "match": {"prefix": "/"},
            "route": {"cluster": "regions", "timeout": "10s", "retry_policy": {
                "retry_on": "connect-failure,refused-stream", "num_retries": 2,
                "retry_host_predicate": [{
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host."
                                     "previous_hosts.v3.PreviousHostsPredicate"}}]}},
        }]}],
    }  # fmt: skip
    listener = json_format.MessageToDict(
        shape.envoy_listener(host, port, [ChannelTraffic(name=ChannelName("any"))]),
        preserving_proto_field_name=True,
    )
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager.pop("rds")
    manager["route_config"] = route
    document = {
        "admin": {"address": {"socket_address": {
            "address": host, "port_value": layout.ports["envoy/admin"]}}},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }  # fmt: skip
    path = layout.state_dir / "config" / "envoy-alone.json"
    path.write_text(json.dumps(document))
    return [find_binary("envoy"), "-c", str(path), "--disable-hot-restart", "--concurrency", "1",
            "--log-level", "warning"]  # fmt: skip


def envoy_typical(layout: places.Places) -> list[str]:
    """Return Envoy with the checks of its examples."""
    checks = {"timeout": "5s", "interval": "10s", "unhealthy_threshold": 3, "healthy_threshold": 2}
    return _envoy(layout, {**checks, "no_traffic_interval": "10s"})


def envoy_aggressive(layout: places.Places) -> list[str]:
    """Return Envoy with Weir's intervals, and the usual return after two good checks."""
    reaction = Reaction()
    checks = shape._health_check(reaction)
    checks.pop("http_health_check")
    return _envoy(layout, {**checks, "healthy_threshold": 2})


PEERS = (
    Peer(name="haproxy-default", argv=haproxy_default),
    Peer(name="haproxy-aggressive", argv=haproxy_aggressive),
    Peer(name="envoy-typical", argv=envoy_typical),
    Peer(name="envoy-aggressive", argv=envoy_aggressive),
)


async def one(
    peer: Peer, fault: str, number: int, network: Network, state: Path, rate: float
) -> Run:
    """Run one peer through one fault."""
    layout = places.places(state)
    lab = Lab(layout, network)
    network.heal()
    layout.ledgers.mkdir(parents=True, exist_ok=True)
    (state / "config").mkdir(exist_ok=True)
    try:
        for region in layout.regions:
            lab.start_gateway(region)
        for region in layout.regions:
            await lab.until(lambda r=region: _serves(lab, layout.gateway(r)), f"gateway {region}")
        lab.start(peer.name, SHOP, peer.argv(layout))
        listener = layout.address("envoy/listener")
        await lab.until(lambda: _serves(lab, listener), f"{peer.name} serves")
        path = lab.start_payer(rate, everywhere=True)
        await asyncio.sleep(WARM_S)
        t0_ms = lab.clock.monotonic_ms()
        await FAULTS[fault](lab)
        await asyncio.sleep(WATCH_S[fault])
        end_ms = lab.clock.monotonic_ms() - t0_ms
        await asyncio.sleep(DRAIN_S)
        for child in lab.named("payer"):
            child.terminate()
            await asyncio.to_thread(child.wait_end, 3.0)
        payments = [p for p in read_payments(path, t0_ms) if p.due_ms <= end_ms]
    finally:
        await lab.close()
    run = Run(f"{peer.name}/{fault}", number, payments=payments)
    after = [p for p in payments if p.end_ms > 0]
    failed = [p for p in after if p.unanswered]
    run.figures = {
        "sent": sum(p.due_ms > 0 for p in payments),
        "failed": len(failed),
        "outage_ms": max((p.due_ms for p in failed if p.due_ms > 0), default=0),
        "switches": switches(after, EAST),
        "double_charges": len(double_charges(sorted(layout.ledgers.glob("*.jsonl")))),
    }
    return run


async def _serves(lab: Lab, address: str) -> bool:
    return await lab.ask(address, "/healthz") is not None
