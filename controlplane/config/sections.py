"""Sections of the configuration file: keys, types, ranges. The descriptions are the reference."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from controlplane.model.dataplane import Reaction
from controlplane.model.ids import FULL_BP, NAME
from controlplane.model.topology import Policy, Role

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}$")]
Bp = Annotated[int, Field(ge=0, le=FULL_BP)]
Ms = Annotated[int, Field(gt=0, le=86_400_000)]


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterSection(Section):
    """Who this process is. `id` and `region` usually come from the environment."""

    name: Name = Field("weir", description="Name of the cluster: prefix of every key in etcd.")
    id: Name | None = Field(None, description="Name of this replica or agent, unique.")
    region: Name | None = Field(None, description="Region this process lives in.")


class ReplicaSection(Section):
    """One replica of a region."""

    id: Name = Field(description="Name of the replica.")
    grpc: Address = Field(description="Where peers, agents and clients reach it, host:port.")
    http: Address | None = Field(None, description="Where its console and metrics are, host:port.")


class ProbeSection(Section):
    """How to probe one target."""

    kind: Literal["http", "https", "tcp", "grpc"] = Field("http", description="Kind of probe.")
    path: str = Field("/healthz", description="Path (http, https) or service name (grpc).")
    timeout_ms: Ms | None = Field(
        None, description="Deadline of one probe; below the interval when unset."
    )
    expect_status: tuple[int, int] = Field(
        (200, 399), description="Lowest and highest status that counts as success."
    )
    server_name: str | None = Field(None, description="Name in SNI and certificate (https, grpc).")
    ca_file: Path | None = Field(
        None, description="CA bundle (https, grpc); the system's if unset."
    )
    tls: bool = Field(False, description="Use TLS (grpc; https always does).")
    host: str | None = Field(None, description="Host header; the target's when unset.")


class TargetedProbe(ProbeSection):
    """A probe with its target."""

    target: Address = Field(description="host:port to probe.")


class RegionSection(Section):
    """One region of traffic and failure."""

    role: Role = Field(description="primary, standby or dr: the order of spilling.")
    share_bp: Bp = Field(description="Base share of every channel, in basis points.")
    capacity_tps: int = Field(gt=0, description="Payments per second it can carry.")
    priority: int | None = Field(
        None, ge=1, le=100, description="Order of spilling; by role if unset."
    )
    latency_ms: int = Field(0, ge=0, description="Usual latency to its providers, in ms.")
    agents_expected: int = Field(1, ge=0, le=100_000, description="Agents that should report.")
    replicas: tuple[ReplicaSection, ...] = Field((), description="Its control-plane replicas.")
    ingress: TargetedProbe | None = Field(
        None, description="How the other regions probe its ingress."
    )
    endpoints: tuple[Address, ...] = Field(
        (), description="Where data planes send payments for this region."
    )
    ready_queue: str | None = Field(
        None, description="policy.ready_queue for this region; the policy's if unset."
    )
    ready_lag_max_ms: int | None = Field(
        None, ge=0, description="policy.ready_lag_max_ms for this region; the policy's if unset."
    )
    ready_headroom_bp: Bp | None = Field(
        None, description="policy.ready_headroom_bp for this region; the policy's if unset."
    )
    ready_drill_max_age_h: int | None = Field(
        None,
        ge=0,
        description="policy.ready_drill_max_age_h for this region; the policy's if unset.",
    )


class ChannelProbe(ProbeSection):
    """How every region probes this channel; `targets` by region, or one `target` for all."""

    target: Address | None = Field(None, description="host:port to probe from every region.")
    targets: dict[Name, Address] = Field(
        default_factory=dict, description="host:port to probe, by region."
    )


class ChannelSection(Section):
    """One payment channel (provider)."""

    regions: tuple[Name, ...] = Field(min_length=1, description="Regions that may serve it.")
    demand_tps: int = Field(0, ge=0, description="Expected peak, payments per second.")
    timeout_ms: Ms = Field(3000, description="Deadline of one payment.")
    connect_timeout_ms: Ms = Field(250, description="Deadline to connect to a region's endpoint.")
    per_try_timeout_ms: int = Field(
        0, ge=0, le=600_000, description="Deadline of one attempt, in ms; 0: that of the payment."
    )
    p50_ms: Ms = Field(100, description="Usual median latency; seeds the learned baseline.")
    p99_ms: Ms = Field(1000, description="Usual 99th percentile; seeds the learned baseline.")
    single_writer: bool = Field(False, description="At most one region may write at a time.")
    on_isolation: Literal["fail_open", "fail_closed"] = Field(
        "fail_open", description="What a data plane cut off from Weir does with old weights."
    )
    endpoint_stale_after_ms: Ms = Field(
        2000, description="With fail_closed: how long a data plane cut off from Weir goes on."
    )
    retry_with_idempotency_key: bool = Field(
        False, description="Whether a request with an idempotency key may be sent twice."
    )
    probe: ChannelProbe | None = Field(None, description="Synthetic probe of the channel.")


class DataPlaneSection(Section):
    """What Envoy does by itself, within a second, before the leader is sure; pushed through CDS.

    Quick checks find a hung region soon and take a pause of the gateway (or of Envoy's own
    machine) for one.
    """

    check_path: str = Field(
        "/healthz", pattern=r"^/\S*$", description="Path that a region's endpoint answers with 200."
    )
    check_interval_ms: Ms = Field(200, description="Between two checks of an endpoint.")
    check_timeout_ms: Ms = Field(200, description="Deadline of one check.")
    check_fall: int = Field(2, ge=1, le=100, description="Failed checks until it is left.")
    return_after_ms: Ms = Field(
        3000, description="Unbroken health until it is used again; damps flapping."
    )
    eject_after_failures: int = Field(
        3, ge=1, le=1000, description="Requests in a row without an answer until it is ejected."
    )
    ejection_ms: Ms = Field(1000, description="First ejection; grows with each.")
    ejection_max_ms: Ms = Field(10_000, description="Longest ejection.")
    stale_after_ms: Ms = Field(
        2000, description="Silence of Weir after which a fail_closed channel stops."
    )
    max_requests: int = Field(
        16_384, ge=1, le=1_000_000, description="Requests under way per channel and Envoy."
    )

    @model_validator(mode="after")
    def _across(self) -> Self:
        if self.ejection_max_ms < self.ejection_ms:
            raise ValueError(
                f"ejection_max_ms: {self.ejection_max_ms} must be at least ejection_ms "
                f"({self.ejection_ms})"
            )
        return self

    def reaction(self) -> Reaction:
        """Build the reaction of every channel's cluster."""
        return Reaction(**self.model_dump(exclude={"stale_after_ms", "max_requests"}))


