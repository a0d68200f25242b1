"""Who leads, with the real elector on real etcd: handing over, standing back, being cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import pytest

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.etcd_leader import EtcdLeaderKey
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.clock import SystemClock
from controlplane.dev.servers import EtcdCluster
from controlplane.model.errors import DeposedError, UnavailableError, WeirError
from controlplane.model.ids import Epoch
from controlplane.ports import Beat, Delete, LeaderKeyState, Leadership
from controlplane.runtime import leadership
from controlplane.runtime.election import ElectionRules
from controlplane.runtime.leadership import Elector
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.history import check, epochs, read_history
from tests.support.leader_process import PLAN
from tests.support.proxy import Proxy
from tests.support.replicas import Replicas, now_ms, until

CLOCK = SystemClock()
STEADY = ElectionRules(takeover_after_ms=20_000, demote_after_ms=19_000, ineligible_extra_ms=2500)
"""Nobody is taken over because the machine was busy."""
QUICK = ElectionRules(takeover_after_ms=1200, demote_after_ms=1100)
"""For tests that wait for a takeover."""


@dataclass
class Candidate:
    """One elector with its store and a heart that beats while it leads."""

    kv: EtcdClient
    cluster: str
    name: str
    rank: int = 0
    rules: ElectionRules = STEADY
    eligible: Callable[[], bool] = lambda: True
    beating: bool = True
    beats: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = EtcdPlanStore(self.kv, self.cluster, CLOCK)
        self.elector = Elector(
            key=EtcdLeaderKey(self.kv, self.cluster, CLOCK),
            touch=self.store.touch,
            replica=self.name,
            region="east",
            clock=CLOCK,
            rank=self.rank,
            rules=self.rules,
            eligible=self.eligible,
            writing=self.store.writing,
            seed=self.rank,
        )
        self.store.on_write, self.store.on_deposed = self.elector.renewed, self.elector.deposed

    def start(self) -> Candidate:
        """Campaign."""
        self.tasks = [asyncio.ensure_future(self.elector.run()), asyncio.ensure_future(self.beat())]
        return self

    async def beat(self) -> None:
        """Write a heartbeat every 50 ms while leading."""
        while True:
            if self.beating and (mine := self.elector.leadership) is not None:
                self.beats += 1
                beat = Beat(tick=self.beats, attentive_ms=0, wall_ms=CLOCK.wall_ms())
                with contextlib.suppress(WeirError):  # the next beat tries again
                    await self.store.heartbeat(mine, beat)
            await asyncio.sleep(0.05)

    @property
    def leads(self) -> bool:
        """Whether it believes to lead."""
        return self.elector.leadership is not None

    async def stop(self) -> None:
        """Leave in order."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def make(
    kv: EtcdClient, cluster_name: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Candidate]]:
    """Make candidates that are stopped at the end; leaving in order may take its time."""
    monkeypatch.setattr(leadership, "RESIGN_MS", 60_000)
    made: list[Candidate] = []

    def maker(name: str, over: EtcdClient | None = None, **more: object) -> Candidate:
        made.append(Candidate(over or kv, cluster_name, name, **more).start())
        return made[-1]

    yield maker
    for candidate in made:
        await candidate.stop()


async def test_one_leads_and_everybody_knows(make: Callable[..., Candidate]) -> None:
    """Of three candidates one leads; all name it, its region and its term."""
    three = [make(f"c{i}", rank=i) for i in range(3)]
    await until(lambda: sum(c.leads for c in three) == 1, "one leads")
    leader = next(c for c in three if c.leads)
    mine = leader.elector.leadership
    assert mine is not None
    known = (leader.name, mine.term)
    await until(
        lambda: all(
            (c.elector.leader_info.replica, c.elector.leader_info.term) == known for c in three
        ),
        "all know",
    )
    assert {c.elector.leader_info.region for c in three} == {"east"}


async def test_a_clean_exit_leaves_nothing_to_wait_for(
    make: Callable[..., Candidate], kv: EtcdClient, cluster_name: str
) -> None:
    """A leader that exits deletes its key and lease: the next one claims a vacant key."""
    first = make("first")
    await until(lambda: first.leads, "it leads")
    second = make("second", rank=1)
    await first.stop()
    await until(lambda: second.leads, "the other leads")
    leader = Keys(cluster_name).leader
    events = [e.value is None for e in await read_history(kv, cluster_name) if e.key == leader]
    assert events == [False, True, False]


async def test_a_hung_tick_loses_the_key(make: Callable[..., Candidate]) -> None:
    """The process lives, its election loop runs, but the work hangs: neither keepalive nor touch
    hides that, it gives the key to one that works."""
    hung = make("hung", rules=QUICK)
    await until(lambda: hung.leads, "it leads")
    other = make("other", rank=1, rules=QUICK)
    hung.beating = False
    await until(lambda: other.leads, "the other leads")
    assert not hung.leads


