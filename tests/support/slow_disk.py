"""Members of etcd on a slow disk: the kernel's answer to every fsync comes late.

etcd is written in Go and calls the kernel itself, so no preloaded library can slow its writes down:
`strace` does, by ptrace, and stops it at nothing but the two calls (seccomp). `-D` leaves etcd our
own child. A tracer cannot be taken away from a filtered process, so a disk becomes slow, or well
again, with a restart of its member.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.dev.process import find_binary
from controlplane.dev.servers import EtcdCluster, EtcdMember, etcd_status, wait_until
from controlplane.model.errors import WeirError
from tests.support.etcd import etcdctl_ok
from tests.support.replicas import WAIT_S

CALLS = "fsync,fdatasync"
_numbers = itertools.count(1)


def strace(log: Path, delay_ms: int, every: int) -> list[str]:
    """Return the command in front of a program whose syncs shall be slow."""
    when = f":when={every}+{every}" if every > 1 else ""
    return [
        find_binary("strace", hint="apt install strace"), "-D", "-f", "-qq", "--seccomp-bpf",
        "-e", "signal=none", "-e", f"trace={CALLS}",
        "-e", f"inject={CALLS}:delay_exit={delay_ms * 1000}{when}", "-o", str(log),
    ]  # fmt: skip


@dataclass(slots=True)
class SlowDisk:
    """One member's disk. `every`: one sync in so many (of each thread) is slow; `ready_s`: how long
    the member may take to be healthy with it, 0 to leave that open."""

    cluster: EtcdCluster
    member: EtcdMember
    delay_ms: int = 1000
    every: int = 4
    ready_s: float = WAIT_S
    log: Path = field(init=False)
    argv: list[str] = field(init=False)

    def begin(self) -> SlowDisk:
        """Start the member again, with the slow disk."""
        self.log = self.cluster.directory / f"slow-{self.member.name}-{next(_numbers)}.strace"
        self.argv = list(self.member.child.argv)
        self._tried()
        self._restart([*strace(self.log, self.delay_ms, self.every), *self.argv], self.ready_s)
        return self

    def end(self) -> None:
        """Start the member again, with the disk it had."""
        self._restart(self.argv, WAIT_S)

    def slow_syncs(self) -> int:
        """How many syncs have been slow."""
        return self.log.read_text().count("(DELAYED)") if self.log.exists() else 0

    def leads(self) -> bool:
        """Whether this member leads raft; if another does, ask that one to hand over."""
        with contextlib.suppress(WeirError):  # nobody leads now
            leader = self.cluster.leader()
            if leader is self.member:
                return True
            etcdctl_ok([leader.endpoint], "move-leader", f"{self.member_id():x}")
        return False

    def member_id(self) -> int:
        """Id of this member in raft."""
        if (status := etcd_status(self.member.client_port)) is None:
            raise WeirError(f"{self.member.name} does not answer")
        return int(status["header"]["member_id"])

    def _restart(self, argv: list[str], ready_s: float) -> None:
        self.member.child.kill()
        self.member.child.argv = argv
        self.member.child.start()
        if ready_s:
            wait_until(self.member.healthy, f"etcd {self.member.name}", ready_s)

    def _tried(self) -> None:
        """Fail with the reason where a process may not trace its own child."""
        done = subprocess.run(
            [*strace(self.log, 1, 1), "sync", "-d", str(self.cluster.directory)],
            capture_output=True, text=True, timeout=WAIT_S, check=False,
        )  # fmt: skip
        assert self.slow_syncs(), (
            f"strace slows nothing down here (is ptrace forbidden?): {done.returncode} {done.stderr}"
        )
