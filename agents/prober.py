"""Runs the probes: one loop per target, so at most one in flight each, and few at once in all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

from agents.cadence import first_slot, next_slot
from agents.counters import Counters
from agents.probes import observe
from agents.probes.dns import Resolver
from agents.probes.observation import Observation
from agents.targets import Target
from controlplane.clock import Clock
from controlplane.logging import get

MAX_IN_FLIGHT: Final = 64
"""Probes at once. More would measure this agent's own congestion."""

log = get("prober")

Noted = Callable[[Target, Observation], None]


class Prober:
    """Probes every target once an interval and counts what it sees."""

    def __init__(
        self,
        targets: Sequence[Target],
        counters: Counters,
        resolver: Resolver,
        clock: Clock,
        rng: random.Random,
        *,
        interval_ms: int,
        noted: Noted = lambda *_: None,
    ) -> None:
        self._targets = targets
        self._counters = counters
        self._resolver = resolver
        self._clock = clock
        self._rng = rng
        self._interval_ms = interval_ms
        self._noted = noted
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._failing: set[Target] = set()

    async def run(self) -> None:
        """Probe until cancelled; probes in flight are cancelled too and not counted."""
        async with asyncio.TaskGroup() as group:
            for target in self._targets:
                group.create_task(self._one(target), name=f"probe-{target.name}")

    async def _one(self, target: Target) -> None:
        interval_ms = target.interval_ms or self._interval_ms
        slot = first_slot(self._clock.monotonic_ms(), interval_ms, self._rng)
        while True:
            await self._clock.sleep_ms(max(0.0, slot.due_ms - self._clock.monotonic_ms()))
            async with self._places:
                seen = await observe(target, self._resolver)
            self._note(target, seen)
            slot = next_slot(slot, self._clock.monotonic_ms(), interval_ms, self._rng)

    def _note(self, target: Target, seen: Observation) -> None:
        self._counters.observed(target, seen, self._clock.monotonic_ms())
        self._noted(target, seen)
        what = {"subject": target.subject.value, "name": target.name}
        if not seen.ok and target not in self._failing:
            self._failing.add(target)
            log.warning("probe_failing", **what, reason=seen.reason, detail=seen.detail)
        elif seen.ok and target in self._failing:
            self._failing.discard(target)
            log.info("probe_well_again", **what)
