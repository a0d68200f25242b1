"""The plan store on real etcd: what is committed, refused, bounded, repeated and restored."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

import pytest

from controlplane.adapters import etcd_records, planstore
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.etcd_leader import EtcdLeaderKey
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.clock import SystemClock
from controlplane.dev.servers import EtcdCluster
from controlplane.model.epochs import EPOCH_JUMP_MAX, EPOCH_MAX, believable, next_epoch
from controlplane.model.errors import (
    Alarm,
    CompactedError,
    DeposedError,
    InvalidInputError,
    RefusedError,
    ReusedRequestIdError,
)
from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.intents import Drain, Failback, Freeze, Override
from controlplane.model.plan import Event, FailoverRecord, Plan, Route, Severity
from controlplane.ports import Beat, Compare, Leadership, Put
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import etcdctl, restore
from tests.support.leader_process import EAST, NORTH, PLAN

CLOCK = SystemClock()
BEAT = Beat(tick=1, attentive_ms=50_000, wall_ms=1_700_000_000_000)


def plan(epoch: int, east_bp: int = 7000) -> Plan:
    """Return a plan that may be committed."""
    weights = ((EAST, east_bp), (NORTH, 10_000 - east_bp))
    return replace(
        PLAN,
        epoch=Epoch(epoch),
        decided_at_ms=50_000,
        routes=(Route(channel=ChannelName("alipay"), weights=weights),),
    )


@pytest.fixture
def store(kv: EtcdClient, cluster_name: str) -> EtcdPlanStore:
    """Return a store of an empty cluster."""
    return EtcdPlanStore(kv, cluster_name, CLOCK)


@pytest.fixture
async def me(kv: EtcdClient, cluster_name: str) -> Leadership:
    """Lead that cluster."""
    return await lead(kv, cluster_name)


async def lead(kv: EtcdClient, cluster: str, replica: str = "a") -> Leadership:
    """Take the leader key over from whoever holds it."""
    key = EtcdLeaderKey(kv, cluster, CLOCK)
    won = await key.claim(replica, "east", await kv.grant_lease(60), await key.observe())
    assert won is not None
    return won


async def test_what_is_committed_is_loaded(store: EtcdPlanStore, me: Leadership) -> None:
    """Plan, state and failovers come back, stamped with term and wall time; large states fit."""
    assert await store.load() is None
    state = os.urandom(100_000) + b"s" * 3_000_000
    record = FailoverRecord(
        id="f-1", region=EAST, kind="dead", cause="silent", symptom_ms=41_000, decided_ms=48_900
    )
    done = await store.commit(me, plan(1), state, (), [record])
    loaded = await store.load()
    assert loaded is not None
    assert (loaded.plan, loaded.state, loaded.revision) == (done.plan, state, done.revision)
    assert (loaded.plan.term, loaded.plan.epoch) == (me.term, 1)
    assert abs(loaded.plan.committed_at_ms - CLOCK.wall_ms()) < 60_000
    found = loaded.failovers[0]
    assert found.decided_ms is not None
    assert (found.id, found.decided_ms - found.symptom_ms) == ("f-1", 7_900)


async def test_only_the_current_term_writes(
    kv: EtcdClient, store: EtcdPlanStore, me: Leadership
) -> None:
    """After a takeover the old leader's commit, heartbeat and checkpoint are refused, and it is
    told; the new one goes on from what is there."""
    await store.commit(me, plan(1), b"one")
    told: list[int] = []
    store.on_deposed = told.append
    successor = EtcdPlanStore(kv, store.keys.cluster, CLOCK)
    other = await lead(kv, store.keys.cluster, "b")
    with pytest.raises(DeposedError):
        await store.commit(me, plan(2), b"two")
    with pytest.raises(DeposedError):
        await store.heartbeat(me, BEAT, b"two")
    assert told == [me.term, me.term]
    await successor.commit(other, plan(2), b"three")
    loaded = await store.load()
    assert loaded is not None
    assert (loaded.plan.term, loaded.state) == (other.term, b"three")


async def test_epochs_only_rise(store: EtcdPlanStore, me: Leadership) -> None:
    """Equal and lower epochs are refused, a ridiculous jump is refused, a large one is not."""
    await store.commit(me, plan(5), b"")
    for epoch in (4, 5):
        with pytest.raises(DeposedError):
            await store.commit(me, plan(epoch, east_bp=1000), b"")
    with pytest.raises(RefusedError, match="next_epoch"):
        await store.commit(me, plan(5 + 2 * EPOCH_JUMP_MAX), b"")
    await store.commit(me, plan(1_000_000), b"")


async def test_a_repeated_commit_is_recognised(store: EtcdPlanStore, me: Leadership) -> None:
    """The same plan offered again under the same term (its answer was lost) is what it was."""
    first = await store.commit(me, plan(1), b"")
    again = await store.commit(me, plan(1), b"")
    assert again.revision == first.revision


def test_reported_epochs_are_believed_within_reason() -> None:
    """The next epoch lies above the highest believable report; absurd and negative ones are
    ignored without hiding honest ones."""
    assert next_epoch(10, [3, 700, 12]) == 701
    assert next_epoch(10, [700, 1 << 60, -5, EPOCH_MAX]) == 701
    assert next_epoch(10, []) == 11
    assert believable(EPOCH_JUMP_MAX, 0)
    assert not believable(EPOCH_JUMP_MAX + 1, 0)
    assert not believable(EPOCH_MAX, EPOCH_MAX - 5)


@pytest.mark.parametrize(
    "routes",
    [
        (),
        (Route(channel=ChannelName("alipay"), weights=((EAST, 7000), (NORTH, 2999))),),
        (Route(channel=ChannelName("alipay"), weights=((EAST, -1), (NORTH, 10_001))),),
    ],
)
async def test_a_broken_plan_is_an_alarm(
    store: EtcdPlanStore, me: Leadership, routes: tuple[Route, ...]
) -> None:
    """Empty, not summing to 10,000, negative: the store refuses by itself and writes nothing."""
    with pytest.raises(Alarm):
        await store.commit(me, replace(plan(1), routes=routes), b"")
    assert await store.load() is None


async def test_events_are_numbered_paged_and_bounded(
    store: EtcdPlanStore, me: Leadership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids rise without gap over commits and heartbeats, newest come first, only the newest stay,
    a burst keeps its critical events and says how many it left out."""
    monkeypatch.setattr(etcd_records, "EVENTS_KEPT", 100)
    burst = [Event(kind=f"e{i}", message="m") for i in range(200)]
    burst[150] = Event(kind="worst", message="m", severity=Severity.CRITICAL, data={"n": 7})
    await store.commit(me, plan(1), b"", burst)
    for i in range(60):
        await store.heartbeat(me, BEAT, None, [Event(kind=f"h{i}", message="m", region=EAST)])
    page, before = await store.events(40)
    assert [e.id for e in page] == list(range(124, 84, -1))
    assert before == 85
    rest, end = await store.events(1000, before)
    assert [e.id for e in rest] == list(range(84, 24, -1))
    assert end is None
    kinds = {e.kind: e for e in [*page, *rest]}
    assert kinds["worst"].data["n"] == "7"
    assert kinds["events_left_out"].data["count"] == "137"
    assert kinds["h59"].region == "east"


