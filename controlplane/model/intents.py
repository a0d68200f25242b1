"""What operators asked for. Intents live in etcd under leases, so that they expire even while
nobody leads."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.model.ids import ChannelName, RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take a region out of service: no new payment goes there, payments in flight finish.

    `immediate` (StartFailover) also fences the region and times it as a failover; `drill` marks a
    rehearsal of that.
    """

    region: RegionName
    reason: str
    by: str = ""
    immediate: bool = False
    drill: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """Fixed weights for a channel, sorted by region, summing to 10,000. Expires with its lease."""

    channel: ChannelName
    weights: tuple[tuple[RegionName, int], ...]
    reason: str
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """No automatic change."""

    reason: str
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """How far the replication of a region lags, as somebody says who knows; counts until
    `until_ms` (wall ms)."""

    region: RegionName
    lag_ms: int
    until_ms: int
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intents:
    """Everything asked for and not yet expired, sorted by region and by channel.

    `failback` lists regions for which an operator allows an earlier return; `closed_gates` names
    gates (for example an unclean reconciliation) that forbid automatic failback. `readiness` asks
    for nothing: it is what the rules are told of regions.
    """

    drains: tuple[Drain, ...] = ()
    overrides: tuple[Override, ...] = ()
    freeze: Freeze | None = None
    failback: tuple[RegionName, ...] = ()
    closed_gates: tuple[str, ...] = ()
    readiness: tuple[Readiness, ...] = ()

    def told_lag_ms(self, region: RegionName) -> int | None:
        """Return the replication lag that was told of a region; None when nobody did."""
        return next((told.lag_ms for told in self.readiness if told.region == region), None)


NO_INTENTS = Intents()
