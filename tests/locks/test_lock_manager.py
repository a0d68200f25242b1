"""What a user of locks asks for, on a real Redis and a real etcd."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from lock_lab import LIMITS, PATIENT, Lab, until

from controlplane.adapters.prometheus import Metrics
from controlplane.locks.errors import LockHeldError, LockLostError
from controlplane.locks.grant import Mode
from controlplane.locks.token import Token
from controlplane.model.errors import InvalidInputError, RefusedError, UnavailableError
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.topology import Channel, Region, Role, Topology

TTL = 30_000
SHORT = 300
"""For locks that are to expire."""


async def test_tokens_rise_and_are_verified(lab: Lab) -> None:
    """Grant after grant the token rises; strict grants are verified, lineage ones say they are
    not."""
    locks = await lab.manager(limits=PATIENT)
    tokens = []
    for turn in range(5):
        mode = Mode.STRICT if turn % 2 else Mode.LINEAGE
        grant = await locks.acquire("a", owner="o", ttl_ms=TTL, mode=mode)
        assert grant.verified is (mode is Mode.STRICT)
        tokens.append(grant.token)
        assert await locks.release("a", owner="o", token=grant.token) == 0
    assert tokens == sorted(set(tokens))
    assert (await lab.redis("KEYS", "*")) == [lab.fence], "released locks leave no key behind"


async def test_a_held_lock_is_refused_with_who_and_how_long(lab: Lab) -> None:
    """Without waiting the answer comes at once and names the holder."""
    locks = await lab.manager(limits=PATIENT)
    await locks.acquire("a", owner="first", ttl_ms=TTL)
    with pytest.raises(LockHeldError) as refused:
        await locks.acquire("a", owner="second", ttl_ms=TTL)
    assert refused.value.owner == "first"
    assert 0 < refused.value.left_ms <= TTL


async def test_the_same_request_gets_the_same_token(lab: Lab) -> None:
    """A lost reply is not a lost lock, also through another replica."""
    one, two = (
        await lab.manager(limits=PATIENT),
        await lab.manager(limits=PATIENT, may_bump=lambda: False),
    )
    request = str(uuid.uuid4())
    first = await one.acquire("a", owner="o", ttl_ms=TTL, request=request)
    again = await two.acquire("a", owner="o", ttl_ms=TTL, request=request)
    assert again.token == first.token
    assert again.entries == 1


async def test_reentrant_entries_are_counted(lab: Lab) -> None:
    """The owner enters twice with one token and is out after two releases; a repeated release
    counts once."""
    locks = await lab.manager(limits=PATIENT)
    first = await locks.acquire("a", owner="o", ttl_ms=TTL, reentrant=True)
    second = await locks.acquire("a", owner="o", ttl_ms=TTL, reentrant=True)
    assert (second.token, second.entries) == (first.token, 2)
    undo = str(uuid.uuid4())
    for _ in range(2):
        left = await locks.release("a", owner="o", token=first.token, request=undo, whole=False)
        assert left == 1
    assert await locks.release("a", owner="o", token=first.token, whole=False) == 0
    assert not (await locks.inspect("a")).holders


async def test_the_same_owner_again_without_nesting_changes_nothing(lab: Lab) -> None:
    """Asking again for what one holds gives the same grant and needs one release."""
    locks = await lab.manager(limits=PATIENT)
    first = await locks.acquire("a", owner="o", ttl_ms=TTL)
    second = await locks.acquire("a", owner="o", ttl_ms=TTL)
    assert (second.token, second.entries) == (first.token, 1)
    assert await locks.release("a", owner="o", token=first.token) == 0


async def test_a_shared_lock_is_not_upgraded_in_place(lab: Lab) -> None:
    """Two readers that both want to write would wait for each other: refused."""
    locks = await lab.manager(limits=PATIENT)
    await locks.acquire("a", owner="o", ttl_ms=TTL, shared=True)
    with pytest.raises(RefusedError, match="release the shared lock"):
        await locks.acquire("a", owner="o", ttl_ms=TTL, wait_ms=1_000)


async def test_a_longer_ttl_is_announced_in_etcd_first(lab: Lab) -> None:
    """The quarantine after a loss is as long as the longest TTL granted, because etcd knows it."""
    locks = await lab.manager()
    before, _ = await locks.register.read()
    await locks.acquire("a", owner="o", ttl_ms=20_000)
    after, _ = await locks.register.read()
    assert (before.ttl_high_ms, after.ttl_high_ms) == (LIMITS.ttl_usual_ms, 20_000)
    renewed = await locks.acquire("b", owner="o", ttl_ms=20_000)
    await locks.renew("b", owner="o", token=renewed.token, ttl_ms=25_000)
    assert (await locks.register.read())[0].ttl_high_ms == 25_000


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", {"name": "bad name"}),
        ("owner", {"owner": ""}),
        ("ttl_ms", {"ttl_ms": 1}),
        ("ttl_ms", {"ttl_ms": 60_001}),
        ("wait_ms", {"wait_ms": -1}),
        ("request_id", {"request": "two words"}),
    ],
)
async def test_bad_input_names_the_field(lab: Lab, field: str, values: dict[str, object]) -> None:
    """Nothing is sent for a request that cannot be right."""
    locks = await lab.manager(limits=PATIENT)
    ask: dict[str, object] = {"name": "a", "owner": "o", "ttl_ms": TTL} | values
    with pytest.raises(InvalidInputError) as refused:
        await locks.acquire(ask.pop("name"), **ask)
    assert refused.value.field == field


async def test_inspection_lists_and_force(lab: Lab) -> None:
    """An operator sees holders and waiters, and can take a lock from the holder that was seen."""
    locks = await lab.manager(limits=PATIENT)
    held = await locks.acquire("a/1", owner="o", ttl_ms=30_000)
    await locks.acquire("b", owner="r", ttl_ms=30_000, shared=True)
    states, cursor = await locks.list(count=1000)
    assert cursor == 0
    assert sorted(state.name for state in states) == ["a/1", "b"]
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(locks.acquire("a/1", owner="w", ttl_ms=30_000, wait_ms=20_000))
        async with asyncio.timeout(20):
            while not (await locks.inspect("a/1")).waiters:
                await asyncio.sleep(0.001)
        assert not await locks.force("a/1", (Token(9, 9),)), "nobody holds that token"
        assert await locks.force("a/1", (held.token,))
    assert waiter.result().token > held.token
    with pytest.raises(LockLostError):
        await locks.renew("a/1", owner="o", token=held.token, ttl_ms=TTL)


async def test_watching_tells_of_every_hand_over(lab: Lab) -> None:
    """A follower sees a grant, an expiry without any event, and a grant again."""
    locks = await lab.manager(limits=PATIENT)
    seen: list[str] = []

    async def follow() -> None:
        async for state in locks.watch("a"):
            seen.append(state.holders[0].owner if state.holders else "-")
            if "two" in seen:
                return

    async def hold_until_seen(owner: str) -> None:
        while owner not in seen:  # the same owner again keeps it for a little longer
            await locks.acquire("a", owner=owner, ttl_ms=SHORT)
            await asyncio.sleep(0.002)

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await until(lambda: seen == ["-"])
        await hold_until_seen("one")
        await until(lambda: seen[-1] == "-")
        await hold_until_seen("two")
    assert seen.index("-") < seen.index("one") < len(seen) - 1 - seen[::-1].index("-")
    assert seen[-1] == "two"
    assert not locks._watches._followers


async def test_statistics_by_name(lab: Lab) -> None:
    """What happened to a name is counted."""
    locks = await lab.manager(limits=PATIENT)
    grant = await locks.acquire("a", owner="o", ttl_ms=TTL)
    with pytest.raises(LockHeldError):
        await locks.acquire("a", owner="p", ttl_ms=TTL)
    await locks.renew("a", owner="o", token=grant.token, ttl_ms=TTL)
    await locks.release("a", owner="o", token=grant.token)
    counts = locks.statistics.of("a")
    assert (counts.granted, counts.refused, counts.renewed, counts.released) == (1, 1, 1, 1)


async def test_counters_beyond_doubles(lab: Lab) -> None:
    """With an epoch above 2^21 tokens do not fit a double; they stay exact and unique."""
    locks = await lab.manager(epoch_floor=(1 << 21) + 1)
    tokens = []
    for _ in range(3):
        grant = await locks.acquire("a", owner="o", ttl_ms=SHORT)
        tokens.append(grant.token.value)
        await locks.release("a", owner="o", token=grant.token)
    assert tokens[0] > 1 << 53
    assert tokens == [tokens[0], tokens[0] + 1, tokens[0] + 2]


async def test_the_epoch_rolls_long_before_its_counter_is_used_up(lab: Lab) -> None:
    """Past half of the counter the keeper rolls the epoch, without a quarantine: nothing is lost."""
    locks = await lab.manager(limits=PATIENT)
    held = await locks.acquire("b", owner="o", ttl_ms=30_000)
    await lab.redis("HSET", lab.fence, "counter", str((1 << 32) // 2 + 5))
    await until(lambda: locks.lineage.epoch == held.token.epoch + 1)
    assert locks.lineage.state == "open"
    grant = await locks.acquire("a", owner="o", ttl_ms=TTL)
    assert grant.token > held.token
    await locks.renew("b", owner="o", token=held.token, ttl_ms=TTL)


async def test_a_used_up_counter_grants_nothing(lab: Lab) -> None:
    """A follower that cannot roll refuses rather than let the counter run into the epoch."""
    leads = [True]
    locks = await lab.manager(limits=PATIENT, may_bump=lambda: leads[0])
    leads[0] = False
    await lab.redis("HSET", lab.fence, "counter", str((1 << 32) - 2))
    with pytest.raises(UnavailableError, match="used up"):
        await locks.acquire("a", owner="o", ttl_ms=TTL)


async def test_the_metrics_of_the_control_plane_fit(lab: Lab) -> None:
    """The Prometheus adapter takes what the locks report."""
    region = Region(
        name=RegionName("east"), role=Role.PRIMARY, share_bp=10_000, capacity_tps=1, priority=0
    )
    channel = Channel(name=ChannelName("alipay"), regions=(region.name,))
    world = Topology(regions=(region,), channels=(channel,))
    metrics = Metrics(world, version="test")
    locks = await lab.manager(limits=PATIENT, metrics=metrics)
    await locks.acquire("a", owner="o", ttl_ms=TTL)
    with pytest.raises(LockHeldError):
        await locks.acquire("a", owner="p", ttl_ms=TTL)
    with pytest.raises(LockLostError):
        await locks.renew("a", owner="p", token=Token(1, 1), ttl_ms=TTL)
    page = metrics.exposition()[0].decode()
    assert 'weir_lock_grants_total{result="granted"} 1.0' in page
    assert 'weir_lock_grants_total{result="held"} 1.0' in page
    assert "weir_lock_tokens_rejected_total 1.0" in page
    assert "weir_lock_epoch 1.0" in page
