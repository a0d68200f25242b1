"""A whole agent in this process, its configuration, and a replica for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from agents.agent import Addresses, Agent
from controlplane.config import WeirConfig, parse
from tests.agents.replica import Replica


def settings(directory: Path, replica: str, **values: Any) -> dict[str, Any]:
    """Return a configuration for an agent in east; `values` go over the section agent."""
    return {
        "cluster": {"id": "a-0", "region": "east"},
        "regions": {
            "east": {"role": "primary", "share_bp": 7000, "capacity_tps": 100},
            "north": {"role": "standby", "share_bp": 3000, "capacity_tps": 100},
        },
        "channels": {"alipay": {"regions": ["east", "north"]}},
        "coordination": {"endpoints": ["127.0.0.1:1"]},
        "agent": {
            "servers": [replica],
            "http_listen": "127.0.0.1:0",
            "state_dir": str(directory / "state"),
            "interval_ms": 50,
            **values,
        },
    }


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    """Return a replica that is gone at the end."""
    replica = await Replica().start()
    yield replica
    await replica.kill()


def config(settings: dict[str, Any]) -> WeirConfig:
    """Check a configuration as the daemon does."""
    return parse(yaml.safe_dump(settings))


@contextlib.asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Addresses]:
    """Run an agent within the block and end it in order."""
    ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run(ready))
        addresses = await ready
        try:
            yield addresses
        finally:
            agent.stop()


async def get(addresses: Addresses, path: str) -> tuple[int, str]:
    """GET from the agent's HTTP server."""
    host, port = addresses.http
    url = f"http://{host}:{port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, await answer.text()
