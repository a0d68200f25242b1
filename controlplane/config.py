"""One YAML file for all daemons, with `WEIR_SECTION__KEY` environment variables over it.

Unknown keys are refused with file, line and the nearest known key; ranges are checked here, across
fields too, so that
a bad file changes nothing: a daemon refuses to start with it, and a reload keeps the last good
one. Secrets never stand
in this file: only names of files that hold them.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

from controlplane.model.dataplane import (
    ChannelTraffic,
    DataPlane,
    Endpoint,
    Reaction,
    RegionEndpoints,
    Retry,
)
from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import FULL_BP, NAME, ChannelName, RegionName
from controlplane.model.topology import Channel, Policy, Region, Role, Topology

Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
Address = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:/\s]+):\d{1,5}$")]
Bp = Annotated[int, Field(ge=0, le=FULL_BP)]
Ms = Annotated[int, Field(gt=0, le=86_400_000)]

ENV_PREFIX = "WEIR_"
_CLI_ENV = {
    "WEIR_CONFIG", "WEIR_SERVER", "WEIR_STATE_DIR",
    "WEIR_CA_FILE", "WEIR_CERT_FILE", "WEIR_KEY_FILE",
}  # fmt: skip
# Kubernetes puts these into every pod for a Service named weir or weir-…; they are not ours
_SERVICE_LINK = re.compile(
    r"[A-Z0-9_]+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)
_PRIORITY = {Role.PRIMARY: 1, Role.STANDBY: 2, Role.DR: 3}


class ConfigError(InvalidInputError):
    """The configuration is refused. The message has file, line, key and remedy, one line per
    fault."""

    def __init__(self, source: str, faults: list[str]) -> None:
        super().__init__(source, "\n".join(faults))
        self.faults = faults

    def __str__(self) -> str:
        """One line per fault."""
        return "\n".join(self.faults)


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
    p50_ms: Ms = Field(100, description="Usual median latency; seeds the learned baseline.")
    p99_ms: Ms = Field(1000, description="Usual 99th percentile; seeds the learned baseline.")
    single_writer: bool = Field(False, description="At most one region may write at a time.")
    on_isolation: Literal["fail_open", "fail_closed"] = Field(
        "fail_open", description="What a data plane cut off from Weir does with old weights."
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
    tls: bool = Field(False, description="Use the tls section's files towards Redis.")


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
            if isinstance(default, bool) != isinstance(value, bool):
                raise ValueError(f"{key}: must be like {default!r}")
            if isinstance(default, int) and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{key}: must be a whole number of at least 0, not {value!r}")
        return self

    def build(self) -> Policy:
        """Return the policy; lists become tuples."""
        extra = self.model_extra or {}
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in extra.items()
        }
        return Policy(**values)


class _WeirEnv(EnvSettingsSource):
    """Environment over the file, without the CLI's own variables."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {
            key: value
            for key, value in super()._load_env_vars().items()
            if key.upper() not in _CLI_ENV
        }


class WeirConfig(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        case_sensitive=False,
    )

    cluster: ClusterSection = ClusterSection()
    regions: dict[Name, RegionSection] = Field(min_length=1)
    channels: dict[Name, ChannelSection] = Field(min_length=1)
    policy: PolicySection = PolicySection()
    data_plane: DataPlaneSection = DataPlaneSection()
    coordination: CoordinationSection
    locks: LocksSection = LocksSection()
    server: ServerSection = ServerSection()
    tls: TlsSection = TlsSection()
    agent: AgentSection = AgentSection()
    reconciliation: ReconciliationSection = ReconciliationSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file (passed as init)."""
        return _WeirEnv(settings_cls), init_settings

    @model_validator(mode="after")
    def _across(self) -> Self:
        policy = self.policy.build()
        if self.coordination.takeover_after_ms * 2 < 5 * policy.tick_ms:
            raise ValueError(
                f"coordination.takeover_after_ms: {self.coordination.takeover_after_ms} must be at "
                f"least 2.5 ticks ({5 * policy.tick_ms // 2} ms): a leader would be deposed for "
                "one late tick"
            )
        shares = sum(region.share_bp for region in self.regions.values())
        if shares != FULL_BP:
            raise ValueError(f"regions: share_bp must sum to {FULL_BP}, not {shares}")
        for name, channel in self.channels.items():
            for region in channel.regions:
                if region not in self.regions:
                    raise ValueError(
                        f"channels.{name}.regions: unknown region {region!r}; "
                        f"known: {', '.join(sorted(self.regions))}"
                    )
        if self.cluster.region is not None and self.cluster.region not in self.regions:
            raise ValueError(f"cluster.region: unknown region {self.cluster.region!r}")
        return self

    def topology(self) -> Topology:
        """Build the decision's view of the world."""
        regions = tuple(
            Region(
                name=RegionName(name),
                role=r.role,
                share_bp=r.share_bp,
                capacity_tps=r.capacity_tps,
                priority=r.priority or _PRIORITY[r.role],
                latency_ms=r.latency_ms,
                agents_expected=r.agents_expected,
            )
            for name, r in sorted(self.regions.items())
        )
        channels = tuple(
            Channel(
                name=ChannelName(name),
                regions=tuple(RegionName(r) for r in sorted(c.regions)),
                demand_tps=c.demand_tps,
                timeout_ms=c.timeout_ms,
                p50_ms=c.p50_ms,
                p99_ms=c.p99_ms,
                single_writer=c.single_writer,
            )
            for name, c in sorted(self.channels.items())
        )
        return Topology(regions=regions, channels=channels, policy=self.policy.build())

    def dataplane(self) -> DataPlane | None:
        """Build the data planes' view; None unless every region says where it takes payments."""
        if not all(region.endpoints for region in self.regions.values()):
            return None
        regions = tuple(
            RegionEndpoints(
                region=RegionName(name),
                endpoints=tuple(_endpoint(address) for address in region.endpoints),
            )
            for name, region in sorted(self.regions.items())
        )
        channels = tuple(
            ChannelTraffic(
                name=ChannelName(name),
                connect_timeout_ms=channel.connect_timeout_ms,
                total_timeout_ms=channel.timeout_ms,
                retry=Retry.IDEMPOTENT if channel.retry_with_idempotency_key else Retry.UNSENT,
                fail_closed=channel.on_isolation == "fail_closed",
            )
            for name, channel in sorted(self.channels.items())
        )
        return DataPlane(
            regions=regions,
            channels=channels,
            reaction=self.data_plane.reaction(),
            stale_after_ms=self.data_plane.stale_after_ms,
            max_requests=self.data_plane.max_requests,
        )

    def replicas(self) -> dict[str, tuple[str, str]]:
        """Map every configured replica's id to (region, grpc address)."""
        return {
            replica.id: (name, replica.grpc)
            for name, region in sorted(self.regions.items())
            for replica in region.replicas
        }


