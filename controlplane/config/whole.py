"""The whole configuration: its sections, what must hold across them, and the views built of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import EnvSettingsSource

from controlplane.config.sections import (
    AgentSection,
    ChannelSection,
    ClusterSection,
    CoordinationSection,
    DataPlaneSection,
    LocksSection,
    LogSection,
    Name,
    PolicySection,
    ReconciliationSection,
    RegionSection,
    ServerSection,
    TlsSection,
)
from controlplane.model.dataplane import (
    ChannelTraffic,
    DataPlane,
    Endpoint,
    RegionEndpoints,
    Retry,
)
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.topology import Channel, Region, Role, Topology

ENV_PREFIX: Final = "WEIR_"
CLI_ENV: Final = frozenset({
    "WEIR_CONFIG", "WEIR_SERVER", "WEIR_STATE_DIR",
    "WEIR_CA_FILE", "WEIR_CERT_FILE", "WEIR_KEY_FILE",
})  # fmt: skip
"""Variables of the command line; they are no keys of the configuration."""
_PRIORITY: Final = {Role.PRIMARY: 1, Role.STANDBY: 2, Role.DR: 3}


class _WeirEnv(EnvSettingsSource):
    """Environment over the file, without the CLI's own variables."""

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {
            key: value
            for key, value in super()._load_env_vars().items()
            if key.upper() not in CLI_ENV
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
                ready_queue=r.ready_queue,
                ready_lag_max_ms=r.ready_lag_max_ms,
                ready_headroom_bp=r.ready_headroom_bp,
                ready_drill_max_age_h=r.ready_drill_max_age_h,
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
                per_try_timeout_ms=min(channel.per_try_timeout_ms, channel.timeout_ms),
                total_timeout_ms=channel.timeout_ms,
                retry=Retry.IDEMPOTENT if channel.retry_with_idempotency_key else Retry.UNSENT,
                fail_closed=channel.on_isolation == "fail_closed",
                stale_after_ms=channel.endpoint_stale_after_ms,
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
