"""Ticks written down: the decision log, and each failover counted once, when it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from controlplane.adapters.prometheus import Metrics
from controlplane.clock import Clock
from controlplane.runtime.recorder import DecisionRecorder
from controlplane.runtime.tick import Tick

WRITE_MS: Final = 500


class Chronicle:
    """Keeps what this leader's ticks decided."""

    def __init__(
        self,
        recorder: DecisionRecorder,
        metrics: Metrics,
        clock: Clock,
        budget_ms: Callable[[], int],
    ) -> None:
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self._budget_ms = budget_ms
        # failovers this leader saw begin are counted once when they close
        self._seen_running: set[str] = set()
        self._closed: dict[str, str] = {}

    def record(self, tick: Tick) -> None:
        """Keep what a tick decided, and count the failovers it closed."""
        self._recorder.record(tick)
        if tick.would_have:
            return
        running = None
        for record in tick.result.failovers:
            if record.outcome == "running":
                running = record
                self._seen_running.add(record.id)
            elif self._closed.setdefault(record.id, "") != record.outcome:
                if record.id in self._seen_running:
                    self._metrics.failover_closed(record)
                self._closed[record.id] = record.outcome
        left_ms = self._budget_ms()
        if running is not None:
            left_ms -= tick.result.state.memory.now_ms - running.symptom_ms
        self._metrics.set_failover_running(running, left_ms)

    async def run(self) -> None:
        """Bring the decision log to disk twice a second, off the loop."""
        while True:
            await self._clock.sleep_ms(WRITE_MS)
            taken = self._recorder.take()
            if taken is not None:
                await asyncio.to_thread(self._recorder.write, *taken)
