"""Fixtures of the agents' tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from tests.agents.linked import patient, replicas
from tests.agents.whole import replica

__all__ = ["patient", "replica", "replicas"]  # fixtures

BOTH_LOOPS = ("test_probes", "test_sntp")
"""Modules that touch sockets themselves run on uvloop too, as the daemon does: it connects, times
and closes in its own way."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Say on which loops a test runs."""
    del config
    if any(name in item.nodeid for name in BOTH_LOOPS):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
