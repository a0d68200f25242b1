"""The plan for sidecars and SDKs on the same machine: RoutingService from the agent's own copy.

A sidecar that follows the agent instead of a replica needs no address of the control plane, and it
starts during an outage too: the agent has its plan from disk. The relay is for the machine it runs
on: it listens on loopback only, or elsewhere with mutual TLS.

The acknowledgements of its subscribers are not passed on: a region's convergence is judged by its
agents and data planes.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agents.apply import Applier
from agents.targets import split_address
from controlplane.adapters.routing_service import RoutingService
from controlplane.adapters.wellformed import WellFormed
from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS
from controlplane.clock import Clock
from controlplane.config import TlsSection
from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError
from controlplane.model.ids import Epoch
from controlplane.model.plan import Plan
from controlplane.v1 import routing_pb2_grpc

MAX_SUBSCRIBERS: Final = 256
KEY: Final = "agent.grpc_listen"


class LocalPlan:
    """The applier as the routing service wants it."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier

    @property
    def plan(self) -> Plan | None:
        """The plan in force; None before the first."""
        return self._applier.plan

    @property
    def served(self) -> Plan | None:
        """The same: sidecars of an agent follow committed plans."""
        return self._applier.plan

    async def watch(self, after_epoch: int = 0) -> AsyncIterator[Plan]:
        """Yield the plan and every newer one for ever; a slow reader gets the newest."""
        epoch = after_epoch
        while True:
            plan = await self._applier.wait_above(epoch)
            epoch = plan.epoch
            yield plan


class Subscribers:
    """Bounds the streams. Names are not kept: nobody asks for them."""

    def __init__(self) -> None:
        self.open_streams = 0

    def open(self, kind: str, name: str, region: str, now_ms: int) -> None:
        """Count a stream; UnavailableError above the bound."""
        del kind, name, region, now_ms
        if self.open_streams >= MAX_SUBSCRIBERS:
            raise UnavailableError(f"this agent serves at most {MAX_SUBSCRIBERS} subscribers", 5000)
        self.open_streams += 1

    def close(self, name: str) -> None:
        """Forget a stream."""
        del name
        self.open_streams -= 1

    def ack(self, name: str, epoch: Epoch, now_ms: int) -> None:
        """Nothing is kept of acknowledgements."""

    def refuse(self, name: str, error: str, now_ms: int) -> None:
        """Nothing is kept of refusals: the service has logged them."""


def check_listen(address: str, tls: TlsSection) -> tuple[str, int]:
    """Return host and port; InvalidInputError when plaintext would leave the machine."""
    host, port = split_address(address, KEY)
    if tls.enabled or host == "localhost":
        return host, port
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host, port
    raise InvalidInputError(KEY, f"{address}: not loopback; use 127.0.0.1, or set tls.*")


@contextlib.asynccontextmanager
async def relay(
    applier: Applier,
    clock: Clock,
    address: str,
    tls: TlsSection,
    also: Callable[[grpc.aio.Server], None] = lambda _: None,
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port. WeirError when the address cannot be used.

    `also` adds further services before the server starts.
    """
    host, port = check_listen(address, tls)
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), *ADS_SERVER_OPTIONS], interceptors=[WellFormed()]
    )
    also(server)
    service = RoutingService(LocalPlan(applier), Subscribers(), clock)
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(service, server)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = (
            server.add_secure_port(target, _credentials(tls))
            if tls.enabled
            else (server.add_insecure_port(target))
        )
    except RuntimeError as error:
        raise WeirError(f"{KEY}: {address}: cannot be bound; free it, or set {KEY}") from error
    await server.start()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield bound
    finally:
        await server.stop(grace=0.2)


def _credentials(tls: TlsSection) -> grpc.ServerCredentials:
    key, chain, roots = (_read(tls.key_file), _read(tls.cert_file), _read(tls.ca_file))
    return grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)


def _read(path: Path | None) -> bytes:
    return path.read_bytes() if path else b""
