"""Others in the same laboratory: the same gateways, payer and faults, another thing in front.

HAProxy and Envoy alone stand where Weir's Envoy stands, with the regions' shares as weights. Each
has the settings people start with and the quickest ones that are reasonable. DNS balancers answer
the payer's own lookups.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from controlplane.adapters import xds_resources as shape
from controlplane.adapters.xds_clusters import health_check
from controlplane.dev.ledger import double_charges
from controlplane.dev.process import find_binary
from controlplane.model.dataplane import ChannelTraffic, Reaction
from controlplane.model.ids import ChannelName
from tests.fabric import places
from tests.fabric.figures import Run, last_due_ms, read_payments, slow, switches
from tests.fabric.lab import Lab, paying
from tests.fabric.network import SHOP
from tests.fabric.scenarios import EAST, hang, kill
from tests.fabric.scenarios import flap as flap_region

WARM_S = 4.0
CHECKS_S = 10.0
"""Longest interval between the checks of a peer."""
DNS_PORT = 5300
DNS_TARGET = 8080
"""Port of every gateway behind DNS, which gives no ports."""
FAULTS = {"killed": kill, "hung": hang, "flapping": flap_region}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Something in front of the regions: how its configuration is written and it is started."""

    name: str
    argv: Callable[[places.Places], list[str]]
    dns: bool = False
    watch_s: float = 45.0


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
    checks = health_check(reaction)
    checks.pop("http_health_check")
    return _envoy(layout, {**checks, "healthy_threshold": 2})


def _gdnsd(layout: places.Places, checks: str) -> list[str]:
    """Return gdnsd with weighted addresses; `up_thresh` lets it leave a region that has most."""
    base = layout.state_dir / "gdnsd"
    (base / "zones").mkdir(parents=True, exist_ok=True)
    host = layout.network.address(SHOP)
    weights = ", ".join(
        f"{name} => [{layout.network.address(name)}, {share}]" for name, _, share in _shares(layout)
    )
    (base / "config").write_text(
        f"options => {{ listen => {host}:{DNS_PORT}, run_dir => {base}/run,"
        f" state_dir => {base}/state }}\n"
        f"service_types => {{ pay => {{ plugin => http_status, port => {DNS_TARGET},"
        f" url_path => /healthz, {checks} }} }}\n"
        "plugins => { weighted => { service_types => pay, multi => false, up_thresh => 0.01,"
        f" pay => {{ {weights} }} }} }}\n"
    )
    (base / "zones" / "pay.test").write_text(
        "@ SOA ns hostmaster ( 1 7200 1800 259200 120 )\n@ NS ns\n"
        f"ns A {host}\ngw 1 DYNA weighted!pay\n"
    )
    return [find_binary("gdnsd"), "-c", str(base), "start"]


def gdnsd_default(layout: places.Places) -> list[str]:
    """Return gdnsd with its default checks: every 10 s, down after 10."""
    return _gdnsd(layout, "interval => 10, timeout => 3")


def gdnsd_aggressive(layout: places.Places) -> list[str]:
    """Return gdnsd with its quickest checks."""
    return _gdnsd(
        layout, "interval => 2, timeout => 1, up_thresh => 2, ok_thresh => 2, down_thresh => 1"
    )


def _pdns(layout: places.Places, interval_s: int, timeout_s: int, cache_s: int) -> list[str]:
    """Return PowerDNS with `ifurlup`: the first region that answers its check."""
    base = layout.state_dir / "pdns"
    base.mkdir(parents=True, exist_ok=True)
    host = layout.network.address(SHOP)
    regions = ", ".join(f"{{'{layout.network.address(name)}'}}" for name in layout.regions)
    (base / "pay.test.zone").write_text(
        "$ORIGIN pay.test.\n$TTL 1\n@ IN SOA ns hostmaster 1 7200 1800 259200 120\n"
        f"@ IN NS ns\nns IN A {host}\n"
        f"gw 1 IN LUA A \"ifurlup('http://gw.pay.test:{DNS_TARGET}/healthz',"
        f' {{ {regions} }}, {{ timeout={timeout_s} }})"\n'
    )
    (base / "named.conf").write_text(
        f'zone "pay.test" {{ type native; file "{base}/pay.test.zone"; }};\n'
    )
    (base / "pdns.conf").write_text("")
    return [
        find_binary("pdns_server"), f"--config-dir={base}", "--launch=bind",
        f"--bind-config={base}/named.conf", "--enable-lua-records=yes",
        f"--local-address={host}", f"--local-port={DNS_PORT}", f"--socket-dir={base}",
        "--daemon=no", "--guardian=no", "--disable-syslog=yes",
        f"--lua-health-checks-interval={interval_s}", f"--cache-ttl={cache_s}",
        f"--query-cache-ttl={cache_s}", "--version-string=anonymous",
    ]  # fmt: skip