class CoordinationSection(Section):
    """etcd."""

    endpoints: tuple[Address, ...] = Field(description="etcd members, host:port.")
    lease_ttl_s: int = Field(5, ge=2, le=60, description="Lease of the leader key (slow path).")
    takeover_after_ms: Ms = Field(
        1500, description="Standstill of plan and heartbeat after which a candidate takes over."
    )
    attempt_timeout_ms: Ms = Field(700, description="Deadline of one attempt at one member.")
    username: str | None = Field(None, description="etcd user.")
    password_file: Path | None = Field(None, description="File with the etcd password.")
    tls: bool = Field(False, description="Use the tls section's files towards etcd.")


class LocksSection(Section):
    """Redis-backed locks."""

    primary: Address | None = Field(None, description="Redis primary, host:port.")
    sentinels: tuple[Address, ...] = Field((), description="Sentinels; they name the primary.")
    service_name: str = Field("weir", description="Name of the primary at the Sentinels.")
    mode: Literal["strict", "lineage"] = Field("strict", description="Default mode of a grant.")
    ttl_min_ms: Ms = Field(200, description="Shortest lease of a lock.")
    ttl_max_ms: Ms = Field(300_000, description="Longest lease of a lock.")
    wait_replicas: int = Field(0, ge=0, le=5, description="Replicas that must confirm a grant.")
    username: str | None = Field(None, description="Redis user.")
    password_file: Path | None = Field(None, description="File with the Redis password.")
    sentinel_username: str | None = Field(None, description="User at the Sentinels.")
    sentinel_password_file: Path | None = Field(
        None, description="File with the Sentinels' password."
    )
    tls: bool = Field(
        False, description="Use the tls section's files towards Redis and its Sentinels."
    )


