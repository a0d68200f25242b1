"""No two terms' writes interleave, whatever is killed, stopped or delayed; and the checker that
says so turns red when a protection is taken away."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from controlplane.adapters import wire
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys, unpack_plan
from controlplane.dev.servers import EtcdCluster
from controlplane.ports import Delete
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import raft_leader
from tests.support.history import check, read_history
from tests.support.replicas import LeaderProcess, Replicas, now_ms, until

FAKETIME = str(next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), "libfaketimeMT.so.1"))
CALM = {"tick_ms": 50, "rules": {"takeover_after_ms": 4000, "demote_after_ms": 3000}}
FAST = {"tick_ms": 50, "rules": {"takeover_after_ms": 600, "demote_after_ms": 500}}


async def judge(kv: EtcdClient, replicas: Replicas) -> list[str]:
    """Read the history back and check it against what the processes say."""
    logs = [list(process.history()) for process in replicas.processes]
    events = await read_history(kv, replicas.cluster)  # later than the logs: they go on writing
    assert len(events) > 20, "nothing happened"
    return check(events, replicas.cluster, logs)


async def test_kills_and_stops_never_interleave_terms(kv: EtcdClient, replicas: Replicas) -> None:
    """Leaders killed, stopped past their takeover and woken: every write belongs to the current
    term, epochs and events only rise, every acknowledged plan is there, no refused one is."""
    replicas.start(3, **FAST)
    stopped: list[LeaderProcess] = []
    for round_ in range(3):
        leader = await replicas.leader(now_ms())
        begun = now_ms()
        if round_ % 3 == 2:
            leader.child.kill()
        else:
            leader.child.pause()
            stopped.append(leader)
        await replicas.leader(begun + 1, other_than=leader)
        if round_ % 3 == 2:
            leader.child.start()
        while stopped:
            woken = stopped.pop()
            woken.child.resume()
            await until(
                lambda p=woken, t=begun: p.said("lost", t) or p.said("refused", t), "it notices"
            )
    assert await judge(kv, replicas) == []


async def stopped_before_its_write(
    kv: EtcdClient, replicas: Replicas, *, without: list[str], fresh: bool = False
) -> LeaderProcess:
    """Stop a leader between looking at its leadership and its write; meanwhile its key goes
    (revoked lease, operator, anything); then wake it: it writes on."""
    replicas.add(replica="a0", region="east", stop_at=12, without=without, fresh=fresh, **FAST)
    leader = replicas.processes[0]
    await until(leader.is_stopped, "it stops itself")
    keys = Keys(replicas.cluster)
    await kv.txn((), [Delete(key=keys.leader)])
    leader.child.resume()
    await until(
        lambda: leader.said("refused") or len(leader.said("ok")) > 12,
        "it goes on",
    )
    return leader


async def test_a_leader_stopped_before_its_write_writes_nothing(
    kv: EtcdClient, replicas: Replicas
) -> None:
    """The worst moment to sleep is between check and write: etcd refuses the write on waking."""
    leader = await stopped_before_its_write(kv, replicas, without=[])
    assert leader.said("refused")
    assert await judge(kv, replicas) == []


async def test_without_the_term_guard_the_checker_is_red(
    kv: EtcdClient, replicas: Replicas
) -> None:
    """Mutation: the same night without the compare of the leader key."""
    await stopped_before_its_write(kv, replicas, without=["term"])
    assert any(found.startswith("term:") for found in await judge(kv, replicas))


async def test_without_term_and_chain_terms_interleave(kv: EtcdClient, replicas: Replicas) -> None:
    """Mutation: with another leader in between, the woken one's write lands among the other's."""
    replicas.add(
        replica="a0", region="east", stop_at=12, without=["term", "chain", "epoch"], **FAST
    )
    first = replicas.processes[0]
    await until(first.is_stopped, "it stops itself")
    replicas.add(replica="a1", region="north", rank=1, **FAST)
    second = replicas.processes[1]
    begun = now_ms()
    await until(lambda: len(second.said("ok")) > 5, "the other leads")
    first.child.resume()
    await until(lambda: first.said("ok", begun), "it writes although deposed")
    found = await judge(kv, replicas)
    assert any(line.startswith("interleave:") for line in found)
    assert any(line.startswith("epoch:") for line in found)


async def test_without_the_epoch_guard_epochs_fall(kv: EtcdClient, replicas: Replicas) -> None:
    """Mutation: a new leader that counts from 1 again commits lower epochs; with the guard it is
    refused (next test)."""
    await two_leaders_one_forgetful(replicas, without=["epoch"])
    assert any(line.startswith("epoch:") for line in await judge(kv, replicas))


async def test_a_forgetful_leader_cannot_lower_the_epoch(
    kv: EtcdClient, replicas: Replicas
) -> None:
    """A leader that does not load what is committed is refused, again and again."""
    await two_leaders_one_forgetful(replicas, without=[])
    assert await judge(kv, replicas) == []


async def two_leaders_one_forgetful(replicas: Replicas, *, without: list[str]) -> None:
    """One leads well and goes; the next starts from epoch 0."""
    first = replicas.add(replica="a0", region="east", **FAST)
    await until(lambda: len(first.said("ok")) > 10, "some plans")
    first.child.stop()
    second = replicas.add(replica="a1", region="north", fresh=True, without=without, **FAST)
    await until(lambda: len(second.said("refused")) > 2 or len(second.said("ok")) > 2, "it tried")


async def test_without_the_deadline_a_woken_leader_still_tries(
    kv: EtcdClient, replicas: Replicas
) -> None:
    """With the local deadline a woken leader does not even try to write; without it it tries and
    is refused. Safety holds in both: it never rests on a clock."""
    tries: dict[bool, int] = {}
    for deadline in (True, False):
        name = "kept" if deadline else "left-out"
        without = [] if deadline else ["deadline"]
        leader = replicas.add(replica=name, region="east", sleep_at=5, without=without, **FAST)
        await until(leader.is_stopped, "it stops itself before it looks whether it leads")
        other = replicas.add(replica=f"{name}-next", region="north", rank=1, **FAST)
        await until(lambda p=other: len(p.said("ok")) > 3, "the other leads")
        woken = now_ms()
        leader.child.resume()
        await until(
            lambda p=leader, t=woken: p.said("lost", t) or p.said("refused", t), "it notices"
        )
        tries[deadline] = len(leader.said("try", woken))
        leader.child.kill()
        other.child.kill()
    assert tries[True] == 0
    assert tries[False] > 0
    assert await judge(kv, replicas) == []


HOUR_MS = 3_600_000


def set_clock(clock: Path, offset: str) -> None:
    """Make a process's wall clock jump; whole, for it is read all the time."""
    whole = clock.with_suffix(".new")
    whole.write_text(offset)
    whole.replace(clock)


