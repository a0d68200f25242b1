"""etcd and Redis as child processes, for the local topology and for tests on real components."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.dev.process import Child, find_binary, free_port
from controlplane.model.errors import WeirError

READY_S = 60.0
"""How long a server may take until it answers."""


def wait_until(ready: Callable[[], bool], what: str, deadline_s: float = READY_S) -> None:
    """Poll an observable condition of another process; raises WeirError when the deadline
    passes."""
    end = time.perf_counter() + deadline_s
    while not ready():
        if time.perf_counter() > end:
            raise WeirError(f"{what}: not ready within {deadline_s:g} s")
        time.sleep(0.02)


def tcp_answers(port: int) -> bool:
    """Tell whether something accepts connections on a loopback port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


def http_get(port: int, path: str, timeout_s: float = 0.5) -> tuple[int, bytes] | None:
    """GET from a loopback port; None when nobody answers."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        conn.request("GET", path)
        answer = conn.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        conn.close()


@dataclass(slots=True)
class EtcdMember:
    """One member. `client_port` serves clients, `peer_port` its peers."""

    name: str
    directory: Path
    client_port: int
    peer_port: int
    child: Child

    @property
    def endpoint(self) -> str:
        """Address for clients, host:port."""
        return f"127.0.0.1:{self.client_port}"

    def healthy(self) -> bool:
        """Whether the member sees a leader and can write."""
        answer = http_get(self.client_port, "/health")
        return bool(answer and answer[0] == http.client.OK and b"true" in answer[1])


def etcd_args(
    name: str,
    directory: Path,
    ports: Mapping[str, tuple[int, int]],
    *,
    heartbeat_ms: int,
    election_ms: int,
) -> list[str]:
    """Return the arguments of one member. `ports` gives (client, peer) of every member; data lies
    in `directory/name`, so that a member started again rejoins with its data."""
    client, peer = ports[name]
    initial = ",".join(f"{member}=http://127.0.0.1:{port}" for member, (_, port) in ports.items())
    return [
        f"--name={name}",
        f"--data-dir={directory / name}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster={initial}",
        "--initial-cluster-state=new",
        f"--initial-cluster-token=weir-{directory.name}",
        f"--heartbeat-interval={heartbeat_ms}",
        f"--election-timeout={election_ms}",
        "--log-level=warn",
    ]


@dataclass(slots=True)
class EtcdCluster:
    """A cluster of real etcd processes on loopback, state below `directory`."""

    directory: Path
    size: int = 3
    heartbeat_ms: int = 100
    election_ms: int = 1000
    names: Sequence[str] = ()
    extra_args: Sequence[str] = ()
    members: list[EtcdMember] = field(default_factory=list)

    def start(self) -> EtcdCluster:
        """Start every member and wait until the cluster can write."""
        binary = find_binary("etcd")
        names = list(self.names) or [f"m{i}" for i in range(self.size)]
        ports = {name: (free_port(), free_port()) for name in names}
        for name, (client, peer) in ports.items():
            argv = [
                binary,
                *etcd_args(
                    name,
                    self.directory,
                    ports,
                    heartbeat_ms=self.heartbeat_ms,
                    election_ms=self.election_ms,
                ),
                *self.extra_args,
            ]
            child = Child(f"etcd-{name}", argv, self.directory / f"{name}.log").start()
            self.members.append(EtcdMember(name, self.directory / name, client, peer, child))
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until every running member is healthy."""
        for member in self.members:
            if member.child.alive:
                wait_until(member.healthy, f"etcd {member.name}")

    @property
    def endpoints(self) -> list[str]:
        """Client addresses of all members."""
        return [member.endpoint for member in self.members]

    def leader(self) -> EtcdMember:
        """Return the member that leads raft now; WeirError when none does."""
        for member in self.members:
            if not member.child.alive:
                continue
            status = etcd_status(member.client_port)
            if (
                status and status.get("leader") == status["header"]["member_id"]
            ):  # no leader: no key
                return member
        raise WeirError("etcd: no member leads")

    def stop(self) -> None:
        """Stop every member."""
        for member in self.members:
            member.child.kill()


def etcd_status(port: int) -> dict[str, Any] | None:
    """Maintenance status over the JSON gateway; None when the member does not answer."""
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=0.5)
    try:
        conn.request("POST", "/v3/maintenance/status", b"{}")
        status: dict[str, Any] = json.loads(conn.getresponse().read())
        return status
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        conn.close()


def redis_args(port: int, data: Path, replica_of: int = 0) -> list[str]:
    """Return the arguments of a Redis that keeps nothing on disk, as the locks expect."""
    return [
        "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data),
        "--save", "", "--appendonly", "no", "--daemonize", "no",
        "--repl-diskless-sync-delay", "0",
        *(("--replicaof", "127.0.0.1", str(replica_of)) if replica_of else ()),
    ]  # fmt: skip


@dataclass(slots=True)
class RedisServer:
    """One Redis or Valkey process on loopback. `replica_of` is the port of its primary."""

    directory: Path
    name: str = "redis"
    port: int = 0
    replica_of: int = 0
    extra_args: Sequence[str] = ()
    child: Child | None = None

    def start(self) -> RedisServer:
        """Start (again) and wait until it answers PING."""
        self.port = self.port or free_port()
        data = self.directory / self.name
        data.mkdir(parents=True, exist_ok=True)
        argv = [
            find_binary("redis-server"),
            *redis_args(self.port, data, self.replica_of),
            *self.extra_args,
        ]
        self.child = Child(self.name, argv, self.directory / f"{self.name}.log").start()
        try:
            wait_until(self.answers, self.name)
        except WeirError as error:
            raise WeirError(f"{error}; its log ends:\n{self.child.tail()}") from error
        return self

    def answers(self) -> bool:
        """Whether it answers PING (a server that loads its data does not yet)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 0.2) as sock:
                sock.settimeout(0.5)
                sock.sendall(b"PING\r\n")
                return sock.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL."""
        if self.child:
            self.child.kill()

    def wipe(self) -> None:
        """Delete what it keeps on disk (only while it is down)."""
        shutil.rmtree(self.directory / self.name, ignore_errors=True)


def scratch_root() -> Path:
    """Directory for state of test servers: tmpfs when there is one, since etcd waits for fsync."""
    shm = Path("/dev/shm")  # noqa: S108 - callers make a private directory below it
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
