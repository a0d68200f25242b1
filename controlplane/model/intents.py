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
class Failback:
    """An earlier return of a region from the one outage that began at `since_ms` (attentive ms).

    `gates` are closed gates that the operator overrode for this return.
    """

    region: RegionName
    since_ms: int
    gates: tuple[str, ...] = ()


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
class Order:
    """What stands by an operator's word: who, why and until when. For people, never for decisions.

    `key` is the intent's kind and name; `kind` and `target` are told. Times are wall ms, 0 when not
    known; `was_until_ms` is the end it had before it was renewed. `overridden` are the safety rules
    it was set past, `revision` that of its key.
    """

    key: tuple[str, str]
    kind: str
    target: str
    by: str = ""
    reason: str = ""
    created_ms: int = 0
    expires_ms: int = 0
    was_until_ms: int = 0
    overridden: tuple[str, ...] = ()
    revision: int = 0
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Intents:
    """Everything asked for and not yet expired, sorted by region and by channel.

    `closed_gates` names gates (for example an unclean reconciliation) that forbid failback.
    `readiness` asks for nothing: it is what the rules are told of regions.
    """

    drains: tuple[Drain, ...] = ()
    overrides: tuple[Override, ...] = ()
    freeze: Freeze | None = None
    failback: tuple[Failback, ...] = ()
    closed_gates: tuple[str, ...] = ()
    readiness: tuple[Readiness, ...] = ()

    def recall(self, region: RegionName, since_ms: int) -> Failback | None:
        """Return the failback that was given for a region's outage since `since_ms`; one that was
        given for an earlier outage is over, however long it is kept."""
        return next(
            (back for back in self.failback if (back.region, back.since_ms) == (region, since_ms)),
            None,
        )

    def told_lag_ms(self, region: RegionName) -> int | None:
        """Return the replication lag that was told of a region; None when nobody did."""
        return next((told.lag_ms for told in self.readiness if told.region == region), None)


NO_INTENTS = Intents()
