"""What is configured and does not change by itself: regions, channels and the policy of the
decision.

The edge (`controlplane.config`) builds these from YAML and checks ranges; here they are plain
values, complete enough to replay a decision from its log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from controlplane.model.ids import ChannelName, RegionName

V = TypeVar("V")


class Role(StrEnum):
    """What a region is for; the order of spilling."""

    PRIMARY = "primary"
    STANDBY = "standby"
    DR = "dr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region. `share_bp` is its base share, `capacity_tps` what it can carry, `priority` the
    order of spilling; a `ready_` bound that is None is the policy's."""

    name: RegionName
    role: Role
    share_bp: int
    capacity_tps: int
    priority: int
    latency_ms: int = 0
    agents_expected: int = 1
    ready_queue: str | None = None
    ready_lag_max_ms: int | None = None
    ready_headroom_bp: int | None = None
    ready_drill_max_age_h: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a region must fulfil before a change may send more to it; a bound of 0 is not asked
    for."""

    queue: str
    lag_max_ms: int
    headroom_bp: int
    drill_max_age_h: int


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
    """Length of one tick: the leader folds, decides and commits once in each."""
    report_interval_ms: int = 500
    """Interval at which agents are expected to report."""
    ingress_interval_ms: int = 250
    """Interval at which agents probe the ingress of other regions: two samples a report."""
    up_margin_ms: int = 500
    """A vantage says UP while its last success is younger than three intervals plus this."""
    down_failures: int = 3
    """Failures in a row after which a vantage says DOWN."""
    silent_after_ms: int = 2000
    """Age of a region's newest report at which it counts as silent."""
    suspect_after_ms: int = 2000
    """Time without any sign of life after which a region is suspect."""
    suspect_evidence_nats: float = 22.0
    """Surprise (minus log of the chance) that the failures must reach before a suspicion."""
    fail_evidence_nats: float = 40.0
    """Surprise that the failures must reach before a region is failed."""
    recover_ms: int = 3000
    """Uninterrupted good evidence after which a suspicion is withdrawn."""
    warmup_ms: int = 15_000
    """A region never seen alive counts as silent only after this much attentive time."""
    removal_window_ms: int = 30_000
    """Within this time at most half of the regions are taken out."""
    # suspicion (Lifeguard): from suspect to failed, shrinking with confirmations
    suspicion_min_ms: int = 5000
    """From suspect to failed when every other region confirms."""
    suspicion_max_ms: int = 12_000
    """From suspect to failed when a single witness stands alone."""
    slow_failure_ms: int = 10_000
    """Duration of an ingress black hole or brown-out until the region is failed."""
    hold_down_ms: int = 30_000
    """Least quiet after a failure before a region may come back."""
    ramp_bp: tuple[int, ...] = (100, 500, 2500, 7000)
    """Steps of a region's return, as parts of its share."""
    ramp_step_ms: int = 10_000
    """Length of one step of the return."""
    # flap damping
    flap_penalty: int = 1000
    """Penalty that one failure adds to a region's damping."""
    flap_suspect_penalty: int = 500
    """Penalty that one move on suspicion adds."""
    flap_half_life_ms: int = 300_000
    """Time in which the penalty halves."""
    flap_suppress: int = 2000
    """Penalty at which a region is kept out."""
    flap_reuse: int = 750
    """Penalty below which it may come back."""
    flap_max_ms: int = 1_800_000
    """Longest time a region is kept out for flapping."""
    # breakers: open time doubles up to its bound
    breaker_open_ms: int = 10_000
    """First open time of a breaker; doubles with every trip."""
    breaker_open_max_ms: int = 60_000
    """Longest open time of a breaker."""
    breaker_max_open_bp: int = 5000
    """Share of the live regions of a channel whose breakers may be open at once."""
    breaker_false_alarm_ms: int = 1000 * 86_400_000
    """One false alarm of a cell's test in this time: 1000 days, so 33 cells have one a month."""
    trickle_bp: int = 100
    """What a half-open cell carries at most."""
    slow_factor: int = 3
    """A call is slow beyond this many times the learned median."""
    # weights
    utilisation_target_bp: int = 8000
    """Utilisation up to which a region is filled before spilling."""
    step_limit_bp: int = 250
    """Most a weight moves in one tick, unless a region is failed, drained or overloaded."""
    dead_band_bp: int = 50
    """Differences smaller than this move nothing."""
    # safety
    min_regions: int = 1
    """Regions that always keep traffic: the last ones are never drained."""
    ready_queue: str = "replication"
    """Queue whose lag, as a region's agents report it, is the region's replication lag."""
    ready_lag_max_ms: int = 0
    """Largest replication lag of a region that a change may send more to; 0 asks for none."""
    ready_headroom_bp: int = 0
    """Least headroom that a change must leave in a region it sends more to; 0 asks for none."""
    ready_drill_max_age_h: int = 0
    """Longest time since the last drill of a region that a change may send more to; 0: any."""
    max_failovers_per_h: int = 6
    """Regions failed (fenced) by evidence an hour; beyond it an operator decides. Weight still
    leaves on suspicion."""
    local_unwell_lag_ms: int = 500
    """Event-loop lag at which an observer disregards its own observations."""
    budget_ms: int = 30_000
    """Time from first symptom to applied everywhere that a failover may take."""


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

    def ready(self, region: Region) -> Ready:
        """Return what a region must fulfil: its own bounds over the policy's."""
        policy = self.policy
        return Ready(
            queue=_or(region.ready_queue, policy.ready_queue),
            lag_max_ms=_or(region.ready_lag_max_ms, policy.ready_lag_max_ms),
            headroom_bp=_or(region.ready_headroom_bp, policy.ready_headroom_bp),
            drill_max_age_h=_or(region.ready_drill_max_age_h, policy.ready_drill_max_age_h),
        )

    def channel(self, name: ChannelName) -> Channel:
        """Return a channel by name; KeyError when unknown."""
        for channel in self.channels:
            if channel.name == name:
                return channel
        raise KeyError(name)


def _or(own: V | None, common: V) -> V:
    return common if own is None else own