async def test_a_late_write_is_no_hung_tick(make: Callable[..., Candidate]) -> None:
    """Back under its term, the leader writes and etcd's answer comes after the deadline again, as
    on a slow disk: it waits for the answer instead of giving the key away."""
    rules = replace(QUICK, lease_ttl_s=120)
    slow = make("slow", rules=rules)
    await until(lambda: slow.leads, "it leads")
    term = slow.elector.leader_info.term
    looks = 0
    touch, observe = slow.elector._touch, slow.elector._key.observe

    async def touch_and_write(held: Leadership) -> None:
        await touch(held)
        await slow.store._one_write.acquire()  # what the tick's write holds until its answer

    async def look() -> LeaderKeyState:
        nonlocal looks
        looks += slow.elector.suspended is not None
        return await observe()

    slow.elector._touch = touch_and_write
    slow.beating = False
    await until(slow.store.writing, "it came back, and writes")
    slow.elector._touch = touch
    slow.elector._key.observe = look  # type: ignore[method-assign]
    await until(lambda: looks > 3, "it is suspended again, and looks at the key")
    assert slow.elector.suspended == Leadership(term=term, replica="slow", region="east")
    slow.store.on_write(term, 0)  # etcd's answer, to a write sent long ago
    slow.store._one_write.release()
    slow.beating = True
    await until(lambda: slow.elector.leadership, "the answer is there")
    assert slow.elector.leader_info.term == term


async def test_a_write_that_took_long_renews_for_longer(make: Callable[..., Candidate]) -> None:
    """A write that is answered when its deadline has passed, as on a slow disk, makes its leader
    lead again and gives the next write as long."""
    slow = make("slow", rules=QUICK)
    await until(lambda: slow.leads, "it leads")
    slow.beating = False
    sent_ms = CLOCK.monotonic_ms() - QUICK.takeover_max_ms // 2
    slow.store.on_write(slow.elector.leader_info.term, sent_ms)
    margin_ms = QUICK.takeover_after_ms - QUICK.demote_after_ms
    assert slow.elector._deadline_ms >= sent_ms + QUICK.takeover_max_ms - margin_ms


async def test_a_suspended_leader_keeps_its_lease(make: Callable[..., Candidate]) -> None:
    """Its writes take so long that it is suspended: the key's lease is renewed all the same."""
    slow = make("slow", rules=replace(QUICK, lease_ttl_s=2))
    await until(lambda: slow.leads, "it leads")
    keepalive, renewals = slow.elector._key.keepalive, 0

    async def count(lease: int) -> int:
        nonlocal renewals
        left_s = await keepalive(lease)
        renewals += slow.elector.suspended is not None
        return left_s

    async def never(_held: Leadership) -> None:
        await asyncio.Event().wait()

    slow.elector._key.keepalive = count  # type: ignore[method-assign]
    slow.elector._touch, slow.beating = never, False
    await until(lambda: renewals > 2, "the lease is renewed while it is suspended")
    assert slow.elector.suspended


async def test_an_ill_etcd_is_no_hung_tick(make: Callable[..., Candidate]) -> None:
    """Back under its term, the leader writes nothing before the deadline, and etcd could not be
    read meanwhile: it comes back once more; with etcd well it gives the key up."""
    ill = make("ill", rules=replace(QUICK, lease_ttl_s=120))
    await until(lambda: ill.leads, "it leads")
    touches, refused = 0, 0
    touch, observe = ill.elector._touch, ill.elector._key.observe

    async def count(held: Leadership) -> None:
        nonlocal touches
        touches += 1
        await touch(held)

    async def fail_once() -> LeaderKeyState:
        nonlocal refused
        if touches == 1 and not refused:
            refused += 1
            raise UnavailableError("etcd: no member answered")
        return await observe()

    ill.elector._touch, ill.elector._key.observe = count, fail_once  # type: ignore[method-assign]
    ill.beating = False
    await until(lambda: ill.elector.leadership is None and not ill.elector.suspended, "it gives up")
    assert refused
    assert touches > 1


async def test_the_ineligible_stand_back_while_another_can(make: Callable[..., Candidate]) -> None:
    """A failed or drained region does not campaign against an eligible one, although it is first
    in rank; alone, it leads: somebody must."""
    first = make("first")
    await until(lambda: first.leads, "somebody leads")
    sick = make("sick", rank=0, eligible=lambda: False)
    well = make("well", rank=1)
    await until(
        lambda: all(c.elector.leader_info.replica == "first" for c in (sick, well)), "both watch"
    )
    await first.stop()
    await until(lambda: sick.leads or well.leads, "one leads")
    assert not sick.leads
    await well.stop()
    await until(lambda: sick.leads, "then the other")


