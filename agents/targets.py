"""What an agent probes: the channels of its region and the ingress of every other region."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from controlplane.config import ProbeSection, WeirConfig
from controlplane.model.errors import InvalidInputError

DEADLINE_SHARE: Final = 0.8
"""Share of the interval that a probe may take: one that hangs has its outcome before the next is
due."""
P99_FACTOR: Final = 2
"""A channel that is slower than the interval by nature may take this many times its usual p99:
calling its usual answers errors would trip its breaker. Turns it does not finish in are skipped."""


class Subject(StrEnum):
    """What a target stands for."""

    CHANNEL = "channel"
    INGRESS = "ingress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing to probe. `name` is a channel or a region; deadline and interval in ms.

    Without an interval of its own the agent's is used.
    """

    subject: Subject
    name: str
    kind: str
    host: str
    port: int
    path: str = "/healthz"
    deadline_ms: float = 400.0
    interval_ms: int | None = None
    expect_status: tuple[int, int] = (200, 399)
    tls: bool = False
    server_name: str | None = None
    ca_file: Path | None = None
    host_header: str | None = None

    @property
    def sni(self) -> str:
        """Name to ask for and to find in the certificate."""
        return self.server_name or self.host

    @property
    def authority(self) -> str:
        """Value of the Host header (HTTP) or `:authority` (gRPC)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.host_header or f"{host}:{self.port}"


def split_address(address: str, key: str) -> tuple[str, int]:
    """Split host:port (IPv6 in brackets); InvalidInputError names `key` when the port is none."""
    host, _, port = address.rpartition(":")
    number = int(port) if port.isdigit() else -1
    if not 0 <= number <= 65535:  # noqa: PLR2004 - 0 lets the kernel choose a listening port
        raise InvalidInputError(key, f"{address!r}: the port must be 0 to 65535")
    return host.removeprefix("[").removesuffix("]"), number


def targets_of(config: WeirConfig, region: str) -> tuple[Target, ...]:
    """Return everything the agent of `region` probes, channels first, each sorted by name.

    A channel that the region does not serve, or that has no probe for it, is left out.
    """
    interval_ms = config.agent.interval_ms
    ingress_interval_ms = min(interval_ms, config.policy.build().ingress_interval_ms)
    found: list[Target] = []
    for name, channel in sorted(config.channels.items()):
        probe = channel.probe
        if probe is None or region not in channel.regions:
            continue
        address = probe.targets.get(region, probe.target)
        if address is not None:
            key = f"channels.{name}.probe.target"
            slow_ms = min(channel.timeout_ms, P99_FACTOR * channel.p99_ms)
            deadline_ms = max(interval_ms * DEADLINE_SHARE, slow_ms)
            found.append(_target(Subject.CHANNEL, name, probe, address, key, deadline_ms))
    for name, section in sorted(config.regions.items()):
        ingress = section.ingress
        if ingress is not None and name != region:
            key = f"regions.{name}.ingress.target"
            deadline_ms = interval_ms * DEADLINE_SHARE
            # more often than a report: a crash is weighed by how many probes in a row it fails
            target = _target(Subject.INGRESS, name, ingress, ingress.target, key, deadline_ms)
            found.append(replace(target, interval_ms=ingress_interval_ms))
    return tuple(found)


def _target(
    subject: Subject, name: str, probe: ProbeSection, address: str, key: str, deadline_ms: float
) -> Target:
    host, port = split_address(address, key)
    return Target(
        subject=subject,
        name=name,
        kind=probe.kind,
        host=host,
        port=port,
        path=probe.path,
        deadline_ms=probe.timeout_ms or deadline_ms,
        expect_status=probe.expect_status,
        tls=probe.tls or probe.kind == "https",
        server_name=probe.server_name,
        ca_file=probe.ca_file,
        host_header=probe.host,
    )
