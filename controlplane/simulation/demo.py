"""The demo's three regions and four channels, as values: what scenarios run on by default."""

from __future__ import annotations

from typing import Final

from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.topology import Channel, Policy, Region, Role, Topology

EAST: Final = RegionName("east")
NORTH: Final = RegionName("north")
SOUTH: Final = RegionName("south")


def demo_topology(policy: Policy | None = None) -> Topology:
    """East carries 70 %, North stands by, South is the last resort and serves two channels."""
    three, two = (EAST, NORTH, SOUTH), (EAST, NORTH)
    return Topology(
        regions=(
            Region(
                name=EAST,
                role=Role.PRIMARY,
                share_bp=7000,
                capacity_tps=6000,
                priority=1,
                latency_ms=48,
            ),
            Region(
                name=NORTH,
                role=Role.STANDBY,
                share_bp=2500,
                capacity_tps=4500,
                priority=2,
                latency_ms=65,
            ),
            Region(
                name=SOUTH,
                role=Role.DR,
                share_bp=500,
                capacity_tps=3000,
                priority=3,
                latency_ms=89,
            ),
        ),
        channels=(
            _channel("alipay", three, 1800, 120, 450),
            _channel("bank_direct", two, 120, 350, 1800),
            _channel("unionpay", two, 480, 220, 900),
            _channel("wechatpay", three, 1600, 140, 500),
        ),
        policy=policy or Policy(),
    )


def _channel(
    name: str, regions: tuple[RegionName, ...], demand_tps: int, p50_ms: int, p99_ms: int
) -> Channel:
    return Channel(
        name=ChannelName(name),
        regions=regions,
        demand_tps=demand_tps,
        p50_ms=p50_ms,
        p99_ms=p99_ms,
    )
