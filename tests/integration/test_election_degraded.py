"""What happens to leadership and plan when etcd itself is ill: each illness has its behaviour."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from controlplane.adapters import etcd_presence
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.etcd_links import NoSpaceError
from controlplane.adapters.etcd_presence import HOLD_MS, WINDOW_MS, EtcdPresence, LeaseLosses
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.clock import SystemClock
from controlplane.dev.servers import EtcdCluster
from controlplane.ports import Put
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import PATIENT, etcdctl, raft_leader
from tests.support.history import check, epochs, read_history
from tests.support.replicas import LeaderProcess, Replicas, now_ms, until

CLOCK = SystemClock()
QUICK = {"tick_ms": 100, "options": {"call_ms": 1500}}
STEADY = {**QUICK, "rules": {"takeover_after_ms": 4000, "demote_after_ms": 3000}}
"""Patience far above what a busy machine steals and below what the fault lasts."""
STEADY_GAP_S = 1.0
"""From the leader's patience to the candidates'."""


async def judged(kv: EtcdClient, group: Replicas) -> list[str]:
    """Check the history of a group of leader processes."""
    logs = [list(process.history()) for process in group.processes]
    return check(await read_history(kv, group.cluster), group.cluster, logs)


def terms(group: Replicas) -> set[int]:
    """Every term that anybody has led under."""
    return {line["term"] for process in group.processes for line in process.said("elected")}


def revisions(process: LeaderProcess, after: int) -> list[int]:
    """Revisions of the plans a process has committed after one."""
    return [line["revision"] for line in process.said("ok") if line["revision"] > after]


async def test_etcds_own_election_deposes_nobody(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """The raft leader is killed: for a second nobody can read or write, and afterwards the same
    replica leads under the same term."""
    own_replicas.start(3, **STEADY)
    leader = await own_replicas.leader()
    term = leader.said("elected")[-1]["term"]
    (await raft_leader(own_etcd)).child.kill()
    after = await own_kv.revision()  # answered by a quorum: etcd has elected
    await until(lambda: len(revisions(leader, after)) > 3, "it leads on")
    assert terms(own_replicas) == {term}
    assert await judged(own_kv, own_replicas) == []


async def test_without_quorum_nothing_changes_and_nobody_claims(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """Two of three members gone for longer than leader and candidates have patience: the leader
    steps back by its own clock, nobody else claims, then or on etcd's return, the followers keep
    their plan; with the quorum back the same term goes on from the next epoch."""
    own_replicas.start(3, **STEADY)
    leader = await own_replicas.leader()
    term = leader.said("elected")[-1]["term"]
    store = EtcdPlanStore(own_kv, own_replicas.cluster, CLOCK)
    async with contextlib.aclosing(store.follow()) as plans:
        await anext(plans)
        for member in own_etcd.members[:2]:
            member.child.kill()
        await until(lambda: leader.said("lost"), "it steps back")
        await asyncio.sleep(STEADY_GAP_S)  # the fault's length: candidates would be due as well
        for member in own_etcd.members[:2]:
            member.child.start()
        own_etcd.wait_ready()
        after = await own_kv.revision()
        await until(lambda: len(revisions(leader, after)) > 3, "it leads on")
        assert (await anext(plans)).plan.epoch > 1
    assert terms(own_replicas) == {term}
    events = await read_history(own_kv, own_replicas.cluster)
    committed = epochs(events, own_replicas.cluster)
    assert committed == list(range(1, len(committed) + 1))
    assert await judged(own_kv, own_replicas) == []


async def test_a_hung_member_costs_nothing(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """A follower of raft hangs, comes back and hangs again: each time the leader goes on while it
    hangs, under the same term."""
    own_replicas.start(2, **STEADY)
    leader = await own_replicas.leader()
    leads = await raft_leader(own_etcd)
    slow = next(m for m in own_etcd.members if m is not leads)
    for _ in range(3):
        slow.child.pause()
        after = await own_kv.revision()
        await until(lambda a=after: len(revisions(leader, a)) > 3, "it goes on")
        slow.child.resume()
        own_etcd.wait_ready()
    assert not leader.said("lost")
    assert len(terms(own_replicas)) == 1
    assert await judged(own_kv, own_replicas) == []


async def test_a_slow_disk_does_not_make_leadership_flap(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """The raft leader stalls for 0.8 s, as a slow fsync does, again and again: candidates learn
    that writes are slow and leave the leader alone."""
    own_replicas.start(3, **QUICK)
    leader = await own_replicas.leader()
    begun = now_ms()
    for _ in range(4):
        member = await raft_leader(own_etcd)
        member.child.pause()
        await asyncio.sleep(0.8)  # the fault's length: below raft's own election timeout
        member.child.resume()
        await own_replicas.leader(now_ms())
    terms = [line for p in own_replicas.processes for line in p.said("elected", begun)]
    assert len(terms) <= 1, terms
    assert leader.child.alive
    assert await judged(own_kv, own_replicas) == []


# --- NOSPACE -------------------------------------------------------------------------------------


@pytest.fixture
async def small(etcd_scratch: object) -> AsyncIterator[EtcdCluster]:
    """One member with little room."""
    cluster = EtcdCluster(
        etcd_scratch / "small",  # type: ignore[operator]
        size=1,
        extra_args=["--quota-backend-bytes=4000000"],
    ).start()
    yield cluster
    cluster.stop()


FILL_MAX = 40
"""Writes of 1 MB until etcd must have refused one: ten times its quota."""


async def fill(small: EtcdCluster, kv: EtcdClient) -> None:
    """Write until etcd refuses.

    etcd learns how large it is when it commits a batch, by default every 100 ms: a quick writer
    gets far past the quota. Hashing commits, so every write here meets the size of the last one.
    """
    for number in range(FILL_MAX):
        await kv.txn((), [Put(key=b"/fill/%d" % number, value=b"x" * 1_000_000)])
        await asyncio.to_thread(etcdctl, small.endpoints, "endpoint", "hashkv")


async def make_room(small: EtcdCluster, kv: EtcdClient) -> None:
    """Do what the handbook says. Transactions are refused while there is no room at all, even
    those that only delete; and a compaction gives nothing back before it is physical."""

    async def ctl(*args: str) -> None:
        await asyncio.to_thread(etcdctl, small.endpoints, *args)

    await ctl("del", "--prefix", "/fill/")
    await ctl("compact", "--physical", str(await kv.revision()))
    await ctl("defrag")
    await ctl("alarm", "disarm")


async def test_a_full_etcd_keeps_the_plan_and_recovers(
    small: EtcdCluster, etcd_scratch: object, cluster_name: str
) -> None:
    """NOSPACE: writes are refused by name, reads and followers go on, the leader steps back and
    nobody commits or claims; after making room the next plan follows without a jump."""
    group = Replicas(etcd_scratch, small.endpoints, cluster_name)  # type: ignore[arg-type]
    kv = await EtcdClient.connect(small.endpoints, options=PATIENT)
    group.start(2, **QUICK)

    def oks(after: int) -> list[int]:
        """Epochs committed after a revision, in their order."""
        lines = [line for p in group.processes for line in p.said("ok")]
        found = sorted((ok["revision"], ok["epoch"]) for ok in lines if ok["revision"] > after)
        return [epoch for _, epoch in found]

    def refused() -> bool:
        """Whether a leader was told by name."""
        told = [line["error"] for p in group.processes for line in p.said("unknown")]
        return any("etcd is full" in error for error in told)

    try:
        await group.leader()
        with pytest.raises(NoSpaceError):
            await fill(small, kv)
        assert await kv.alarms() == ["NOSPACE"]
        full = await kv.revision()  # from here on nobody can write
        await until(refused, "it is told")
        store = EtcdPlanStore(kv, cluster_name, CLOCK)
        loaded = await store.load()
        assert loaded is not None
        async with contextlib.aclosing(store.follow()) as plans:
            assert (await anext(plans)).plan == loaded.plan
        holder = await kv.get(Keys(cluster_name).leader)
        assert holder is None or holder.mod_revision <= full  # nobody claimed
        await make_room(small, kv)
        await until(lambda: len(oks(full)) > 2, "it leads")
        assert oks(full)[:2] == [loaded.plan.epoch + 1, loaded.plan.epoch + 2]
    finally:
        group.stop()
        await kv.aclose()


# --- leases --------------------------------------------------------------------------------------


def test_one_region_lost_is_no_mass_loss() -> None:
    """Both replicas of one region vanish: that is about the region. A second region within the
    window makes it about etcd; goodbyes never do."""
    losses = LeaseLosses()
    everybody = {"e0": "east", "e1": "east", "n0": "north", "n1": "north", "s0": "south"}
    losses.listed(0, everybody)
    losses.lost(1000, "e0")
    losses.lost(1100, "e1")
    assert not losses.suspect(1100)
    losses.left("s0")
    losses.lost(1200, "s0")
    assert not losses.suspect(1200)
    losses.lost(1300, "n0")
    assert losses.suspect(1300)
    assert not losses.suspect(1300 + HOLD_MS)


def test_losses_far_apart_are_no_mass_loss() -> None:
    """A rolling failure over minutes is not one event."""
    losses = LeaseLosses()
    losses.listed(0, {"e0": "east", "n0": "north", "s0": "south"})
    for at_ms, name in ((0, "e0"), (WINDOW_MS + 1, "n0"), (2 * WINDOW_MS + 2, "s0")):
        losses.lost(at_ms, name)
        assert not losses.suspect(at_ms)
        losses.arrived(name, name)


@pytest.fixture
def slow_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a goodbye take as long as a busy machine needs."""
    monkeypatch.setattr(etcd_presence, "GOODBYE_S", 60.0)


