"""What gRPC's C core says on stderr, told as events; failed handshakes are counted.

A caller without the right certificate never reaches a servicer: the core refuses its handshake and
writes one line to the process's stderr, the only place where it can be seen from Python. While
`core_log` runs, descriptor 2 is a pipe that the event loop reads; Python's own stderr goes where it
always went. Both directions of a handshake look the same here: a replica that is refused by a peer
counts at both ends.

Failure modes. The pipe never blocks the core: what does not fit into it while the loop stands still
is lost. The core's last words before an abort are lost too; the interpreter's (faulthandler) are
not, they go to the real stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Final, TextIO

import structlog

log = structlog.get_logger(__name__)

STDERR: Final = 2
READ_BYTES: Final = 65_536
LINE_BYTES_MAX: Final = 16_384
"""A longer line is told in pieces."""
_LINE: Final = re.compile(r"^([IWEF])\d{4} [\d:.]+ +\d+ ([^:\]]+:\d+)\] (.*)$")
_LEVEL: Final = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_HANDSHAKE: Final = "Handshake failed"


class CoreLog:
    """Turns bytes of stderr into events. `handshake_failed` is called once for every such line;
    what is no line of the core is passed on to `rest` as it is."""

    def __init__(self, handshake_failed: Callable[[], None], rest: TextIO) -> None:
        self._handshake_failed = handshake_failed
        self._rest = rest
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Take what came; whole lines are told at once."""
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            self._tell(line)
        if len(self._held) > LINE_BYTES_MAX:
            self.end()

    def end(self) -> None:
        """Tell what is left without an end of line."""
        held, self._held = self._held, b""
        if held:
            self._tell(held)

    def _tell(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        found = _LINE.match(text)
        if found is None:
            with contextlib.suppress(OSError, ValueError):
                self._rest.write(text + "\n")
                self._rest.flush()
            return
        level, place, said = found.groups()
        if said.startswith(_HANDSHAKE):
            self._handshake_failed()
            log.warning("handshake_failed", why=said, at=place)
        else:
            getattr(log, _LEVEL[level])("grpc_core", said=said, at=place)


@contextlib.contextmanager
def core_log(handshake_failed: Callable[[], None]) -> Iterator[None]:
    """Read the core's lines for the length of the block; only inside the running loop.

    `sys.stderr` is the real one meanwhile: configure logging again inside.
    """
    loop = asyncio.get_running_loop()
    before = sys.stderr
    before.flush()
    # never closed: whoever logs after the block still has it
    real = os.fdopen(os.dup(STDERR), "w", buffering=1, errors="backslashreplace", closefd=False)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    os.dup2(writing, STDERR)
    os.close(writing)
    told = CoreLog(handshake_failed, real)

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            told.feed(os.read(reading, READ_BYTES))

    loop.add_reader(reading, read)
    sys.stderr = real
    faulthandler.enable(real)
    try:
        yield
    finally:
        loop.remove_reader(reading)
        os.dup2(real.fileno(), STDERR)
        read()
        told.end()
        os.close(reading)
        faulthandler.disable()
        sys.stderr = before
