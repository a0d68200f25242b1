"""Real slow disks under members of etcd: every fourth sync takes a second (worse than p99 1 s).

What holds: a slow follower costs its clients one attempt; while the raft leader or everybody is slow
plans come late, the replica that leads steps back and returns, and nobody takes its place. When
etcd does not even answer within the bound of a call, it may give the key up by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.clock import seeded
from controlplane.dev.servers import EtcdCluster
from controlplane.ports import Compare, Put
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import raft_leader
from tests.support.history import check, epochs, read_history
from tests.support.replicas import WAIT_S, Replicas, until
from tests.support.slow_disk import SlowDisk

RULES = {
    "tick_ms": 100,
    "rules": {"takeover_after_ms": 2000, "demote_after_ms": 1900, "lease_ttl_s": 120},
}
"""More than one slow sync, less than two in a row; a lease that does not lapse meanwhile."""
KEY = b"/n"
SIZE = 3
SLOW_SYNCS = 10
"""How long a fault lasts."""
PLANS = 5
FAULT_S = 240.0
"""Generous: a fault takes some 15 s."""


async def through(
    kv: EtcdClient,
    replicas: Replicas,
    disks: list[SlowDisk],
    ill: Callable[[], bool] = lambda: True,
) -> set[int]:
    """Lead through slow disks and beyond: nobody is deposed, no epoch is left out. What happens
    counts while `ill` is true. Returns the terms."""
    replicas.start(3, **RULES)
    await replicas.leader()
    for disk in disks:
        await asyncio.to_thread(disk.begin)
    await until(ill, "the fault is there", FAULT_S)
    counts = [disk.slow_syncs() for disk in disks]
    begun = await kv.revision()

    def plans(after: int) -> int:
        lines = [ok for process in replicas.processes for ok in process.said("ok")]
        return sum(ok["revision"] > after for ok in lines)

    def lasted() -> bool:
        slow = zip(disks, counts, strict=True)
        happened = all(disk.slow_syncs() >= count + SLOW_SYNCS for disk, count in slow)
        return ill() and happened and plans(begun) > PLANS

    await until(lasted, "plans are committed meanwhile", FAULT_S)
    for disk in disks:
        await asyncio.to_thread(disk.end)
    healed = await kv.revision()
    await until(lambda: plans(healed) > PLANS, "they go on")
    lost = [line for process in replicas.processes for line in process.said("lost")]
    assert not [line for line in lost if line["depositions"]]
    logs = [list(process.history()) for process in replicas.processes]
    events = await read_history(kv, replicas.cluster)
    assert check(events, replicas.cluster, logs) == []
    told = epochs(events, replicas.cluster)
    assert told == list(range(1, len(told) + 1))
    return {line["term"] for process in replicas.processes for line in process.said("elected")}


async def follower(cluster: EtcdCluster) -> SlowDisk:
    """Return the disk of a member that follows in raft."""
    leads = await raft_leader(cluster)
    return SlowDisk(cluster, next(m for m in cluster.members if m is not leads))


@pytest.fixture
def own_etcd(etcd_scratch: Path) -> Iterator[EtcdCluster]:
    """Three members that wait out two slow syncs in a row: who leads raft on a slow disk goes on."""
    cluster = EtcdCluster(etcd_scratch / "etcd", heartbeat_ms=300, election_ms=3000).start()
    yield cluster
    cluster.stop()


async def test_a_slow_disk_is_left_by_clients(own_etcd: EtcdCluster) -> None:
    """A client that uses the slow follower goes to another member at the first late answer; every
    write happens once."""
    disk = await follower(own_etcd)
    await asyncio.to_thread(disk.begin)
    slow = disk.member.endpoint
    rest = [endpoint for endpoint in own_etcd.endpoints if endpoint != slow]
    first = next(seed for seed in itertools.count() if seeded(seed).randrange(SIZE) == 0)
    options = EtcdOptions(call_ms=20_000)
    kv = await EtcdClient.connect([slow, *rest], seed=first, options=options)
    assert kv._links.current.endpoint == slow
    written = 0
    async with contextlib.aclosing(kv), asyncio.timeout(WAIT_S):
        while kv._links.current.endpoint == slow:
            found = await kv.get(KEY)
            assert (int(found.value) if found else 0) == written
            at = found.mod_revision if found else 0
            unchanged = Compare(key=KEY, target="mod", op="==", operand=at)
            written += 1
            put = Put(key=KEY, value=b"%d" % written)
            assert (await kv.txn([unchanged], [put])).succeeded
    assert disk.slow_syncs()


async def test_a_follower_on_a_slow_disk_changes_nothing(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """The other two are a quorum: plans are committed as ever, under the same term."""
    assert len(await through(own_kv, own_replicas, [await follower(own_etcd)])) == 1


async def test_a_raft_leader_on_a_slow_disk_deposes_nobody(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """Every write waits for it, reads too; the same replica leads on under the same term."""
    disk = await follower(own_etcd)
    assert len(await through(own_kv, own_replicas, [disk], disk.leads)) == 1


async def test_slow_disks_everywhere_depose_nobody(
    own_etcd: EtcdCluster, own_kv: EtcdClient, own_replicas: Replicas
) -> None:
    """All three: writes take seconds, nobody claims, nothing is lost."""
    await through(own_kv, own_replicas, [SlowDisk(own_etcd, m) for m in own_etcd.members])
