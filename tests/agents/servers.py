"""Real local servers for the agents' tests: well, ill, and dead in several ways."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from agents.targets import Subject, Target

DEADLINE_MS = 60_000.0
"""Of a target that answers: what is waited for comes at once, or the test is red."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Authority:
    """A certificate authority of its own, with files as the configuration names them."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self._directory = directory
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca_file)

    def issue(self, name: str, *identities: str) -> tuple[Path, Path]:
        """Issue a certificate; returns (chain, key) files."""
        cert = self._ca.issue_cert(*identities)
        chain, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        chain.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
        cert.private_key_pem.write_to_path(key)
        return chain, key

    def server_context(self, *identities: str) -> ssl.SSLContext:
        """Return the server side's TLS settings for a certificate with these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        chain, key = self.issue("-".join(identities).replace(".", "_"), *identities)
        context.load_cert_chain(chain, key)
        return context


@contextlib.asynccontextmanager
async def serving(
    handler: Handler, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[int]:
    """Serve raw connections on a free port; at the end nothing of them is left.

    Accepting is written out because asyncio's own server drops connections that are being accepted
    while it closes.
    """
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def one(sock: socket.socket) -> None:
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        with contextlib.suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await handler(reader, writer)
            finally:
                transport.abort()

    def accept() -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = listener.accept()
            sock.setblocking(False)
            task = asyncio.ensure_future(one(sock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            # also when the task is cancelled before its first step
            task.add_done_callback(lambda _: sock.close())

    with socket.create_server((host, 0)) as listener:
        listener.setblocking(False)
        loop.add_reader(listener, accept)
        try:
            yield listener.getsockname()[1]
        finally:
            loop.remove_reader(listener)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(5):  # aborted transports close in the loop's next turns
                await asyncio.sleep(0)


def answering(*chunks: bytes, delay_s: float = 0.0) -> Handler:
    """Read a request, then send these bytes and close."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(delay_s)
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    return handle


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept, read, never answer."""
    while await reader.read(4096):
        pass


async def resetting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the request, then send RST."""
    await reader.read(1)
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.asynccontextmanager
async def grpc_health(
    context: tuple[Path, Path] | None = None, **services: str
) -> AsyncIterator[int]:
    """Serve grpc.health.v1; keyword `server` is the empty service."""
    server = grpc.aio.server()
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if context is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        chain, key = (path.read_bytes() for path in context)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    for name, status in services.items():
        value = health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        await checks.set("" if name == "server" else name, value)
    try:
        yield port
    finally:
        await server.stop(grace=0)


def target(port: int, kind: str = "http", **values: object) -> Target:
    """Return a target on loopback."""
    base: dict[str, object] = {
        "subject": Subject.CHANNEL,
        "name": "alipay",
        "kind": kind,
        "host": "127.0.0.1",
        "port": port,
        "deadline_ms": DEADLINE_MS,
        "tls": kind == "https",
    }
    return Target(**{**base, **values})  # type: ignore[arg-type]