def _endpoint(address: str) -> Endpoint:
    host, _, port = address.rpartition(":")
    return Endpoint(host=host.strip("[]"), port=int(port))


def load(path: Path) -> WeirConfig:
    """Read, check and return the configuration; ConfigError names file, line, key and remedy."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise ConfigError(
            str(path), [f"{path}: {exc.strerror}; pass --config FILE or set WEIR_CONFIG"]
        ) from exc
    return parse(text, str(path))


def parse(text: str, source: str = "<config>") -> WeirConfig:
    """Check a configuration given as text."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(exc, "problem", None) or "not valid YAML"
        raise ConfigError(source, [f"{source}:{line}: {problem}"]) from exc
    if not isinstance(data, dict):
        raise ConfigError(source, [f"{source}:1: must be a mapping with sections such as regions"])
    _check_environment(source)
    try:
        return WeirConfig(**data)
    except ValidationError as exc:
        faults = [_fault(source, root, error) for error in exc.errors()]
        raise ConfigError(source, faults) from exc
    except ValueError as exc:  # pydantic-settings: an environment value that is no JSON
        raise ConfigError(source, [f"environment: {exc}"]) from exc


def _check_environment(source: str) -> None:
    sections = WeirConfig.model_fields
    for key in os.environ:
        upper = key.upper()
        if not upper.startswith(ENV_PREFIX) or upper in _CLI_ENV:
            continue
        if "__" not in upper and _SERVICE_LINK.fullmatch(upper):
            continue
        section = upper.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if section not in sections:
            near = difflib.get_close_matches(section, sections, 1)
            hint = f"; did you mean {ENV_PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigError(source, [f"environment: {key}: unknown section{hint}"])


def _fault(source: str, root: yaml.Node | None, error: Any) -> str:
    loc = tuple(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    key = ".".join(loc)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], _known_keys(loc[:-1]), 1)
        message = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    elif error["type"] == "missing":
        message = "is required"
    elif "pattern" in error["type"]:
        message = f"{error['input']!r} is not valid here (expected {error['ctx']['pattern']})"
    if not loc:
        head = message.split(":", 1)[0]
        return f"{source}:{_line(root, tuple(head.split('.')))}: {message}"
    return f"{source}:{_line(root, loc)}: {key}: {message}"


def _known_keys(loc: tuple[str, ...]) -> list[str]:
    model: Any = WeirConfig
    for part in loc:
        fields = getattr(model, "model_fields", None)
        if fields is None or part not in fields:
            continue  # the key of a mapping such as regions.east
        model = _model_of(fields[part].annotation)
    if model is PolicySection:
        return list(Policy.__dataclass_fields__)
    return list(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> Any:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        inner = [a for a in getattr(candidate, "__args__", ()) if isinstance(a, type)]
        for item in inner:
            if issubclass(item, BaseModel):
                return item
    return None


def _line(node: yaml.Node | None, loc: tuple[str, ...]) -> int:
    """Return the line of the deepest part of `loc` that stands in the file."""
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit():
            if int(part) >= len(node.value):
                break
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line