@pytest.mark.usefixtures("slow_goodbye")
async def test_all_leases_revoked_is_evidence_against_etcd(
    kv: EtcdClient, cluster_name: str
) -> None:
    """Somebody revokes every lease (etcd #15247): every replica suspects coordination, and all
    register again by themselves."""
    regions = ("east", "north", "south")
    present = [EtcdPresence(kv, cluster_name, CLOCK, replica=f"r-{r}", region=r) for r in regions]
    tasks = [asyncio.ensure_future(p.run()) for p in present]
    keys = Keys(cluster_name)
    await until(lambda: all(len(p.losses.present) == 3 for p in present), "all see all")
    assert not any(p.coordination_suspect() for p in present)
    for found in (await kv.get_prefix(keys.replicas))[0]:
        await kv.revoke_lease(found.lease)
    await until(lambda: all(p.coordination_suspect() for p in present), "all suspect etcd")
    await until(lambda: all(len(p.losses.present) == 3 for p in present), "all are back")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (await kv.get_prefix(keys.replicas))[0] == []


@pytest.mark.usefixtures("slow_goodbye")
async def test_a_clean_exit_is_no_loss(kv: EtcdClient, cluster_name: str) -> None:
    """Rolling restart: replicas that say goodbye make nobody suspicious."""
    regions = ("east", "north", "south")
    present = [EtcdPresence(kv, cluster_name, CLOCK, replica=f"r-{r}", region=r) for r in regions]
    tasks = [asyncio.ensure_future(p.run()) for p in present]
    await until(lambda: all(len(p.losses.present) == 3 for p in present), "all see all")
    for task in tasks[:2]:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until(lambda: len(present[2].losses.present) == 1, "they left")
    assert not present[2].coordination_suspect()
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
