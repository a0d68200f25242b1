"""The port `KeyValueStore` as every user of it may rely on it, against real etcd."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from controlplane.adapters.etcd import EtcdClient, once_marks
from controlplane.adapters.etcd_links import EtcdOptions, LeaseGoneError
from controlplane.dev.servers import EtcdCluster
from controlplane.model.errors import (
    AmbiguousError,
    CompactedError,
    InvalidInputError,
    UnavailableError,
)
from controlplane.ports import Compare, Delete, Get, Put, WatchEvent
from tests.support.etcd import PATIENT
from tests.support.replicas import until


@pytest.fixture
def root(cluster_name: str) -> bytes:
    """Prefix of one test's keys."""
    return f"/{cluster_name}/".encode()


async def put(kv: EtcdClient, key: bytes, value: bytes) -> int:
    """Write one key; returns the revision."""
    return (await kv.txn((), [Put(key=key, value=value)])).revision


async def test_a_key_reads_as_it_was_written(kv: EtcdClient, root: bytes) -> None:
    """Absent is None; value, revisions and version are etcd's."""
    assert await kv.get(root + b"a") is None
    first = await put(kv, root + b"a", b"1")
    second = await put(kv, root + b"a", b"\0\xff")
    found = await kv.get(root + b"a")
    assert found is not None
    assert (found.value, found.create_revision, found.mod_revision, found.version) == (
        b"\0\xff", first, second, 2,
    )  # fmt: skip


async def test_a_prefix_is_listed_whole_at_one_revision(kv: EtcdClient, root: bytes) -> None:
    """More keys than a page come sorted and complete, and neighbours of the prefix do not."""
    for start in range(0, 1200, 100):
        puts = [Put(key=root + b"p/%05d" % i, value=b"x") for i in range(start, start + 100)]
        await kv.txn((), puts)
    await put(kv, root + b"p0", b"neighbour")
    found, revision = await kv.get_prefix(root + b"p/")
    assert [kv.key for kv in found] == [root + b"p/%05d" % i for i in range(1200)]
    assert revision >= found[-1].mod_revision
    newest, more = await kv.get_range(root + b"p/", root + b"p0", limit=3, descending=True)
    assert [kv.key[-5:] for kv in newest] == [b"01199", b"01198", b"01197"]
    assert more


@pytest.mark.parametrize(
    ("target", "op", "operand", "holds"),
    [
        ("version", "==", 1, True),
        ("version", ">", 1, False),
        ("mod", "!=", 0, True),
        ("create", "==", 0, False),
        ("value", "==", b"5", True),
        ("value", "<", b"6", True),
        ("value", "<", b"5", False),
        ("value", ">", b"4", True),
    ],
)
async def test_conditions_decide_the_branch(
    kv: EtcdClient, root: bytes, target: str, op: str, operand: int | bytes, holds: bool
) -> None:
    """Every target and operator is etcd's; the branch not taken does nothing."""
    await put(kv, root + b"c", b"5")
    result = await kv.txn(
        [Compare(key=root + b"c", target=target, op=op, operand=operand)],
        [Put(key=root + b"yes", value=b""), Get(key=root + b"c")],
        [Put(key=root + b"no", value=b""), Get(key=root + b"c")],
    )
    assert result.succeeded is holds
    assert result.reads[0][0].value == b"5"
    assert ((await kv.get(root + b"yes")) is not None) is holds
    assert ((await kv.get(root + b"no")) is None) is holds


async def test_a_lease_takes_its_keys_along(kv: EtcdClient, root: bytes) -> None:
    """Revoking deletes; a lease that is gone says 0, may be revoked again, and takes no keys."""
    lease = await kv.grant_lease(60)
    await kv.txn((), [Put(key=root + b"l", value=b"", lease=lease)])
    assert await kv.keepalive(lease) == 60
    await kv.revoke_lease(lease)
    assert await kv.get(root + b"l") is None
    assert await kv.keepalive(lease) == 0
    await kv.revoke_lease(lease)
    with pytest.raises(LeaseGoneError):
        await kv.txn((), [Put(key=root + b"l", value=b"", lease=lease)])


async def test_a_lease_lapses_unless_renewed(kv: EtcdClient, root: bytes) -> None:
    """Etcd deletes the key of a lease nobody renews, and the watch says so."""
    written = 0
    while not written:
        with contextlib.suppress(LeaseGoneError):  # a busy machine let it lapse before its use
            put_op = Put(key=root + b"l", value=b"", lease=await kv.grant_lease(2))
            written = (await kv.txn((), [put_op])).revision
    async with contextlib.aclosing(kv.watch(root, written + 1)) as events:
        assert [(e.key, e.value) for e in await anext(events)] == [(root + b"l", None)]


