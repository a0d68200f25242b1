"""Writes the decision log of a leader to disk: bounded, rotated, every file complete by itself.

Lines are buffered and written by a thread, so that a slow disk never delays a tick. A full disk
costs the log, not the decision: it is said once and tried again at the next rotation.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path
from typing import Final

import structlog

from controlplane.decision.log import DecisionLog
from controlplane.decision.state import State
from controlplane.runtime.tick import Tick

log = structlog.get_logger(__name__)

FILE_MAX_BYTES: Final = 16 * 1024 * 1024
FILES_KEPT: Final = 8
BUFFER_MAX_BYTES: Final = 4 * 1024 * 1024
"""Lines waiting for the disk; beyond it the log is cut and begins anew with the next file."""
ASIDE_MAX: Final = 8
"""Files that ended before their last lines were written and wait for the disk."""
PREFIX: Final = "decisions-"
WOULD_HAVE: Final = "-would-have"
"""In the names of files that hold what was only thought while etcd did not answer."""


class DecisionRecorder:
    """Feed it every tick with `record`, call `flush` now and then (in a thread)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log: DecisionLog | None = None
        self._after: State | None = None
        self._thought = False
        self._aside: deque[tuple[Path, bytes]] = deque(maxlen=ASIDE_MAX)
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._file: Path | None = None
        self._written = 0
        self._complained = False

    def record(self, tick: Tick) -> None:
        """Take in one tick. A state that is not the one the last tick left begins a new file: a new
        term, a leader that came back, a thought that was not carried out."""
        if (
            self._log is None
            or tick.before is not self._after
            or tick.would_have != self._thought
            or self._full()
        ):
            self._log = DecisionLog(tick.topology, tick.intents, tick.before)
            if self._file is not None and 0 < self._buffered <= BUFFER_MAX_BYTES:
                self._aside.append((self._file, b"".join(self._buffer)))
            self._buffer, self._buffered, self._written = [], 0, 0
            suffix = WOULD_HAVE if tick.would_have else ""
            name = f"{PREFIX}{tick.wall_ms:013d}-{tick.leadership.term}{suffix}.jsonl"
            self._file = self._directory / name
            self._add(self._log.start())
        result = tick.result
        self._after, self._thought = result.state, tick.would_have
        self._add(self._log.tick(tick.topology, tick.intents, tick.evidence, tick.now_ms, result))

    def _full(self) -> bool:
        return self._written + self._buffered > FILE_MAX_BYTES or self._buffered > BUFFER_MAX_BYTES

    def _add(self, lines: bytes) -> None:
        self._buffer.append(lines)
        self._buffered += len(lines)

    def take(self) -> tuple[Path, bytes] | None:
        """Hand over what waits for the disk, the oldest file first; None when nothing does."""
        if self._aside:
            return self._aside.popleft()
        if self._file is None or not self._buffer:
            return None
        data = b"".join(self._buffer)
        self._buffer, self._buffered = [], 0
        self._written += len(data)
        return self._file, data

    def write(self, path: Path, data: bytes) -> None:
        """Append to a file and keep the newest `FILES_KEPT`; blocks, so call it in a thread."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as out:
                out.write(data)
            for old in sorted(self._directory.glob(f"{PREFIX}*.jsonl"))[:-FILES_KEPT]:
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()
            self._complained = False
        except OSError as error:
            if not self._complained:
                log.error("decision_log_not_written", path=str(path), error=error.strerror)
            self._complained = True
