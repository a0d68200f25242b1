"""What data planes need beyond the plan: where regions listen, and how each channel may be called.

A plan says how much of a channel goes where. It says nothing about addresses, deadlines or
retries: those are configuration, change rarely, and live here. `Snapshot.build(plan, dataplane)`
joins the two.

Rules
- A request is sent again only when it is known unsent (`Retry.UNSENT`), or when it carries an
  idempotency key and the channel honours such keys across regions (`Retry.IDEMPOTENT`).
- `fail_closed` marks a channel with a single writer: its endpoints expire at a subscriber that has
  not heard for the channel's `stale_after_ms` that the plan is still in force.
- `Reaction` is what a data plane does by itself, within a second, before the leader is sure. It
  only ever removes a region that does not answer; an answer, even a 5xx, is evidence about the
  provider and is the leader's to judge.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import ChannelName, RegionName, valid_name

PORT_MAX = 65_535
"""Highest TCP port."""


class Retry(StrEnum):
    """When a data plane may send a request again."""

    UNSENT = "unsent"
    IDEMPOTENT = "idempotent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address of a region's gateway: an IP address and a TCP port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise InvalidInputError(
                "endpoint.host", f"{self.host!r} is not an IP address; data planes resolve no names"
            ) from None
        if not 0 < self.port <= PORT_MAX:
            raise InvalidInputError("endpoint.port", f"{self.port} is not in 1..{PORT_MAX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionEndpoints:
    """Where one region takes payments."""

    region: RegionName
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTraffic:
    """How one channel may be called. Times in ms.

    `path_prefix` defaults to `/v1/channels/{name}/`. `total_timeout_ms` bounds a request with all
    its attempts, `per_try_timeout_ms` one attempt (0: the total). `stale_after_ms` bounds a
    channel that fails closed (0: the data plane's).
    """

    name: ChannelName
    connect_timeout_ms: int = 250
    per_try_timeout_ms: int = 0
    total_timeout_ms: int = 3000
    retry: Retry = Retry.UNSENT
    fail_closed: bool = False
    stale_after_ms: int = 0
    path_prefix: str = ""

    def __post_init__(self) -> None:
        if not valid_name(self.name):
            raise InvalidInputError("channel.name", f"{self.name!r} is not a name")
        if self.connect_timeout_ms <= 0 or self.total_timeout_ms <= 0:
            raise InvalidInputError(f"channels.{self.name}", "timeouts must be positive")
        if self.stale_after_ms < 0:
            raise InvalidInputError(f"channels.{self.name}.stale_after_ms", "must not be negative")
        if not 0 <= self.per_try_timeout_ms <= self.total_timeout_ms:
            raise InvalidInputError(
                f"channels.{self.name}.per_try_timeout_ms",
                f"{self.per_try_timeout_ms} is not in 0..{self.total_timeout_ms} (the total)",
            )

    @property
    def prefix(self) -> str:
        """Path prefix of its requests, ending in a slash."""
        return self.path_prefix or f"/v1/channels/{self.name}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """Local fast reaction of a data plane. Times in ms.

    A hang is noticed after at most `2 x (check_interval_ms + check_timeout_ms)` when `check_fall`
    is 2. A region that left returns only after `return_after_ms` of unbroken health, which is what
    keeps a flapping region from switching traffic with every flap.
    """

    check_path: str = "/healthz"
    check_interval_ms: int = 200
    check_timeout_ms: int = 200
    check_fall: int = 2
    return_after_ms: int = 3000
    eject_after_failures: int = 3
    ejection_ms: int = 1000
    ejection_max_ms: int = 10_000

    @property
    def check_rise(self) -> int:
        """Successful checks in a row until a region returns."""
        return max(1, -(-self.return_after_ms // self.check_interval_ms))


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlane:
    """Everything configured about data planes; regions and channels sorted by name."""

    regions: tuple[RegionEndpoints, ...]
    channels: tuple[ChannelTraffic, ...]
    reaction: Reaction = field(default_factory=Reaction)
    stale_after_ms: int = 2000
    max_requests: int = 16_384

    def __post_init__(self) -> None:
        seen: dict[Endpoint, RegionName] = {}
        for entry in self.regions:
            if not entry.endpoints:
                raise InvalidInputError(
                    f"regions.{entry.region}.endpoints", "a region needs one endpoint at least"
                )
            for endpoint in entry.endpoints:
                if endpoint in seen:
                    raise InvalidInputError(
                        f"regions.{entry.region}.endpoints",
                        f"{endpoint.host}:{endpoint.port} also belongs to {seen[endpoint]}; gRPC"
                        " refuses an address that is listed twice",
                    )
                seen[endpoint] = entry.region
        prefixes = [channel.prefix for channel in self.channels]
        if len(set(prefixes)) != len(prefixes):
            raise InvalidInputError("channels", "two channels share a path prefix")

    def bound_ms(self, channel: ChannelTraffic) -> int:
        """How long a channel may be used unconfirmed; 0 for one that fails open."""
        return (channel.stale_after_ms or self.stale_after_ms) if channel.fail_closed else 0

    def endpoints(self, region: RegionName) -> tuple[Endpoint, ...]:
        """Addresses of a region; empty when it is unknown."""
        for entry in self.regions:
            if entry.region == region:
                return entry.endpoints
        return ()