async def test_clock_jumps_change_nothing(
    kv: EtcdClient, replicas: Replicas, etcd_scratch: Path
) -> None:
    """Wall clocks jump by an hour, forth and back, under the leader and under the candidates: terms
    change only when a leader is killed, and the history is as sound as ever."""
    clocks = [etcd_scratch / f"clock{i}" for i in range(3)]
    for i, clock in enumerate(clocks):
        set_clock(clock, "+0")
        env = {
            "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        region = ("east", "north", "south")[i]
        replicas.add(replica=f"a{i}", region=region, rank=i, **CALM, env=env)
    leader = await replicas.leader()
    term = leader.said("elected")[-1]["term"]
    for offset in ("+1h", "-1h", "+0"):
        for clock in clocks:  # one after the other: they also differ from each other
            set_clock(clock, offset)
            begun = now_ms()
            await until(lambda t=begun: len(leader.said("ok", t)) > 2, "it leads on")
    assert {line["term"] for p in replicas.processes for line in p.said("elected")} == {term}
    for clock, offset in zip(clocks, ("+0", "-1h", "+1h"), strict=True):
        set_clock(clock, offset)
    begun = now_ms()
    leader.child.kill()
    await replicas.leader(begun + 1, other_than=leader)
    assert await judge(kv, replicas) == []
    stamps = [
        wire.parse_plan(unpack_plan(event.value)[1]).committed_at_ms
        for event in await read_history(kv, replicas.cluster)
        if event.key == Keys(replicas.cluster).plan and event.value is not None
    ]
    jumps = [after - before for before, after in itertools.pairwise(stamps)]
    assert max(jumps) > HOUR_MS / 2, "the clocks did jump"
    assert min(jumps) < -HOUR_MS / 2, "the clocks did jump"


def hasty(replicas: Replicas, without: list[str]) -> LeaderProcess:
    """Start a leader that leaves a hung member after 150 ms."""
    return replicas.add(
        replica="a0", region="east", **FAST, options={"attempt_ms": 150}, without=without
    )


async def late_copies(cluster: EtcdCluster, replicas: Replicas) -> None:
    """Stop each member in turn with the leader's requests in its socket, wake it once the leader
    has written on through another one: it then proposes what it was asked long ago."""
    leader = await replicas.leader(now_ms())
    for member in cluster.members:
        leads = member is await raft_leader(cluster)
        begun = now_ms()
        member.child.pause()
        if leads:
            await asyncio.sleep(0.3)  # the fault's length: a request waits, raft does not elect yet
        else:  # whoever was asked and hangs has been left with the request in its socket
            await until(lambda t=begun: len(leader.said("ok", t)) > 2, "it writes on elsewhere")
        woken = now_ms()
        member.child.resume()
        await until(lambda t=woken: len(leader.said("ok", t)) > 2, "it writes on")


async def test_a_copy_delivered_late_is_not_applied(
    own_etcd: EtcdCluster, own_replicas: Replicas, own_kv: EtcdClient
) -> None:
    """A member that wakes with old requests in its socket applies none of them a second time."""
    hasty(own_replicas, without=[])
    for _ in range(4):
        await late_copies(own_etcd, own_replicas)
    assert await judge(own_kv, own_replicas) == []


async def test_without_the_chain_late_copies_are_applied(
    own_etcd: EtcdCluster, own_replicas: Replicas, own_kv: EtcdClient
) -> None:
    """Mutation: guarded by the term alone, the same late requests are applied twice: state and
    events of an earlier tick overwrite those of a later one."""
    hasty(own_replicas, without=["chain", "epoch"])
    found: list[str] = []
    for _ in range(20):  # whether a woken member still proposes is its own race; most do
        await late_copies(own_etcd, own_replicas)
        if found := await judge(own_kv, own_replicas):
            break
    assert found
    assert all(line.startswith(("chain:", "epoch:", "acked:", "event:")) for line in found)
