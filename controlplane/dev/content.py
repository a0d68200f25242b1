"""The demo's content: which regions and channels the local topology has, and their figures.

`topology.yaml` beside this module is the only place with numbers; everything else (configuration of
the daemons, gateways, payer) is derived from it. Availability is not simulated: every failure seen
in the demo was caused by somebody, on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

_FILE = Path(__file__).with_name("topology.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRegion:
    """One region. `latency_ms` is its usual way to the providers."""

    name: str
    role: str
    share_bp: int
    latency_ms: int
    capacity_tps: int
    etcd_members: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoChannel:
    """One provider. Its own latency is lognormal with median `p50_ms` and 99th percentile
    `p99_ms`; `demand_tps` is its part of the peak."""

    name: str
    regions: tuple[str, ...]
    p50_ms: int
    p99_ms: int
    timeout_ms: int
    mix_pct: int
    demand_tps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything `topology.yaml` says."""

    regions: tuple[DemoRegion, ...]
    channels: tuple[DemoChannel, ...]
    etcd_heartbeat_ms: int
    etcd_election_ms: int

    def region(self, name: str) -> DemoRegion:
        """Return a region by name; KeyError when unknown."""
        return {region.name: region for region in self.regions}[name]

    def channel(self, name: str) -> DemoChannel:
        """Return a channel by name; KeyError when unknown."""
        return {channel.name: channel for channel in self.channels}[name]


@cache
def load_content() -> Content:
    """Read the content that is shipped with the package."""
    data = yaml.safe_load(_FILE.read_text())
    peak_tps = data["peak_tps"]
    return Content(
        regions=tuple(
            DemoRegion(
                name=name,
                role=region["role"],
                share_bp=region["share_pct"] * 100,
                latency_ms=region["latency_ms"],
                capacity_tps=region["capacity_tps"],
                etcd_members=data["etcd"]["members"][name],
            )
            for name, region in data["regions"].items()
        ),
        channels=tuple(
            DemoChannel(
                name=name,
                regions=tuple(channel["regions"]),
                p50_ms=channel["p50_ms"],
                p99_ms=channel["p99_ms"],
                timeout_ms=channel["timeout_ms"],
                mix_pct=channel["mix_pct"],
                demand_tps=peak_tps * channel["mix_pct"] // 100,
            )
            for name, channel in data["channels"].items()
        ),
        etcd_heartbeat_ms=data["etcd"]["heartbeat_ms"],
        etcd_election_ms=data["etcd"]["election_ms"],
    )
