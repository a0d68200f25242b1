"""HTTP and HTTPS probe: one GET on a fresh connection.

It proves that, from here and now, the name resolves, the route carries packets both ways, the
server accepts, its certificate is valid for the name (https), and the application answers `path`
with a wanted status. It does not prove that a payment would be accepted.

The exchange is written out, 40 lines, because HTTP libraries report connecting as one span: TCP and
TLS would not be told apart, and they fail for different reasons. The body is not read: the first
byte is what a health check promises.
"""

from __future__ import annotations

import asyncio
from typing import Final

import controlplane
from agents.probes.dial import dial
from agents.probes.dns import Resolver
from agents.probes.observation import ProbeFailedError, Reason, Trace
from agents.targets import Target

MAX_INTERIM: Final = 4
"""Interim answers (1xx) skipped before the real one."""
_INTERIM_BELOW: Final = 200
_STATUS_PARTS: Final = 2


async def probe(target: Target, resolver: Resolver, trace: Trace) -> None:
    """Return when the target answered with a wanted status; ProbeFailedError or OSError if not."""
    async with dial(target, resolver, trace) as (reader, writer):
        with trace.phase("first_byte"):
            writer.write(_request(target))
            status = await _status(reader)
    low, high = target.expect_status
    if not low <= status <= high:
        raise ProbeFailedError(Reason.STATUS, f"answered {status}, wanted {low} to {high}")


def _request(target: Target) -> bytes:
    return (
        f"GET {target.path or '/'} HTTP/1.1\r\n"
        f"Host: {target.authority}\r\n"
        f"User-Agent: weir-agent/{controlplane.__version__}\r\n"
        "Accept: */*\r\nConnection: close\r\n\r\n"
    ).encode("latin-1")


async def _status(reader: asyncio.StreamReader) -> int:
    for _ in range(MAX_INTERIM):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if not error.partial:
                raise ProbeFailedError(Reason.RESET, "closed without an answer") from error
            raise ProbeFailedError(Reason.PROTOCOL, "closed within the header") from error
        except asyncio.LimitOverrunError as error:
            raise ProbeFailedError(Reason.PROTOCOL, "the header does not end") from error
        status = _status_line(head)
        if status >= _INTERIM_BELOW:
            return status
    raise ProbeFailedError(Reason.PROTOCOL, "only interim answers")


def _status_line(head: bytes) -> int:
    parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(parts) < _STATUS_PARTS or not parts[0].startswith(b"HTTP/1."):
        raise ProbeFailedError(Reason.PROTOCOL, "not an HTTP/1 answer")
    if len(parts[1]) != 3 or not parts[1].isdigit():  # noqa: PLR2004 - three digits by RFC 9112
        raise ProbeFailedError(Reason.PROTOCOL, "no status in the answer")
    return int(parts[1])
