"""gRPC probe: grpc.health.v1 Check of one service on a fresh connection.

It proves that the name resolves, HTTP/2 (and TLS with a valid certificate) comes up, and the server
says SERVING for the service named by `path` (empty: the server as a whole). The C core connects in
one step, so a connection counts as `tcp`, and as `tls` with TLS, TCP included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agents.probes.dns import Resolver
from agents.probes.observation import ProbeFailedError, Reason, Trace
from agents.targets import Target
from controlplane.clock import precise_ms

_REASONS: Final = {
    grpc.StatusCode.UNAVAILABLE: Reason.RESET,
    grpc.StatusCode.DEADLINE_EXCEEDED: Reason.TIMEOUT,
    grpc.StatusCode.NOT_FOUND: Reason.NOT_SERVING,
    grpc.StatusCode.UNIMPLEMENTED: Reason.PROTOCOL,
}


async def probe(target: Target, resolver: Resolver, trace: Trace) -> None:
    """Return when the target says SERVING; ProbeFailedError if not."""
    addresses = await resolver.resolve(target.host, trace)
    async with _channel(target, addresses) as channel:
        with trace.phase("tls" if target.tls else "tcp"):
            await _connected(channel)
        with trace.phase("first_byte"):
            status = await _check(channel, target, trace)
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise ProbeFailedError(Reason.NOT_SERVING, f"says {name}")


async def _connected(channel: grpc.aio.Channel) -> None:
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (
            grpc.ChannelConnectivity.TRANSIENT_FAILURE,
            grpc.ChannelConnectivity.SHUTDOWN,
        ):
            raise ProbeFailedError(Reason.REFUSED, "no connection (refused, reset or bad TLS)")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _check(channel: grpc.aio.Channel, target: Target, trace: Trace) -> int:
    left_ms = max(target.deadline_ms - (precise_ms() - trace.started_ms), 1.0)
    service = target.path.strip("/")
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=left_ms / 1000
        )
    except grpc.aio.AioRpcError as error:
        reason = _REASONS.get(error.code(), Reason.STATUS)
        raise ProbeFailedError(reason, f"{error.code().name}: {error.details()}") from error
    return int(answer.status)


def _channel(target: Target, addresses: tuple[str, ...]) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),  # else channels to one address share their fate
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        # with TLS the authority must be a name of the certificate
        ("grpc.default_authority", target.sni if target.tls else target.authority),
    ]
    scheme = "ipv6" if ":" in addresses[0] else "ipv4"
    same = [a for a in addresses if (":" in a) == (scheme == "ipv6")]
    joined = ",".join(f"[{a}]:{target.port}" if ":" in a else f"{a}:{target.port}" for a in same)
    uri = f"{scheme}:{joined}"
    if not target.tls:
        return grpc.aio.insecure_channel(uri, options=options)
    roots = _read(target.ca_file) if target.ca_file else None
    options.append(("grpc.ssl_target_name_override", target.sni))
    return grpc.aio.secure_channel(uri, grpc.ssl_channel_credentials(roots), options=options)


def _read(path: Path) -> bytes:
    return path.read_bytes()
