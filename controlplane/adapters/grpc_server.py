"""The gRPC server of a replica: limits, credentials, and the services every server has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from controlplane.adapters.tls import TlsFiles, channel_credentials, server_credentials
from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS, SERVICE
from controlplane.config import WeirConfig
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.v1 import admin_pb2, agent_pb2, lock_pb2, peer_pb2, routing_pb2

MESSAGE_MAX: Final = 4 * 1024 * 1024
"""Larger messages are refused by the transport."""
_STANDARD_SERVICES: Final = (
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
    reflection.SERVICE_NAME,
)
"""What every server has beside its own; all of them listed by reflection."""
LOOPBACK: Final = ("127.", "localhost", "[::1]")

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_MAX),
    ("grpc.max_send_message_length", MESSAGE_MAX),
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a silent partner
    *ADS_SERVER_OPTIONS,
)


def tls_files(config: WeirConfig) -> TlsFiles | None:
    """Return the files of mutual TLS, None when it is not configured."""
    tls = config.tls
    if tls.ca_file is None or tls.cert_file is None or tls.key_file is None:
        return None
    return TlsFiles(ca=tls.ca_file, cert=tls.cert_file, key=tls.key_file)


def dial(config: WeirConfig, address: str) -> grpc.aio.Channel:
    """Open a channel to another replica, with this process's certificate when TLS is on."""
    options = [("grpc.enable_http_proxy", 0)]
    files = tls_files(config)
    if files is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, channel_credentials(files), options)


def make_server(
    config: WeirConfig, interceptors: Sequence[Any], on_reload: Callable[[bool], None]
) -> grpc.aio.Server:
    """Make the server and bind its port.

    Raises InvalidInputError for plaintext beyond loopback, UnavailableError when the port is taken.
    """
    server = grpc.aio.server(options=OPTIONS, interceptors=interceptors)
    files = tls_files(config)
    address = config.server.grpc_listen
    if files is None and not (address.startswith(LOOPBACK) or config.server.allow_plaintext):
        raise InvalidInputError(
            "server.grpc_listen",
            f"{address} is not loopback and tls is not configured; set tls.* or, if you mean it,"
            " server.allow_plaintext: true",
        )
    try:
        bound = (
            server.add_insecure_port(address)
            if files is None
            else server.add_secure_port(address, server_credentials(files, on_reload))
        )
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise UnavailableError(
            f"server.grpc_listen: {address} cannot be used (taken?); free it or choose another"
        )
    return server


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: serving while this replica can serve a plan. Never depends on etcd or
    Redis."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    async def Check(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        """Answer at once."""
        del request, context
        status = health_pb2.HealthCheckResponse.ServingStatus
        return health_pb2.HealthCheckResponse(
            status=status.SERVING if self._ready() else status.NOT_SERVING
        )


def add_standard_services(server: grpc.aio.Server, ready: Callable[[], bool]) -> None:
    """Add health, reflection and channelz."""
    health_pb2_grpc.add_HealthServicer_to_server(_Health(ready), server)
    channelz.add_channelz_servicer(server)
    names = [
        service.full_name
        for module in (admin_pb2, agent_pb2, lock_pb2, peer_pb2, routing_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ]
    reflection.enable_server_reflection((*names, SERVICE, *_STANDARD_SERVICES), server)
