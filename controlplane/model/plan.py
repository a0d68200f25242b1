"""The plan: an immutable routing decision, and what else a decision says.

Times inside a plan are ms of attentive time (the decision knows no wall clock). `committed_at_ms`
is the wall clock of the commit, for people; the edge renders `since_ms` as `committed_at -
(decided_at - since)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from controlplane.model.ids import ChannelName, Epoch, RegionName, Term


class Phase(StrEnum):
    """Where a region stands."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    FAILED = "failed"
    RECOVERING = "recovering"


class Verdict(StrEnum):
    """What the quorum says of a region. Silence is unknown, not unhealthy."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Breaker(StrEnum):
    """State of a breaker: closed lets traffic flow, open lets none, half_open is probation."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Severity(StrEnum):
    """How much an event matters to a person."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One channel's weights, sorted by region, summing to exactly 10,000."""

    channel: ChannelName
    weights: tuple[tuple[RegionName, int], ...]
    shed_bp: int = 0
    reasons: tuple[str, ...] = ()

    def weight(self, region: RegionName) -> int:
        """Weight of a region in bp; 0 when it does not serve the channel."""
        for name, weight_bp in self.weights:
            if name == region:
                return weight_bp
        return 0


_Open: Any = type("_Open", (), {"__slots__": Route.__slots__})
"""A route whose fields may still be set: the same slots, so that it can become a `Route`."""


def routes(
    channels: Iterable[ChannelName],
    weights: Iterable[tuple[tuple[RegionName, int], ...]],
    shed_bp: Iterable[int],
    reasons: Iterable[tuple[str, ...]],
) -> Iterator[Route]:
    """Make routes as `Route(...)` does, in a fifth of its time.

    A failover makes one a channel within one tick, and what a frozen dataclass does to set four
    fields is then most of that tick: set first, frozen afterwards, it costs what any object costs.
    """
    for channel, named, shed, why in zip(channels, weights, shed_bp, reasons, strict=True):
        made = _Open()
        made.channel, made.weights, made.shed_bp, made.reasons = channel, named, shed, why
        made.__class__ = Route
        yield made


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionStatus:
    """What the plan says of one region; `since_ms` in attentive time."""

    name: RegionName
    phase: Phase = Phase.HEALTHY
    verdict: Verdict = Verdict.UNKNOWN
    drained: bool = False
    since_ms: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a region stands by the decision's own clock (attentive ms), which names its outage; a
    plan that was read back has wall times instead."""

    phase: Phase
    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerStatus:
    """What the plan says of one cell; times in attentive time."""

    region: RegionName
    channel: ChannelName
    state: Breaker = Breaker.CLOSED
    since_ms: int = 0
    open_until_ms: int | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalOverride:
    """What one replica changed for its own subscribers while nothing could be committed.

    `left_ms` is the time it still holds when this value is handed over; 0 ends it.
    """

    revision: int
    replica: str
    by: str
    reason: str
    expires_at_ms: int
    left_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An immutable routing decision: routes by channel, regions by name, breakers by (region,
    channel), all sorted."""

    epoch: Epoch
    term: Term = Term(0)
    decided_at_ms: int = 0
    committed_at_ms: int = 0
    routes: tuple[Route, ...] = ()
    regions: tuple[RegionStatus, ...] = ()
    breakers: tuple[BreakerStatus, ...] = ()
    frozen: bool = False
    panic: bool = False
    # never in a committed plan
    local: LocalOverride | None = None

    def route(self, channel: ChannelName) -> Route | None:
        """Return the route of a channel, or None."""
        for route in self.routes:
            if route.channel == channel:
                return route
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened in a decision. `kind` in snake_case; `data` holds numbers for
    machines."""

    kind: str
    message: str
    severity: Severity = Severity.INFO
    region: str = ""
    channel: str = ""
    data: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleStep:
    """One rule of the explanation of a route: its name, what it did in plain words, and the
    weights after it."""

    rule: str
    detail: str
    weights: tuple[tuple[RegionName, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverRecord:
    """One failover, timed in attentive ms from the first symptom; None where a stage is not
    reached.

    `outcome` is running, completed or reverted.
    """

    id: str
    region: RegionName
    kind: str
    cause: str
    symptom_ms: int
    suspected_ms: int | None = None
    decided_ms: int | None = None
    committed_ms: int | None = None
    converged_ms: int | None = None
    epoch: Epoch = Epoch(0)
    outcome: str = "running"
