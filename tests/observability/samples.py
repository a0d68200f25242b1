"""A world of any size, filled: for the size and cost of /metrics."""

from __future__ import annotations

from controlplane.model.evidence import (
    CellCounters,
    Digest,
    Outcomes,
    RegionEvidence,
    Subscriber,
)
from controlplane.model.ids import ChannelName, Epoch, RegionName, ReplicaId
from controlplane.model.plan import BreakerStatus, Plan, RegionStatus, Route
from controlplane.model.topology import Channel, Region, Role, Topology

REGIONS = tuple(RegionName(name) for name in ("east", "north", "south"))


def topology(channels: int = 2, regions: tuple[RegionName, ...] = REGIONS) -> Topology:
    """Return regions x channels, every channel served everywhere."""
    return Topology(
        regions=tuple(
            Region(name=r, role=Role.PRIMARY, share_bp=3333, capacity_tps=1000, priority=i)
            for i, r in enumerate(regions, 1)
        ),
        channels=tuple(
            Channel(name=ChannelName(f"channel-{i:03d}"), regions=regions, demand_tps=10)
            for i in range(channels)
        ),
    )


def plan(of: Topology, epoch: int = 7) -> Plan:
    """Return a whole plan."""
    regions = tuple(r.name for r in of.regions)
    return Plan(
        epoch=Epoch(epoch),
        committed_at_ms=1_700_000_000_000,
        routes=tuple(
            Route(
                channel=c.name,
                weights=(
                    (regions[0], 10_000 - 3333 * (len(regions) - 1)),
                    *((r, 3333) for r in regions[1:]),
                ),
            )
            for c in of.channels
        ),
        regions=tuple(RegionStatus(name=r) for r in regions),
        breakers=tuple(
            BreakerStatus(region=r, channel=c.name) for r in regions for c in of.channels
        ),
    )


def evidence(of: Topology, outcomes: Outcomes | None = None) -> tuple[RegionEvidence, ...]:
    """Return one entry per region with every cell filled."""
    counted = outcomes or Outcomes(ok=123_456_789, error=1234, declined=56_789)
    return tuple(
        RegionEvidence(
            region=r.name,
            report_age_ms=120,
            agents_live=1,
            clock_offset_ms=3.0,
            queue_lag_s={"callbacks": 0.5},
            cells=tuple(
                CellCounters(channel=c.name, traffic=counted, probe=counted) for c in of.channels
            ),
        )
        for r in of.regions
    )


def digest(of: Topology, outcomes: Outcomes | None = None, replica: str = "east-0") -> Digest:
    """Return a digest of one replica that takes the reports of every region (the worst case)."""
    return Digest(
        replica=ReplicaId(replica),
        region=REGIONS[0],
        boot=1,
        seq=1,
        regions=evidence(of, outcomes),
        subscribers=(Subscriber(name="a", kind="agent"),),
    )