async def test_a_watch_begins_where_it_is_told(kv: EtcdClient, root: bytes) -> None:
    """History first, then what is new; deletions have no value; other keys are not told."""
    first = await put(kv, root + b"w/a", b"1")
    await put(kv, root + b"x", b"other")
    await kv.txn((), [Put(key=root + b"w/a", value=b"2"), Put(key=root + b"w/b", value=b"2")])
    seen: list[WatchEvent] = []
    async with contextlib.aclosing(kv.watch(root + b"w/", first)) as events:
        while len(seen) < 3:
            seen += await anext(events)
        await kv.txn((), [Delete(key=root + b"w/", range_end=root + b"w0")])
        while len(seen) < 5:
            seen += await anext(events)
    assert [(e.key[-1:], e.value) for e in seen] == [
        (b"a", b"1"), (b"a", b"2"), (b"b", b"2"), (b"a", None), (b"b", None),
    ]  # fmt: skip


async def test_a_compacted_revision_says_so(own_kv: EtcdClient, root: bytes) -> None:
    """A watch whose history was compacted raises: the caller lists again."""
    first = await put(own_kv, root + b"a", b"1")
    last = await put(own_kv, root + b"a", b"2")
    await own_kv.compact(last)
    await own_kv.compact(last)  # twice is fine
    with pytest.raises(CompactedError):
        await anext(own_kv.watch(root, first))
    assert own_kv.stats.watch_relists == 1


async def test_what_is_too_large_is_refused_as_input(kv: EtcdClient, root: bytes) -> None:
    """Etcd's limits come back as a typed error that names the request, not as an outage."""
    with pytest.raises(InvalidInputError, match="request"):
        await put(kv, root + b"big", b"x" * 2_000_000)
    with pytest.raises(InvalidInputError, match="request"):
        await kv.txn((), [Put(key=root + b"%d" % i, value=b"") for i in range(200)])


async def test_nobody_there_is_unavailable_within_the_bound() -> None:
    """Without any member every call ends within its bound with UnavailableError: nothing was sent. A
    write whose connection was still being made at the end may be told as one of unknown outcome."""
    client = await EtcdClient.connect(
        ["127.0.0.1:1", "127.0.0.1:2"], options=EtcdOptions(attempt_ms=100, call_ms=300)
    )
    with pytest.raises(UnavailableError):
        await client.get(b"a")
    with pytest.raises((UnavailableError, AmbiguousError)):
        await client.txn((), [Put(key=b"a", value=b"")])
    await client.aclose()


async def test_increments_of_many_clients_add_up(shared_etcd: EtcdCluster, root: bytes) -> None:
    """Compare-and-swap from eight clients at once loses nothing and counts nothing twice."""
    key = root + b"n"

    async def add(count: int) -> None:
        client = await EtcdClient.connect(shared_etcd.endpoints, options=PATIENT)
        done = 0
        while done < count:
            kv = await client.get(key)
            number = int(kv.value) + 1 if kv else 1
            revision = kv.mod_revision if kv else 0
            result = await client.txn(
                [Compare(key=key, target="mod", op="==", operand=revision)],
                [Put(key=key, value=b"%d" % number)],
            )
            done += result.succeeded
        await client.aclose()

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(add(10))
    client = await EtcdClient.connect(shared_etcd.endpoints, options=PATIENT)
    found = await client.get(key)
    assert found is not None
    assert found.value == b"80"
    await client.aclose()


def test_only_self_defeating_transactions_are_once_only() -> None:
    """The table of what may be repeated: the condition must be false once the write happened."""

    def once(compare: Compare, op: Put | Delete, failure: tuple[Put, ...] = ()) -> bool:
        return bool(once_marks([compare], [op], failure))

    put_a, put_b = Put(key=b"a", value=b"new"), Put(key=b"b", value=b"new")
    assert once(Compare(key=b"a", target="mod", op="==", operand=7), put_a)
    assert once(Compare(key=b"a", target="version", op="==", operand=0), put_a)
    assert once(Compare(key=b"a", target="value", op="==", operand=b"old"), put_a)
    assert once(Compare(key=b"a", target="value", op="<", operand=b"new"), put_a)
    assert once(Compare(key=b"a", target="mod", op="==", operand=7), Delete(key=b"a"))
    assert not once(Compare(key=b"a", target="value", op="==", operand=b"new"), put_a)
    assert not once(Compare(key=b"a", target="value", op="<", operand=b"newer"), put_a)
    assert not once(Compare(key=b"a", target="mod", op="!=", operand=7), put_a)
    assert not once(Compare(key=b"a", target="mod", op=">", operand=7), put_a)
    assert not once(Compare(key=b"a", target="mod", op="==", operand=7), put_b)
    assert not once(Compare(key=b"a", target="mod", op="==", operand=0), Delete(key=b"a"))
    assert not once(Compare(key=b"a", target="mod", op="==", operand=7), put_a, (put_b,))


async def test_a_closed_watch_leaves_nothing_running(kv: EtcdClient, root: bytes) -> None:
    """Closing the iterator ends the stream and its tasks."""
    before = len(asyncio.all_tasks())
    watch = kv.watch(root, 1)
    waiting = asyncio.ensure_future(anext(watch))
    await until(lambda: len(asyncio.all_tasks()) > before + 1, "the watch reads")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await watch.aclose()
    await until(lambda: len(asyncio.all_tasks()) <= before, "all tasks ended")
