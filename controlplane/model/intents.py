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
class Intents:
    """Everything asked for and not yet expired, sorted by region and by channel.

    `failback` lists regions for which an operator allows an earlier return; `closed_gates` names
    gates (for example an unclean reconciliation) that forbid automatic failback.
    """

    drains: tuple[Drain, ...] = ()
    overrides: tuple[Override, ...] = ()
    freeze: Freeze | None = None
    failback: tuple[RegionName, ...] = ()
    closed_gates: tuple[str, ...] = ()


NO_INTENTS = Intents()
