"""Real etcd for tests: fixtures, and faults that need more than a signal.

Tests that harm nobody share one cluster per session, each under a cluster name of its own; tests
that break members get their own (`own_etcd`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # children are exec'ed at once

import pytest

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.dev.process import find_binary
from controlplane.dev.servers import EtcdCluster, EtcdMember, scratch_root
from controlplane.model.errors import WeirError
from tests.support.replicas import Replicas, until

CTL_S = 60
"""How long etcdctl may take, in s: its own 5 s are too few on a busy machine."""
PATIENT = EtcdOptions(attempt_ms=60_000, call_ms=60_000)
"""For members that nobody breaks: a busy machine must not look like a failure."""
_names = itertools.count(1)


@pytest.fixture
def etcd_scratch() -> Iterator[Path]:
    """Return a private directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-etcd-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def shared_etcd() -> Iterator[EtcdCluster]:
    """Three members for tests that break none of them."""
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-etcd-") as name:
        cluster = EtcdCluster(Path(name)).start()
        yield cluster
        cluster.stop()


@pytest.fixture
def own_etcd(etcd_scratch: Path) -> Iterator[EtcdCluster]:
    """Three members of this test alone."""
    cluster = EtcdCluster(etcd_scratch / "etcd").start()
    yield cluster
    cluster.stop()


@pytest.fixture
def lone_etcd(etcd_scratch: Path) -> Iterator[EtcdCluster]:
    """One member of this test alone: gone and back quickly."""
    cluster = EtcdCluster(etcd_scratch / "etcd", size=1).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster_name() -> str:
    """Name of a Weir cluster that no other test uses."""
    return f"t{next(_names)}"


@pytest.fixture
async def kv(shared_etcd: EtcdCluster) -> AsyncIterator[EtcdClient]:
    """Return a client of the shared members."""
    client = await EtcdClient.connect(shared_etcd.endpoints, options=PATIENT)
    yield client
    await client.aclose()


@pytest.fixture
async def own_kv(own_etcd: EtcdCluster) -> AsyncIterator[EtcdClient]:
    """Return a client of this test's own members."""
    client = await EtcdClient.connect(own_etcd.endpoints, options=EtcdOptions(call_ms=20_000))
    yield client
    await client.aclose()


@pytest.fixture
def replicas(shared_etcd: EtcdCluster, etcd_scratch: Path, cluster_name: str) -> Iterator[Replicas]:
    """Leader processes on the shared members."""
    group = Replicas(etcd_scratch, shared_etcd.endpoints, cluster_name)
    yield group
    group.stop()


@pytest.fixture
def own_replicas(
    own_etcd: EtcdCluster, etcd_scratch: Path, cluster_name: str
) -> Iterator[Replicas]:
    """Leader processes on this test's own members."""
    group = Replicas(etcd_scratch, own_etcd.endpoints, cluster_name)
    yield group
    group.stop()


async def raft_leader(cluster: EtcdCluster) -> EtcdMember:
    """Return the member that leads raft, once one does."""

    def found() -> EtcdMember | None:
        with contextlib.suppress(WeirError):
            return cluster.leader()
        return None

    member: EtcdMember = await until(found, "etcd elects")
    return member


def etcdctl(endpoints: Sequence[str], *args: str) -> str:
    """Run etcdctl (API 3) and return what it printed."""
    command = [
        find_binary("etcdctl"), f"--endpoints={','.join(endpoints)}",
        f"--command-timeout={CTL_S}s", f"--dial-timeout={CTL_S}s", *args,
    ]  # fmt: skip
    env = {**os.environ, "ETCDCTL_API": "3"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=2 * CTL_S, check=False
    )
    assert done.returncode == 0, f"{args}: {done.stderr}"
    return done.stdout


def etcdctl_ok(endpoints: Sequence[str], *args: str) -> bool:
    """Run etcdctl; whether it succeeded."""
    try:
        etcdctl(endpoints, *args)
    except AssertionError:
        return False
    return True


def restore(cluster: EtcdCluster, snapshot: Path) -> None:
    """Stop every member and start the cluster anew from a snapshot, on the same addresses."""
    initial = ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in cluster.members)
    for member in cluster.members:
        member.child.kill()
        shutil.rmtree(member.directory, ignore_errors=True)  # one may not have begun yet
        etcdctl(
            [], "snapshot", "restore", str(snapshot), f"--name={member.name}",
            f"--data-dir={member.directory}", f"--initial-cluster={initial}",
            f"--initial-cluster-token=restored-{cluster.directory.name}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{member.peer_port}",
        )  # fmt: skip
    for member in cluster.members:
        member.child.start()
    cluster.wait_ready()