def pdns_default(layout: places.Places) -> list[str]:
    """Return PowerDNS with its default checks and caches."""
    return _pdns(layout, 5, 2, 20)


def pdns_aggressive(layout: places.Places) -> list[str]:
    """Return PowerDNS with its quickest checks and no cache."""
    return _pdns(layout, 1, 1, 0)


# watched for well over the longest outage that was ever seen of each
PEERS = (
    Peer(name="haproxy-default", argv=haproxy_default, watch_s=25),
    Peer(name="haproxy-aggressive", argv=haproxy_aggressive, watch_s=12),
    Peer(name="envoy-typical", argv=envoy_typical, watch_s=60),
    Peer(name="envoy-aggressive", argv=envoy_aggressive, watch_s=12),
    Peer(name="gdnsd-default", argv=gdnsd_default, dns=True, watch_s=130),
    Peer(name="gdnsd-aggressive", argv=gdnsd_aggressive, dns=True, watch_s=15),
    Peer(name="pdns-default", argv=pdns_default, dns=True, watch_s=40),
    Peer(name="pdns-aggressive", argv=pdns_aggressive, dns=True, watch_s=12),
)


def phase_s(number: int) -> float:
    """Return how much later a run's fault comes than the first run's could: otherwise it would meet
    every peer's checks, which begin with the peer, at the same moment of their interval each time.
    Spread evenly over the interval by the golden ratio, however many runs there are."""
    return CHECKS_S * (number * 0.618034 % 1.0)


async def one(lab: Lab, peer: Peer, fault: str, number: int, rate: float) -> Run:
    """Run one peer through one fault."""
    layout = lab.layout
    layout.ledgers.mkdir(parents=True, exist_ok=True)
    try:
        path = await _bring_up(lab, peer, rate)
        await lab.until(lambda: paying(path), "payments succeed")
        await asyncio.sleep(2 * WARM_S + phase_s(number))
        t0_ms = lab.clock.monotonic_ms()
        await FAULTS[fault](lab)
        await asyncio.sleep(4.0 if fault == "flapping" else peer.watch_s)
        end_ms = lab.clock.monotonic_ms() - t0_ms
        await lab.stop_payers()
        payments = [p for p in read_payments(path, t0_ms) if p.due_ms <= end_ms]
    finally:
        await lab.close()
    run = Run(f"{peer.name}/{fault}", number, payments=payments)
    after = [p for p in payments if p.end_ms > 0]
    failed = [p for p in after if p.unanswered]
    run.figures = {
        "sent": sum(p.due_ms > 0 for p in payments),
        "failed": len(failed),
        "slow": slow(after),
        "outage_ms": max((p.due_ms for p in failed if p.due_ms > 0), default=0),
        "switches": switches(after, EAST, until_ms=last_due_ms(payments)),
        "double_charges": len(double_charges(sorted(layout.ledgers.glob("*.jsonl")))),
    }
    return run


async def _bring_up(lab: Lab, peer: Peer, rate: float) -> Path:
    """Start gateways, what stands in front, and the payer; wait until payments succeed."""
    layout = lab.layout
    for region in layout.regions:
        argv = places.gateway_argv(layout, region)
        if peer.dns:
            argv[argv.index("--port") + 1] = str(DNS_TARGET)
        lab.fork(f"gateway-{region}", region, argv)
    for region in layout.regions:
        port = DNS_TARGET if peer.dns else layout.ports[f"gateway-{region}/http"]
        address = f"{layout.network.address(region)}:{port}"
        await lab.until(lambda at=address: _serves(lab, at), f"gateway {region}")
    lab.start(peer.name, SHOP, peer.argv(layout))
    if not peer.dns:
        listener = layout.address("envoy/listener")
        await lab.until(lambda: _serves(lab, listener), f"{peer.name} serves")
        return lab.start_payer(rate, everywhere=True)
    await asyncio.sleep(WARM_S)  # a DNS server checks its targets before it answers well
    path = layout.state_dir / "payer.jsonl"
    argv = [
        "tests.fabric.dns_payer", layout.network.address(SHOP),
        str(DNS_PORT), "gw.pay.test", str(DNS_TARGET), f"{rate:g}", str(path),
    ]  # fmt: skip
    lab.fork("payer", SHOP, argv)
    return path


async def _serves(lab: Lab, address: str) -> bool:
    return await lab.ask(address, "/healthz") is not None
