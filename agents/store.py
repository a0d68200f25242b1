"""The last good plan on disk, so that an agent starts into an outage with a plan.

Layout of the state folder: `plan` and, one write older, `plan.previous`. A file is one line of text
(magic, highest epoch ever seen, SHA-256) and the plan as protobuf; it counts wholly or not at all.

Order of a write, each step leaving a folder that loads:
  1. write `plan.new`, fsync        torn or missing: ignored by loading
  2. hard-link `plan` over `plan.previous` (by a rename of `plan.link`)
  3. rename `plan.new` to `plan`    the commit point
  4. fsync the folder
`plan` is there at every moment; a power cut leaves the old or the new one.

Failure modes: a damaged `plan` gives way to `plan.previous`, that to nothing; both are said in the
log. A full or read-only disk raises UnavailableError, and the caller goes on without.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from google.protobuf.message import DecodeError

from controlplane.logging import get
from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError
from controlplane.v1 import common_pb2

MAX_BYTES: Final = 256 * 1024 * 1024
"""A larger file is not ours."""
_HEADER: Final = re.compile(rb"weir-plan-1 highest=(\d{1,19}) sha256=([0-9a-f]{64})\n")
_HEADER_MAX: Final = 160

log = get("store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What the disk holds. `plan` is None when only an epoch has ever been seen."""

    plan: common_pb2.Plan | None = None
    highest_epoch: int = 0


class PlanFile:
    """Reads and writes the state folder of one agent; only one process may use it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._current = directory / "plan"
        self._previous = directory / "plan.previous"
        self._lock: BinaryIO | None = None

    def prepare(self) -> None:
        """Make the folder and take it for this process, until the process ends.

        Raises WeirError when another process has it, UnavailableError when the disk is full or
        cannot be written.
        """
        path = self._directory / "lock"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = path.open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise WeirError(
                f"agent.state_dir: {self._directory} is in use by another agent; give each its own"
            ) from error
        except OSError as error:
            raise UnavailableError(f"{self._directory}: {error.strerror}") from error

    def close(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def load(self) -> Saved:
        """Return the newest intact file's content; an empty `Saved` when there is none."""
        found: list[Saved] = []
        for path in (self._current, self._previous):
            saved = _read(path)
            if saved is not None:
                found.append(saved)
            elif path is self._current and self._previous.exists():
                log.error("plan_file_lost", path=str(path), remedy="using the previous one")
        if not found:
            return Saved()
        # the highest epoch must not go back with the older file
        return Saved(plan=found[0].plan, highest_epoch=max(s.highest_epoch for s in found))

    def save(self, saved: Saved) -> None:
        """Write atomically and durably; blocks. UnavailableError when the disk does not take it."""
        body = b"" if saved.plan is None else saved.plan.SerializeToString(deterministic=True)
        digest = hashlib.sha256(b"%d " % saved.highest_epoch + body).hexdigest()
        header = f"weir-plan-1 highest={saved.highest_epoch} sha256={digest}\n".encode()
        try:
            self._write(header + body)
        except OSError as error:
            raise UnavailableError(f"{self._directory}: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        new = self._directory / "plan.new"
        with new.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        link = self._directory / "plan.link"
        # no hard links here, or nothing to link: then there is no previous one, and no harm
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
            link.hardlink_to(self._current)
            link.rename(self._previous)
        new.rename(self._current)
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: Path) -> Saved | None:
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_BYTES else b""
        saved = _parse(data)
    except FileNotFoundError:
        return None
    except (OSError, InvalidInputError) as error:
        log.error("plan_file_damaged", path=str(path), error=str(error))
        return None
    return saved


def _parse(data: bytes) -> Saved:
    match = _HEADER.match(data[:_HEADER_MAX])
    if match is None:
        raise InvalidInputError("header", "not a plan file of this version")
    highest, body = int(match[1]), data[match.end() :]
    if hashlib.sha256(b"%d " % highest + body).hexdigest() != match[2].decode():
        raise InvalidInputError("sha256", "differs: the file is torn or was altered")
    try:
        plan = common_pb2.Plan.FromString(body) if body else None
    except DecodeError as error:
        raise InvalidInputError("plan", "these bytes are no plan") from error
    return Saved(plan=plan, highest_epoch=max(highest, plan.epoch if plan else 0))
