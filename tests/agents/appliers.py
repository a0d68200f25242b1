"""An applier that runs, the sinks it gives plans to, and a disk in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agents.apply import Applier
from agents.store import PlanFile, Saved
from controlplane.dev.servers import scratch_root
from controlplane.model.errors import UnavailableError
from controlplane.model.plan import Plan


class Recorder:
    """A sink that notes what it was given, and can refuse."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bool]] = []
        self.refuse = False

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Note the plan."""
        if self.refuse:
            raise OSError("disk of the data plane is full")
        self.taken.append((plan.epoch, confirmed))


@contextlib.asynccontextmanager
async def running(applier: Applier) -> AsyncIterator[Applier]:
    """Run the applier's background work within the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(applier.run())
        try:
            yield applier
        finally:
            task.cancel()


class MemoryFile(PlanFile):
    """A disk in memory, which may be full."""

    def __init__(self) -> None:
        super().__init__(scratch_root())
        self.saved = Saved()
        self.failing = False
        self.tries = 0

    def load(self) -> Saved:
        """Return what was saved last."""
        return self.saved

    def save(self, saved: Saved) -> None:
        """Keep it, unless the disk is full."""
        self.tries += 1
        if self.failing:
            raise UnavailableError("No space left on device")
        self.saved = saved
