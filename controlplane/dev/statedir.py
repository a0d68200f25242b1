"""The state directory of `weir dev`: one owner at a time, nothing written outside it.

Rules
- A lock on a file says that somebody runs here; the kernel drops it with the process, however it
  ends.
- A directory is cleared at the start only when an earlier `weir dev` made it (marker file); one
  with other content is refused, never cleared.
- The control socket lies inside and is only as accessible as the directory (0700). It is reached
  through `/proc/self/fd`, because a socket's path may have 107 bytes at most.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError

DEFAULT_STATE_DIR = Path(".weir/dev")
MARKER = "weir-dev"
LOCK = "lock"
SOCKET = "control.sock"
TOPOLOGY = "topology.json"
BULKY = ("etcd", "redis")
"""Servers' data, some 100 MB a member: gone after a clean stop. Logs and ledgers stay."""
_KEPT = {LOCK, MARKER}


class StateDirBusyError(WeirError):
    """Another `weir dev` owns the directory."""


def default_state_dir() -> Path:
    """WEIR_STATE_DIR, or `.weir/dev` in the working directory."""
    return Path(os.environ.get("WEIR_STATE_DIR") or DEFAULT_STATE_DIR)


@contextlib.contextmanager
def own(path: Path) -> Iterator[Path]:
    """Own the state directory, cleared, for as long as the block runs."""
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = {entry.name for entry in path.iterdir()}
    except OSError as exc:
        raise InvalidInputError("--state-dir", f"{path}: {exc.strerror}") from exc
    if content - _KEPT and MARKER not in content:
        raise InvalidInputError(
            "--state-dir", f"{path} holds other files; name an empty or a new directory"
        )
    path.chmod(0o700)
    with (path / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StateDirBusyError(
                f"a weir dev runs in {path} (pid {lock.read().strip() or 'unknown'}); "
                "stop it, or name another --state-dir"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        (path / MARKER).touch()
        _clear(path)
        try:
            yield path
        finally:
            for name in (TOPOLOGY, SOCKET):
                (path / name).unlink(missing_ok=True)
            for name in BULKY:
                shutil.rmtree(path / name, ignore_errors=True)


def _clear(path: Path) -> None:
    for entry in path.iterdir():
        if entry.name in _KEPT:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@contextlib.contextmanager
def socket_path(path: Path) -> Iterator[str]:
    """Yield a short name of the control socket, valid inside the block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise UnavailableError(f"no weir dev runs in {path.absolute()}; start it first") from exc
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def write_topology(path: Path, topology: dict[str, Any]) -> None:
    """Write topology.json in one step: a reader sees the old or the new one."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(topology, indent=2) + "\n")
    fresh.replace(path)


def read_topology(path: Path) -> dict[str, Any]:
    """Read the topology of a running `weir dev`; UnavailableError when there is none."""
    try:
        topology: dict[str, Any] = json.loads((path / TOPOLOGY).read_text())
        return topology
    except (OSError, ValueError) as exc:
        raise UnavailableError(
            f"no weir dev is ready in {path.absolute()}; start `weir dev`, or set --state-dir"
        ) from exc
