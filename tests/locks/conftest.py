"""Real servers for the tests of the locks; one etcd and one of each database for all, a Redis and
a prefix per test."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from lock_databases import mariadb_server, postgres_server
from lock_lab import Lab

from controlplane.dev.servers import EtcdCluster, RedisServer, scratch_root


@pytest.fixture(scope="session")
def lock_etcd() -> Iterator[EtcdCluster]:
    """One real etcd member that nobody stops."""
    directory = Path(tempfile.mkdtemp(prefix="weir-locks-", dir=scratch_root()))
    cluster = EtcdCluster(directory, size=1).start()
    yield cluster
    cluster.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Connection string of a real PostgreSQL."""
    with postgres_server() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def mariadb() -> Iterator[dict[str, Any]]:
    """Arguments of `pymysql.connect` for a real MariaDB."""
    with mariadb_server() as arguments:
        yield arguments


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory on tmpfs."""
    directory = Path(tempfile.mkdtemp(prefix="weir-locks-", dir=scratch_root()))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """A real Redis of this test."""
    server = RedisServer(folder).start()
    yield server
    server.kill()


@pytest.fixture
async def lab(redis_server: RedisServer, lock_etcd: EtcdCluster) -> AsyncIterator[Lab]:
    """Managers on one Redis and one etcd under a prefix of their own."""
    found = Lab(redis_server, lock_etcd, f"t{uuid.uuid4().hex[:12]}")
    async with found:
        yield found
