"""etcd goes while a leader has something to do: it says what it would have done, nobody hears of
it, and afterwards the moves go on where they were."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from controlplane.adapters import wire
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import unpack_plan
from controlplane.adapters.etcd_leader import EtcdLeaderKey
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.clock import SystemClock
from controlplane.decision.log import replay
from controlplane.dev.servers import EtcdCluster
from controlplane.model.evidence import Evidence
from controlplane.model.ids import ReplicaId
from controlplane.model.intents import NO_INTENTS
from controlplane.model.plan import Plan
from controlplane.model.topology import Policy
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.book import DigestBook
from controlplane.runtime.inbox import Inbox
from controlplane.runtime.leadership import Elector
from controlplane.runtime.recorder import WOULD_HAVE, DecisionRecorder
from controlplane.runtime.subscribers import SubscriberRegistry
from controlplane.runtime.tick import DecisionLoop, Tick
from controlplane.simulation.demo import EAST, demo_topology
from controlplane.simulation.run import Simulation
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.history import check, read_history
from tests.support.replicas import until

CLOCK = SystemClock()
TOPOLOGY = demo_topology(Policy(tick_ms=100))
MOVED = replace(
    TOPOLOGY,
    regions=tuple(
        replace(region, share_bp=share_bp)
        for region, share_bp in zip(TOPOLOGY.regions, (3000, 6500, 500), strict=True)
    ),
)
"""The same world with other base shares: weights get there in many small steps."""


def all_is_well() -> Evidence:
    """Return evidence in which every region is healthy."""
    kept: list[Evidence] = []
    with pytest.MonkeyPatch.context() as patch:
        from controlplane.simulation import run  # noqa: PLC0415 - what is patched

        real = run.step

        def keep(topology, state, evidence, intents, now_ms):  # type: ignore[no-untyped-def]
            kept.append(evidence)
            return real(topology, state, evidence, intents, now_ms)

        patch.setattr(run, "step", keep)
        Simulation(TOPOLOGY, [], duration_ms=5_000).run()
    return replace(kept[-1], gains=None)


class Told(DecisionLoop):
    """A loop whose evidence is given."""

    told: Evidence

    def _fold(self, _now_ms: int) -> Evidence:
        return replace(
            self.told, committed_epoch=self._board.epoch, converged_epoch=self._board.epoch,
            highest_epoch=self._board.epoch,
        )  # fmt: skip


class NoMetrics:
    """Counts nothing."""

    def tick(self, seconds: float) -> None:
        """Ignore."""

    def fenced_write_rejected(self) -> None:
        """Ignore."""

    def alarm(self, kind: str) -> None:
        """Fail: no invariant may break here."""
        raise AssertionError(kind)


@dataclass
class Leader:
    """One leader's elector, store and loop, without its servers."""

    kv: EtcdClient
    directory: Path
    ticks: list[Tick] = field(default_factory=list)
    tasks: list[asyncio.Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = EtcdPlanStore(self.kv, "t", CLOCK)
        self.elector = Elector(
            key=EtcdLeaderKey(self.kv, "t", CLOCK), touch=self.store.touch, replica="a",
            region="east", clock=CLOCK,
        )  # fmt: skip
        self.store.on_write, self.store.on_deposed = self.elector.renewed, self.elector.deposed
        self.board = PlanBoard(TOPOLOGY)
        self.recorder = DecisionRecorder(self.directory)
        self.loop = Told(
            topology=TOPOLOGY, inbox=Inbox(TOPOLOGY, ReplicaId("a"), EAST, 1, 10),
            book=DigestBook(), board=self.board, subscribers=SubscriberRegistry(10),
            store=self.store, election=self.elector, clock=CLOCK, metrics=NoMetrics(), region=EAST,
            intents=lambda: NO_INTENTS, on_digest=self.nobody, recorder=self.keep,
        )  # fmt: skip
        self.loop.told = all_is_well()

    def start(self) -> Leader:
        """Campaign, tick, follow."""
        work = (self.elector.run(), self.loop.run(), self.follow())
        self.tasks = [asyncio.ensure_future(part) for part in work]
        return self

    async def nobody(self, _digest: object) -> None:
        """There are no peers."""

    def keep(self, tick: Tick) -> None:
        """Record and remember."""
        self.recorder.record(tick)
        self.ticks.append(tick)

    async def follow(self) -> None:
        """Publish what etcd holds."""
        async for committed in self.store.follow():
            await self.board.publish(committed.plan)

    async def stop(self) -> None:
        """Leave."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def leader(lone_etcd: EtcdCluster, etcd_scratch: Path) -> AsyncIterator[Leader]:
    """Lead on an etcd of one member."""
    options = EtcdOptions(call_ms=1000)
    kv = await EtcdClient.connect(lone_etcd.endpoints, options=options)
    leader = Leader(kv, etcd_scratch / "decisions").start()
    yield leader
    await leader.stop()
    await kv.aclose()


def east_bp(plan: Plan) -> int:
    """Weight of East on the first channel."""
    return dict(plan.routes[0].weights)[EAST]


async def test_without_etcd_it_says_what_it_would_have_done(
    lone_etcd: EtcdCluster, leader: Leader
) -> None:
    """While etcd is gone the plan in force stays, thoughts are counted and recorded apart and
    travel nowhere; with etcd back the weights go on from what was committed, step by step, and
    every file of the decision log replays."""
    await until(lambda: leader.board.epoch > 0, "a plan")
    lone_etcd.members[0].child.kill()
    await until(lambda: leader.elector.suspended, "it steps back")
    leader.loop.reconfigure(MOVED)
    before, started = leader.board.plan, len(leader.ticks)
    assert before is not None

    def thought() -> list[Plan]:
        return [tick.result.plan for tick in leader.ticks[started:] if tick.would_have]

    await until(lambda: thought() and thought()[-1].epoch >= before.epoch + 5, "it thinks on")
    assert east_bp(thought()[-1]) < east_bp(before) - 4 * MOVED.policy.step_limit_bp
    assert leader.loop.uncommitted_ticks > 4
    assert leader.board.plan == before
    lone_etcd.members[0].child.start()
    await until(lambda: leader.board.epoch >= before.epoch + 3, "it goes on")
    await until(lambda: leader.loop.uncommitted_ticks == 0, "nothing is left to say")
    await leader.stop()

    lone_etcd.wait_ready()
    kv = await EtcdClient.connect(lone_etcd.endpoints)
    events = await read_history(kv, "t")
    await kv.aclose()
    assert check(events, "t") == []
    plans = [
        wire.parse_plan(unpack_plan(event.value)[1])
        for event in events
        if event.key == leader.store.keys.plan and event.value is not None
    ]
    for old, new in itertools.pairwise(plans):
        steps = new.epoch - old.epoch  # a write that failed while it still led leaves one out
        assert 1 <= steps <= 3
        assert abs(east_bp(new) - east_bp(old)) <= steps * MOVED.policy.step_limit_bp
    while (taken := leader.recorder.take()) is not None:
        leader.recorder.write(*taken)
    files = sorted(leader.directory.iterdir())
    thoughts = [WOULD_HAVE in file.name for file in files]
    assert (thoughts[0], any(thoughts), thoughts[-1]) == (False, True, False)
    for file in files:
        assert replay(file.read_bytes().splitlines(keepends=True)).difference is None


async def test_each_term_is_told_once_in_the_audit(leader: Leader) -> None:
    """Whoever comes to lead says so with its term: from the events an operator reads when
    leadership changed, and nothing is said again by a leader that leads on."""
    terms: list[int] = []

    def leads_anew() -> bool:
        return bool(leader.ticks) and leader.ticks[-1].leadership.term not in terms

    for _ in range(2):
        await until(leads_anew, "it leads")
        terms.append(leader.ticks[-1].leadership.term)
        seen = len(leader.ticks)
        await until(lambda seen=seen: len(leader.ticks) > seen + 3, "it leads on")  # type: ignore[misc]
        await leader.elector.resign()

    events, _ = await leader.store.events(limit=50)
    told = [event.message for event in events if event.kind == "leader_elected"]
    assert told[-2:] == [f"a leads, term {term}" for term in reversed(terms)]
    assert len(told) == len(set(told))
