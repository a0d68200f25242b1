"""Where everything of the local topology lives: ports, files, names.

Ports come in one block, either at a base the user names or at a free one. A free block lies below
the range from which the kernel takes ports for outgoing connections: otherwise, while a region is
down, somebody's connection could sit on the port that its etcd member needs to come back.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from controlplane.dev.content import Content
from controlplane.dev.process import claim_ports, is_free
from controlplane.model.errors import WeirError

LOWEST_PORT = 10_000
ATTEMPTS_MAX = 200
"""Blocks tried before giving up."""
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_EPHEMERAL = 32_768


class PortTakenError(WeirError):
    """A port that was asked for is in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names, ports and files. `ports` is keyed `process/use`, e.g. `gateway-east/http`."""

    state_dir: Path
    content: Content
    ports: Mapping[str, int]

    def address(self, key: str) -> str:
        """host:port of one use."""
        return f"127.0.0.1:{self.ports[key]}"

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions, primary first."""
        return tuple(region.name for region in self.content.regions)

    @property
    def etcd_members(self) -> dict[str, str]:
        """Map every etcd member to its region."""
        return etcd_members(self.content)

    @property
    def etcd_ports(self) -> dict[str, tuple[int, int]]:
        """Client and peer port of every member."""
        return {m: (self.ports[f"{m}/client"], self.ports[f"{m}/peer"]) for m in self.etcd_members}

    @property
    def etcd_endpoints(self) -> list[str]:
        """Client addresses of all members."""
        return [self.address(f"{member}/client") for member in self.etcd_members]

    def gateway(self, region: str) -> str:
        """Return where a region takes payments."""
        return self.address(f"gateway-{region}/http")

    def log(self, name: str) -> Path:
        """Output of one process."""
        return self.state_dir / "logs" / f"{name}.log"

    @property
    def ledgers(self) -> Path:
        """Directory with one ledger per region."""
        return self.state_dir / "ledger"

    @property
    def topology_file(self) -> Path:
        """File that says what runs where, once everything is ready."""
        return self.state_dir / "topology.json"


def etcd_members(content: Content) -> dict[str, str]:
    """Map every etcd member to its region."""
    return {
        f"etcd-{region.name}-{i}": region.name
        for region in content.regions
        for i in range(region.etcd_members)
    }


def port_keys(content: Content) -> list[str]:
    """Every use of a port, in the order of the block; what people look at comes first."""
    names = [region.name for region in content.regions]
    keys = ["envoy/listener", "envoy/admin", "payer/http"]
    keys += [f"{name}-0/http" for name in names]
    keys += [f"{name}-0/grpc" for name in names]
    keys += [f"{name}-agent-0/http" for name in names]
    keys += [f"gateway-{name}/{use}" for name in names for use in ("http", "fault")]
    keys += [f"redis-{name}/redis" for name in names]
    keys += [f"sentinel-{name}/redis" for name in names]
    keys += [f"{member}/{use}" for member in etcd_members(content) for use in ("client", "peer")]
    return keys


def plan_layout(state_dir: Path, content: Content, base: int | None) -> Layout:
    """Choose the ports; PortTakenError names the first one in use below `base`."""
    keys = port_keys(content)
    if base is not None:
        ports = dict(zip(keys, range(base, base + len(keys)), strict=True))
        for key, port in ports.items():
            if not is_free(port):
                raise PortTakenError(
                    f"port {port} (for {key}) is in use; choose another --ports BASE "
                    f"({len(keys)} ports from BASE on), or leave it out for free ones"
                )
    else:
        ports = dict(zip(keys, _free_block(len(keys)), strict=True))
    return Layout(state_dir=state_dir, content=content, ports=ports)


def _free_block(count: int) -> range:
    draw = random.SystemRandom()
    highest = _first_ephemeral() - count
    for _ in range(ATTEMPTS_MAX):
        first = draw.randrange(LOWEST_PORT, highest)
        block = range(first, first + count)
        if claim_ports(block):
            return block
    raise PortTakenError(f"no {count} free ports in a row between {LOWEST_PORT} and {highest}")


def _first_ephemeral() -> int:
    try:
        first = int(_PORT_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        first = _DEFAULT_EPHEMERAL
    return first if first > LOWEST_PORT + 1000 else _DEFAULT_EPHEMERAL