async def test_history_is_compacted_at_a_bounded_rate(
    own_kv: EtcdClient, cluster_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader drops etcd's history to where it stood one upkeep earlier, no further, and keeps
    the newest failovers only; nothing of that happens more often."""
    monkeypatch.setattr(planstore, "FAILOVERS_KEPT", 3)
    store = EtcdPlanStore(own_kv, cluster_name, CLOCK)
    me = await lead(own_kv, cluster_name)
    for i in range(6):
        record = FailoverRecord(id=f"f-{i}", region=EAST, kind="dead", cause="", symptom_ms=1)
        await store.heartbeat(me, BEAT, None, (), [record])
    kept = await own_kv.revision()
    monkeypatch.setattr(planstore, "UPKEEP_MS", 0)
    monkeypatch.setattr(planstore, "UPKEEP_PATIENCE_MS", 60_000)
    await store.heartbeat(me, BEAT)  # to where the first write stood
    await store.heartbeat(me, BEAT)  # to where the last one stood
    with pytest.raises(CompactedError):
        await anext(own_kv.watch(store.keys.root, kept))
    assert [record.id for record in await store.failovers()] == ["f-5", "f-4", "f-3"]


async def test_an_oversized_tick_is_refused_before_it_is_sent(
    store: EtcdPlanStore, me: Leadership
) -> None:
    """What etcd would refuse is refused by name, with the numbers."""
    with pytest.raises(RefusedError, match="bytes in one tick"):
        await store.commit(me, plan(1), os.urandom(1_500_000))
    await store.commit(me, plan(1), b"")


async def test_followers_see_rising_epochs_only(store: EtcdPlanStore, me: Leadership) -> None:
    """A follower gets the current plan at once and then every newer one; garbage in the key is
    skipped and the last good plan stays."""
    await store.commit(me, plan(1), b"")
    async with contextlib.aclosing(store.follow()) as plans:
        assert (await anext(plans)).plan.epoch == 1
        await store.commit(me, plan(2), b"")
        assert (await anext(plans)).plan.epoch == 2
        await store._kv.txn((), [Put(key=store.keys.plan, value=b"garbage")])
        await store._kv.txn((), [Put(key=store.keys.plan, value=b"%020d\nxx" % 9)])
        good = planstore.pack_plan(3, planstore.wire.encode_plan(plan(3)).SerializeToString())
        await store._kv.txn((), [Put(key=store.keys.plan, value=good)])
        assert (await anext(plans)).plan.epoch == 3


async def test_intents_are_read_expire_and_are_refused_when_they_make_no_sense(
    kv: EtcdClient, store: EtcdPlanStore
) -> None:
    """Drains, overrides, freeze, failbacks and gates come back sorted; nonsense is left out; an
    intent goes with its lease."""
    intents = EtcdIntents(kv, store.keys, CLOCK)
    weights = {"north": 5000, "east": 5000}
    puts = [
        await intents.intent_put("drain", "east", reason="r", by="me", ttl_s=60, immediate=True),
        await intents.intent_put(
            "override", "alipay", reason="r", by="me", ttl_s=60, weights=weights
        ),
        await intents.intent_put(
            "override", "bad", reason="r", by="me", ttl_s=60, weights={"x": 1}
        ),
        await intents.intent_put("freeze", "all", reason="quiet", by="me", ttl_s=60),
        await intents.intent_put(
            "failback", "north", reason="r", by="me", ttl_s=60, since_ms=7, gates=["audit"]
        ),
        await intents.intent_put("failback", "south", reason="of no outage", by="me", ttl_s=60),
        await intents.intent_put("gate", "reconciliation", reason="r", by="me", ttl_s=60),
    ]
    assert not (await intents.apply("r1", puts, b"done")).repeated
    found = await store.intents()
    assert found.drains == (Drain(region=EAST, reason="r", by="me", immediate=True),)
    half = ((EAST, 5000), (RegionName("north"), 5000))
    assert found.overrides == (
        Override(channel=ChannelName("alipay"), weights=half, reason="r", by="me"),
    )
    assert found.freeze == Freeze(reason="quiet", by="me")
    assert found.failback == (Failback(region="north", since_ms=7, gates=("audit",)),)
    assert found.closed_gates == ("reconciliation",)
    await kv.revoke_lease(puts[0].lease)
    assert (await store.intents()).drains == ()
    with pytest.raises(InvalidInputError):
        await intents.intent_put("hug", "east", reason="", by="", ttl_s=1)


async def test_a_repeated_request_gets_its_first_answer(
    kv: EtcdClient, store: EtcdPlanStore
) -> None:
    """At any replica; the effect happens once; the same id for something else is refused; a
    condition that fails is an etag error and records nothing."""
    one, two = (EtcdIntents(kv, store.keys, CLOCK) for _ in range(2))
    effect = Put(key=store.keys.operation("op"), value=b"1")
    assert (
        await one.apply("id-1", [effect], b"first", fingerprint=b"drain east")
    ).answer == b"first"
    again = await two.apply(
        "ID-1", [replace(effect, value=b"2")], b"second", fingerprint=b"drain east"
    )
    assert (again.answer, again.repeated) == (b"first", True)
    assert [kv.value for kv in await one.operations()] == [b"1"]
    with pytest.raises(ReusedRequestIdError, match="another request"):
        await two.apply("id-1", [effect], b"x", fingerprint=b"drain north")
    stale = Compare(key=effect.key, target="version", op="==", operand=7)
    with pytest.raises(RefusedError, match="changed"):
        await one.apply("id-2", [effect], b"x", compares=[stale])
    assert await one.answered("id-2") is None
    assert await one.answered("id-1") == b"first"


async def test_epochs_rise_across_a_restore_from_an_old_backup(
    own_etcd: EtcdCluster, own_kv: EtcdClient
) -> None:
    """Etcd is restored to a time before plans that agents already follow: followers keep what they
    have, and the next leader's plan lies above everything anyone reports."""
    store = EtcdPlanStore(own_kv, "t", CLOCK)
    me = await lead(own_kv, "t")
    await store.commit(me, plan(1), b"old")
    snapshot = own_etcd.directory / "snapshot.db"
    etcdctl([own_etcd.members[0].endpoint], "snapshot", "save", str(snapshot))
    plans = store.follow()
    for epoch in range(2, 30):
        await store.commit(me, plan(epoch), b"new")
    seen = 0
    while seen < 29:
        seen = (await anext(plans)).plan.epoch
    restore(own_etcd, snapshot)
    loaded = await store.load()
    assert loaded is not None
    assert (loaded.plan.epoch, loaded.state) == (1, b"old")
    successor = await lead(own_kv, "t", "b")
    fresh = EtcdPlanStore(own_kv, "t", CLOCK)
    epoch = next_epoch(loaded.plan.epoch, [seen, 17, 1 << 62])
    await fresh.commit(successor, plan(epoch), b"")
    assert (await anext(plans)).plan.epoch == 30  # nothing in between was shown, nothing is missed
    await plans.aclose()
