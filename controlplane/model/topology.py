"""What is configured and does not change by itself: regions, channels and the policy of the
decision.

The edge (`controlplane.config`) builds these from YAML and checks ranges; here they are plain
values, complete enough to
replay a decision from its log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.model.ids import ChannelName, RegionName


class Role(StrEnum):
    """What a region is for; the order of spilling."""

    PRIMARY = "primary"
    STANDBY = "standby"
    DR = "dr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region. `share_bp` is its base share, `capacity_tps` what it can carry, `priority` the
    order of spilling."""

    name: RegionName
    role: Role
    share_bp: int
    capacity_tps: int
    priority: int
    latency_ms: int = 0
    agents_expected: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One channel: who serves it, its demand and its deadline."""

    name: ChannelName
    regions: tuple[RegionName, ...]
    demand_tps: int = 0
    timeout_ms: int = 3000
    p50_ms: int = 100
    p99_ms: int = 1000
    single_writer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Every number the decision uses. Times in ms of attentive time, shares in basis points.

    Defaults are the ones of docs/design.md; each is explained key by key in the configuration
    reference.
    """

    tick_ms: int = 500
    report_interval_ms: int = 500
    # a vantage says UP while its last success is younger than three intervals and the margin
    up_margin_ms: int = 500
    down_failures: int = 3
    silent_after_ms: int = 2000
    # suspicion (Lifeguard): from suspect to failed, shrinking with confirmations
    suspicion_min_ms: int = 5000
    suspicion_max_ms: int = 12_000
    slow_failure_ms: int = 10_000
    hold_down_ms: int = 30_000
    ramp_bp: tuple[int, ...] = (100, 500, 2500, 7000)
    ramp_step_ms: int = 10_000
    # flap damping
    flap_penalty: int = 1000
    flap_half_life_ms: int = 300_000
    flap_suppress: int = 2000
    flap_reuse: int = 750
    flap_max_ms: int = 1_800_000
    # breakers: open time doubles up to its bound
    breaker_open_ms: int = 10_000
    breaker_open_max_ms: int = 60_000
    breaker_max_open_bp: int = 5000
    slow_factor: int = 3
    # weights
    utilisation_target_bp: int = 8000
    step_limit_bp: int = 250
    dead_band_bp: int = 50
    # safety
    min_regions: int = 1
    max_failovers_per_h: int = 6
    local_unwell_lag_ms: int = 500
    budget_ms: int = 30_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The configured world, regions and channels sorted by name."""

    regions: tuple[Region, ...]
    channels: tuple[Channel, ...]
    policy: Policy = field(default_factory=Policy)

    def region(self, name: RegionName) -> Region:
        """Return a region by name; KeyError when unknown."""
        for region in self.regions:
            if region.name == name:
                return region
        raise KeyError(name)

    def channel(self, name: ChannelName) -> Channel:
        """Return a channel by name; KeyError when unknown."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        raise KeyError(name)
