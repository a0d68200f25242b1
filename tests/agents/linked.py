"""A link with everything it needs, for tests that look at what it does to its replicas."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from agents import session
from agents.apply import Applier
from agents.counters import Counters
from agents.dialout import Connect, connector
from agents.lag import LoopLag
from agents.link import Link
from agents.report import Identity, Reporter
from agents.servers import Rotation
from agents.sources import Queues
from agents.store import PlanFile
from controlplane.clock import Clock, SystemClock
from controlplane.config import TlsSection
from controlplane.model.ids import AgentId, RegionName
from tests.agents.replica import Replica

IDENTITY = Identity(agent=AgentId("a-0"), region=RegionName("east"), boot=99)


class Meter:
    """Counts what the link says of itself."""

    def __init__(self) -> None:
        self.reports: Counter[str] = Counter()
        self.up = False

    def report(self, result: str) -> None:
        """Count an answer."""
        self.reports[result] += 1

    def set_link_up(self, up: bool) -> None:
        """Note the state."""
        self.up = up


class Agent:
    """A link with everything it needs, but no probes."""

    def __init__(
        self,
        directory: Path,
        addresses: Sequence[str],
        *,
        home: int = 1,
        connect: Connect | None = None,
        clock: Clock | None = None,
        seed: int = 1,
        interval_ms: int = 20,
    ) -> None:
        clock = clock or SystemClock()
        self.stop = asyncio.Event()
        self.meter = Meter()
        self.rotation = Rotation(addresses, home, random.Random(seed))
        self.applier = Applier(PlanFile(directory), clock)
        reporter = Reporter(
            IDENTITY, Counters(["alipay"], []), self.applier, LoopLag(), Queues(clock), clock
        )
        self.link = Link(
            self.rotation,
            connect or connector(TlsSection()),
            reporter,
            self.applier,
            clock,
            random.Random(2),
            self.meter,
            interval_ms=interval_ms,
        )
        self.ended = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        """Run within the block; ends in order."""
        async with asyncio.TaskGroup() as group:
            applying = group.create_task(self.applier.run())
            linked = group.create_task(self.link.run(self.stop))
            try:
                yield self
            finally:
                self.stop.set()
                await asyncio.wait([linked], timeout=60)
                self.ended = linked.done()
                linked.cancel()
                applying.cancel()


@pytest.fixture
async def replicas() -> AsyncIterator[Callable[[int], object]]:
    """Return a maker of replicas that are gone at the end."""
    made: list[Replica] = []

    async def make(port: int = 0) -> Replica:
        replica = await Replica(port).start()
        made.append(replica)
        return replica

    yield make
    for replica in made:
        await replica.kill()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every answer take as long as a busy machine needs: nobody is left for being late."""
    for name, patience in (
        ("SILENCE_MS", 60_000),
        ("PLAN_LAG_MS", 60_000),
        ("ACK_TIMEOUT_S", 60.0),
    ):
        monkeypatch.setattr(session, name, patience)
