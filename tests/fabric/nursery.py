"""Starts the laboratory's Python processes from one that has imported everything already.

Ten processes a run would import for fifteen seconds of CPU between them: on two cores that, and not
the product, would be most of a run. The nursery imports once. A process is forked from it, enters
its place's network, gets a session and a log of its own, and runs its module as `python -m` would.

Rules
- Nothing with threads or an event loop runs in the nursery: only such a process may be forked.
- The middle process of a double fork ends at once, so that the kernel hands the new one to the
  laboratory, which adopts orphans: it waits for its children itself, and they die with it.

    python -m tests.fabric.nursery FD      (a socket of the laboratory)
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from controlplane.dev.process import Child

MODULES = (
    "controlplane.app", "controlplane.cli.daemon", "controlplane.cli.agent", "agents.agent",
    "controlplane.cli.main", "controlplane.dev.gateway", "tests.fabric.payer",
    "tests.fabric.dns_payer",
)  # fmt: skip
"""What the laboratory's processes import."""
REQUEST_BYTES = 65_536
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy would start a pool of threads on import."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_SUBREAPER, _PDEATHSIG, _CLONE_NEWNET = 36, 1, 0x40000000


class Adopted:
    """A process that the kernel handed to us; the part of Popen that `Child` needs."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, cast("int | None", None)

    def poll(self) -> int | None:
        """Return the exit code (negative: the signal), None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; TimeoutExpired when it does not come."""
        end = None if timeout is None else time.perf_counter() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.perf_counter() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal; the pid is ours until `poll` has reaped it."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """The laboratory's end."""

    def __init__(self, log: Path) -> None:
        _LIBC.prctl(_SUBREAPER, 1)
        self._link, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", "tests.fabric.nursery", str(far.fileno())]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, pass_fds=[far.fileno()],
                env={**os.environ, **ONE_THREAD},
            )  # fmt: skip
        far.close()
        if self._link.recv(16) != b"ready":
            raise RuntimeError(f"the nursery did not start; see {log}")

    def start(self, argv: Sequence[str], place: str, log: Path) -> Adopted:
        """Run `python -m MODULE ARGS…` at a place."""
        request = {"argv": list(argv), "place": place, "log": str(log)}
        self._link.send(json.dumps(request).encode())
        return Adopted(int(self._link.recv(16)))

    def close(self) -> None:
        """End the nursery; its children stay."""
        self._link.close()
        self._process.wait()


class Forked(Child):
    """A child that comes from the nursery. `argv` begins with the module's name."""

    __slots__ = ("nursery", "place")

    def at(self, nursery: Nursery, place: str) -> Forked:
        """Say where it comes from and where it runs."""
        self.nursery, self.place = nursery, place
        return self

    def start(self) -> Forked:
        """Start the process; its output is appended to `log`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        born = self.nursery.start(self.argv, self.place, self.log)
        self.process = cast("subprocess.Popen[bytes]", born)
        return self


def serve(fd: int) -> None:
    """Import, then fork whatever is asked for, until the laboratory ends."""
    for name in MODULES:
        importlib.import_module(name)
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise RuntimeError("a module started a thread on import; forking is not safe")
    gc.collect()
    gc.freeze()
    laboratory = os.getppid()
    with socket.socket(fileno=fd) as link:
        link.send(b"ready")
        while request := link.recv(REQUEST_BYTES):
            link.send(str(_bear(json.loads(request), laboratory, fd)).encode())


def _bear(request: dict[str, Any], laboratory: int, fd: int) -> int:
    near, far = os.pipe()
    middle = os.fork()
    if not middle:
        pid = os.fork()
        if pid:
            os.write(far, str(pid).encode())
            os._exit(0)
        for end in (near, far, fd):
            os.close(end)
        _live(request, laboratory)
    os.waitpid(middle, 0)
    pid = int(os.read(near, 16))
    os.close(near)
    os.close(far)
    return pid


def _live(request: dict[str, Any], laboratory: int) -> None:
    """Be the new process; never returns."""
    code = 1
    try:
        while os.getppid() != laboratory:
            time.sleep(0.001)
        _LIBC.prctl(_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        out = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(out, 1)
        os.dup2(out, 2)
        _enter(request["place"])
        module, *sys.argv[1:] = request["argv"]
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it was, it is this process's last word
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _enter(place: str) -> None:
    if _LIBC.setns(os.open(f"/run/netns/{place}", os.O_RDONLY), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {place}")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
