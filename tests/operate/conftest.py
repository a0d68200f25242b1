"""One etcd for this folder; replicas in this process."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from controlplane.dev.servers import EtcdCluster, RedisServer, scratch_root
from tests.operate.lab import Lab, running

_names = (f"op{i}" for i in itertools.count())


@pytest.fixture(scope="session")
def operate_etcd() -> Iterator[list[str]]:
    """A real etcd with one member."""
    directory = Path(tempfile.mkdtemp(prefix="weir-op-", dir=scratch_root()))
    cluster = EtcdCluster(directory, size=1).start()
    yield cluster.endpoints
    cluster.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def operate_redis() -> Iterator[int]:
    """Port of a real Redis; every cluster has a prefix of its own."""
    directory = Path(tempfile.mkdtemp(prefix="weir-op-", dir=scratch_root()))
    server = RedisServer(directory).start()
    yield server.port
    server.kill()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def lab(operate_etcd: list[str], operate_redis: int, tmp_path: Path) -> AsyncIterator[Lab]:
    """Three replicas on loopback without TLS."""
    async with running(operate_etcd, tmp_path, next(_names), redis=operate_redis) as found:
        yield found


@pytest.fixture
async def tls_lab(
    operate_etcd: list[str], operate_redis: int, tmp_path: Path
) -> AsyncIterator[Lab]:
    """Three replicas with mutual TLS."""
    names = next(_names)
    async with running(operate_etcd, tmp_path, names, redis=operate_redis, tls=True) as found:
        yield found