async def test_who_resigns_lets_others_go_first(make: Callable[..., Candidate]) -> None:
    """Resigning (cut off from its witnesses) hands over although it would be first in rank."""
    first = make("first", rank=0)
    await until(lambda: first.leads, "it leads")
    second = make("second", rank=1)
    await until(lambda: second.elector.leader_info.term, "the other watches")
    await first.elector.resign()
    assert not first.leads
    await until(lambda: second.leads, "the other leads")
    assert not first.leads


async def test_a_revoked_lease_ends_the_term_at_once(
    make: Callable[..., Candidate], kv: EtcdClient, cluster_name: str
) -> None:
    """Somebody revokes the leader's lease: its next write is refused, it steps back, and a new
    term begins; no write of the old one follows."""
    one = make("one")
    await until(lambda: one.leads, "it leads")
    term = one.elector.leader_info.term
    found = await kv.get(Keys(cluster_name).leader)
    assert found is not None
    await kv.revoke_lease(found.lease)
    await until(lambda: one.leads and one.elector.leader_info.term > term, "a new term")
    assert check(await read_history(kv, cluster_name), cluster_name) == []


async def test_a_leader_cut_off_alone_is_replaced(
    make: Callable[..., Candidate], shared_etcd: EtcdCluster, kv: EtcdClient, cluster_name: str
) -> None:
    """Partition of the leader from every member of etcd while the others reach them: it steps back
    by its own clock, another takes over, and healed it neither writes nor disturbs."""
    proxies = [await Proxy(member.client_port).start() for member in shared_etcd.members]
    far = await EtcdClient.connect(
        [p.endpoint for p in proxies], options=EtcdOptions(attempt_ms=200, call_ms=800)
    )
    cut_off = make("cut-off", far, rules=QUICK)
    await until(lambda: cut_off.leads, "it leads")
    other = make("other", rank=1, rules=QUICK)
    held = await until(
        lambda: (
            cut_off.elector.leadership
            if other.elector.leader_info.replica == "cut-off" and cut_off.leads
            else None
        ),
        "the other watches",
    )
    for proxy in proxies:
        proxy.lose_requests = proxy.lose_replies = True
    await until(lambda: other.leads, "the other leads")
    assert not cut_off.leads
    for proxy in proxies:
        proxy.lose_requests = proxy.lose_replies = False
        proxy.cut()
    await until(
        lambda: cut_off.elector.leader_info.replica == "other" and other.leads, "it sees who leads"
    )
    assert not cut_off.leads
    with pytest.raises(DeposedError):
        await answered(cut_off.store, held)
    assert check(await read_history(kv, cluster_name), cluster_name) == []
    await cut_off.stop()
    await far.aclose()
    for proxy in proxies:
        await proxy.stop()


async def answered(store: EtcdPlanStore, held: Leadership) -> None:
    """Commit a plan, again while etcd does not answer in time."""
    while True:
        with contextlib.suppress(UnavailableError):
            await store.commit(held, replace(PLAN, epoch=Epoch(99)), b"")
            return


async def test_a_deleted_heartbeat_harms_nobody(
    make: Callable[..., Candidate], kv: EtcdClient, cluster_name: str
) -> None:
    """An operator deletes the heartbeat key: the leader reads where its chain stands and goes on
    under the same term."""
    one = make("one")
    await until(lambda: one.beats > 3, "it leads")
    await kv.txn((), [Delete(key=Keys(cluster_name).heartbeat)])
    beats = one.beats
    await until(lambda: one.beats > beats + 5 and one.leads, "it goes on")


async def test_rolling_restart(kv: EtcdClient, replicas: Replicas) -> None:
    """Every replica is restarted in turn: each hands over, committed epochs go on one by one, and
    no write of any term is out of place."""
    replicas.start(3, tick_ms=100)
    await until(lambda: all(p.said("ready") for p in replicas.processes), "all are up")
    await replicas.leader()
    for process in list(replicas.processes):
        asked = now_ms()
        process.child.signal(15)
        await until(lambda p=process: not p.child.alive, "it left")
        process.child.start()
        await until(lambda p=process, t=asked: p.said("ready", t), "it is back")
        await replicas.leader(now_ms())
    logs = [list(process.history()) for process in replicas.processes]
    events = await read_history(kv, replicas.cluster)
    assert check(events, replicas.cluster, logs) == []
    # from etcd, not from the processes: one that leaves may not hear of its last commit any more
    committed = epochs(events, replicas.cluster)
    assert committed == list(range(1, len(committed) + 1))
