"""Background work that ends with its owner, and the one place that starts tasks by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from controlplane.clock import Clock
from controlplane.model.errors import Alarm

log = structlog.get_logger(__name__)

RESTART_BASE_MS: Final = 200
"""First wait before a failed part is started again; doubles up to `RESTART_MAX_MS`."""
RESTART_MAX_MS: Final = 5_000


def spawn(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task whose owner keeps and cancels it (only where no TaskGroup can hold it)."""
    return asyncio.get_running_loop().create_task(coroutine, name=name)


async def keep_running(name: str, part: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run a part for ever: an expected failure is logged and the part starts again after a
    bounded, growing wait.

    An Alarm is a broken invariant and ends the whole process.
    """
    wait_ms = RESTART_BASE_MS
    while True:
        started_ms = clock.monotonic_ms()
        try:
            # a task of its own: see agents.link on TaskGroups before Python 3.11.3
            await asyncio.ensure_future(_coroutine(part))
            log.warning("part_ended", part=name)
        except Alarm:
            log.critical("alarm", part=name, exc_info=True)
            raise
        except Exception:
            log.exception("part_failed", part=name)
        if clock.monotonic_ms() - started_ms > RESTART_MAX_MS:
            wait_ms = RESTART_BASE_MS
        await clock.sleep_ms(wait_ms)
        wait_ms = min(RESTART_MAX_MS, wait_ms * 2)


async def _coroutine(part: Callable[[], Awaitable[None]]) -> None:
    await part()
