"""Parts of the agent that must not end: they are started again, at a bounded rate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from controlplane.clock import Clock
from controlplane.logging import get
from controlplane.model.errors import Alarm

RESTART_BASE_MS: Final = 200
RESTART_MAX_MS: Final = 5_000

log = get("agent")


async def keep(name: str, part: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run a part until it returns; start it again when it raises. An Alarm ends the process."""
    wait_ms = RESTART_BASE_MS
    while True:
        started_ms = clock.monotonic_ms()
        try:
            await part()
        except Alarm:
            log.exception("alarm", failed=name)
            raise
        except Exception:
            log.exception("part_failed", failed=name, restart_in_ms=wait_ms)
        else:
            return
        if clock.monotonic_ms() - started_ms > RESTART_MAX_MS:
            wait_ms = RESTART_BASE_MS
        await clock.sleep_ms(wait_ms)
        wait_ms = min(RESTART_MAX_MS, wait_ms * 2)