class ServerSection(Section):
    """Where a replica listens."""

    grpc_listen: Address = Field("127.0.0.1:7700", description="gRPC, host:port.")
    http_listen: Address = Field("127.0.0.1:7780", description="HTTP, host:port.")
    state_dir: Path = Field(Path(".weir/state"), description="Last good plan and decision log.")
    grace_s: int = Field(10, ge=1, le=300, description="Longest drain after SIGTERM.")
    allow_plaintext: bool = Field(
        False, description="Listen without TLS on addresses other than loopback."
    )
    max_agents: int = Field(2000, ge=1, le=100_000, description="Most agent streams at once.")
    max_subscribers: int = Field(5000, ge=1, le=100_000, description="Most plan streams at once.")


class TlsSection(Section):
    """Mutual TLS. All three files or none."""

    ca_file: Path | None = Field(None, description="CA bundle that signed every peer.")
    cert_file: Path | None = Field(None, description="Certificate chain of this process.")
    key_file: Path | None = Field(None, description="Private key of this process.")

    @model_validator(mode="after")
    def _all_or_none(self) -> Self:
        files = (self.ca_file, self.cert_file, self.key_file)
        if any(files) and not all(files):
            raise ValueError("needs ca_file, cert_file and key_file together")
        return self

    @property
    def enabled(self) -> bool:
        """Whether mutual TLS is on."""
        return self.ca_file is not None


class AgentSection(Section):
    """A region's agent."""

    servers: tuple[Address, ...] = Field(
        (), description="Replicas to report to; the region's first, then all others, when empty."
    )
    interval_ms: Ms = Field(500, description="Interval of probes and reports.")
    http_listen: Address = Field("127.0.0.1:7790", description="HTTP, host:port.")
    grpc_listen: Address | None = Field(
        None, description="Serve the plan to local sidecars here, host:port (loopback, or TLS)."
    )
    state_dir: Path = Field(Path(".weir/agent"), description="Last good plan, highest epoch.")
    xds_dir: Path | None = Field(None, description="Write Envoy's xDS files here.")
    xds_listener: Address = Field(
        "127.0.0.1:10000", description="Where the Envoy of xds_dir takes payments, host:port."
    )
    outcomes_url: str | None = Field(
        None, description="Cumulative outcome counts of the local application, JSON over HTTP."
    )
    queues_url: str | None = Field(None, description="Queue lags in seconds, JSON over HTTP.")
    clock_reference: Address | None = Field(
        None, description="SNTP server to measure the clock offset against, host:port."
    )


class ReconciliationSection(Section):
    """Reconciliation after a failover."""

    tolerance_minor: int = Field(0, ge=0, description="Allowed difference, in minor units.")


class LogSection(Section):
    """Logs."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level.")
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: readable on a terminal, JSON otherwise."
    )


def _amount(value: object) -> bool:
    """Tell whether this is a finite number of at least 0; a blank of the file is None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value >= 0


def _shares(value: object) -> bool:
    """Tell whether this is a list of shares in basis points, not empty."""
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return all(type(share) is int and 0 <= share <= FULL_BP for share in value)


class PolicySection(Section):
    """Numbers of the decision; times in ms, shares in basis points. Defaults are model.Policy's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="after")
    def _known(self) -> Self:
        extra = self.model_extra or {}
        fields = Policy.__dataclass_fields__
        for key, value in extra.items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, 1)
                raise ValueError(
                    f"{key}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
                )
            default = fields[key].default
            kinds = (bool, str)
            if any(isinstance(default, kind) != isinstance(value, kind) for kind in kinds):
                raise ValueError(f"{key}: must be like {default!r}")
            if isinstance(default, int) and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{key}: must be a whole number of at least 0, not {value!r}")
            if isinstance(default, float) and not _amount(value):
                raise ValueError(f"{key}: must be a number of at least 0, not {value!r}")
            if isinstance(default, tuple) and not _shares(value):
                raise ValueError(f"{key}: must be a list like {list(default)}, not {value!r}")
        return self

    def build(self) -> Policy:
        """Return the policy; lists become tuples."""
        extra = self.model_extra or {}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()
        }
        return Policy(**values)
