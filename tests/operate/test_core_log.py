"""What gRPC's core writes to stderr becomes events; what is not the core's passes untouched."""

from __future__ import annotations

import asyncio
import io
import os
import sys

import pytest
from structlog.testing import capture_logs

from controlplane.adapters.core_log import LINE_BYTES_MAX, CoreLog, core_log

REFUSED = (
    b"I1126 16:38:26.706647    2324 ssl_transport_security.cc:2563] Handshake failed with error"
    b" SSL_ERROR_SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE\n"
)
OTHER = b"E0102 03:04:05.000006      77 chttp2_transport.cc:1403] Got goaway [2]\n"


def test_lines_are_told_whatever_pieces_they_come_in() -> None:
    """A failed handshake is counted once and says why, another line of the core is an event of its
    level, and other text goes on as it is; cut anywhere, the result is the same."""
    whole = REFUSED + b"Traceback, not the core's\n" + OTHER
    for cut in (0, 1, len(REFUSED) - 1, len(REFUSED), len(whole) - 1):
        counted: list[int] = []
        rest = io.StringIO()
        told = CoreLog(lambda seen=counted: seen.append(1), rest)
        with capture_logs() as logs:
            told.feed(whole[:cut])
            told.feed(whole[cut:])
        assert len(counted) == 1
        assert [(line["event"], line["log_level"]) for line in logs] == [
            ("handshake_failed", "warning"),
            ("grpc_core", "error"),
        ]
        assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in logs[0]["why"]
        assert logs[1]["at"] == "chttp2_transport.cc:1403"
        assert rest.getvalue() == "Traceback, not the core's\n"


def test_a_line_without_end_is_bounded() -> None:
    """Text that never ends is passed on in pieces instead of being kept."""
    rest = io.StringIO()
    told = CoreLog(lambda: None, rest)
    for _ in range(10):
        told.feed(b"x" * LINE_BYTES_MAX)
    told.end()
    assert rest.getvalue().count("x") == 10 * LINE_BYTES_MAX


async def test_descriptor_two_is_read_and_given_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Inside the block a line on descriptor 2 is told, more than the pipe holds blocks nobody, and
    Python's stderr is the real one; afterwards descriptor 2 is what it was."""
    counted: list[int] = []
    seen = asyncio.Event()

    def count() -> None:
        counted.append(1)
        seen.set()

    with capture_logs() as logs, core_log(count):
        os.write(2, REFUSED)
        async with asyncio.timeout(60):
            await seen.wait()
        sys.stderr.write("from python\n")
        lost = 0
        for _ in range(2000):
            try:
                os.write(2, OTHER)
            except BlockingIOError:
                lost += 1
        assert lost > 0
    assert counted == [1]
    assert 0 < sum(line["event"] == "grpc_core" for line in logs) <= 2000 - lost
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err.splitlines() == ["from python", "afterwards"]
