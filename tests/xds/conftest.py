"""Fixtures of the xDS tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # children are exec'ed at once

import aiohttp
import pytest

from controlplane.dev.servers import scratch_root
from tests.xds.lab import Lab


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return a private directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-xds-") as name:
        yield Path(name)


@pytest.fixture
async def lab(scratch: Path) -> AsyncIterator[Lab]:
    """Three gateways and one ADS server, all real."""
    lab = await Lab(scratch).start()
    try:
        yield lab
    finally:
        await lab.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """Return a client without connection limit."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session
