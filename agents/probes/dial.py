"""A fresh connection for one probe, phase by phase: dns, tcp, tls.

Every probe dials anew. A kept connection would go on answering while new payments cannot connect:
it hides a dead route, an expired certificate and a full accept queue.

The TLS handshake is always a full one, without resumption: what a client meets after a failover.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from agents.probes.dns import Resolver
from agents.probes.observation import ProbeFailedError, Reason, Trace
from agents.targets import Target
from controlplane.clock import precise_ms

MAX_ADDRESSES: Final = 3
"""Addresses of a name tried by one probe, each with its part of the time that is left."""
READ_LIMIT: Final = 64 * 1024
"""Most bytes of an answer that are held: enough for any header."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def dial(target: Target, resolver: Resolver, trace: Trace) -> AsyncIterator[Stream]:
    """Connect, with TLS when the target asks for it, and close at once afterwards."""
    addresses = await resolver.resolve(target.host, trace)
    with trace.phase("tcp"):
        sock = await connect(addresses, target, trace)
    try:
        if target.tls:
            with trace.phase("tls"):
                reader, writer = await asyncio.open_connection(
                    sock=sock,
                    ssl=tls_context(target.ca_file, _changed_ns(target.ca_file)),
                    server_hostname=target.sni,
                    limit=READ_LIMIT,
                )
        else:
            reader, writer = await asyncio.open_connection(sock=sock, limit=READ_LIMIT)
    except BaseException:
        sock.close()  # harmless when the transport has closed it already
        raise
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def connect(addresses: tuple[str, ...], target: Target, trace: Trace) -> socket.socket:
    """Return a connected socket to the first address that takes it; else the last error."""
    last: OSError | None = None
    tried = addresses[:MAX_ADDRESSES]
    for index, address in enumerate(tried):
        left_ms = target.deadline_ms - (precise_ms() - trace.started_ms)
        try:
            async with asyncio.timeout(max(left_ms, 1.0) / (len(tried) - index) / 1000):
                return await _connect_one(address, target.port)
        except OSError as error:  # TimeoutError is one
            last = error
    if last is None:
        raise ProbeFailedError(Reason.DNS, f"{target.host}: no address")
    raise last


async def _connect_one(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _changed_ns(path: Path | None) -> int:
    return path.stat().st_mtime_ns if path else 0


@functools.lru_cache(maxsize=64)
def tls_context(ca_file: Path | None, changed_ns: int) -> ssl.SSLContext:
    """TLS settings that trust `ca_file`, or the system; `changed_ns` makes a new file count."""
    del changed_ns
    context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    context.set_alpn_protocols(["http/1.1"])
    return context
