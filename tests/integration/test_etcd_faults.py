"""The etcd client while members die, hang, lag and lose replies: nothing is lost, nothing is done
twice, nothing is told wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from controlplane.adapters import etcd
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.dev.servers import EtcdCluster, EtcdMember, etcd_status
from controlplane.model.errors import AmbiguousError, CompactedError, UnavailableError, WeirError
from controlplane.ports import Compare, Put
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.etcd import PATIENT, etcdctl, etcdctl_ok, restore
from tests.support.proxy import Proxy
from tests.support.replicas import until

KEY = b"/n"


@dataclass
class Traffic:
    """One writer that counts up by compare-and-swap, one watcher that must see every number."""

    kv: EtcdClient
    written: int = 0
    seen: list[int] = field(default_factory=list)
    watching: asyncio.Future[None] | None = None

    async def write(self, count: int) -> None:
        """Write the next `count` numbers, each exactly once."""
        for _ in range(count):
            found = await self.kv.get(KEY)
            revision = found.mod_revision if found else 0
            assert (int(found.value) if found else 0) == self.written, "a write was lost or doubled"
            result = await self.kv.txn(
                [Compare(key=KEY, target="mod", op="==", operand=revision)],
                [Put(key=KEY, value=b"%d" % (self.written + 1))],
            )
            assert result.succeeded
            self.written += 1

    async def watch(self) -> None:
        """See everything from the beginning on."""
        async with contextlib.aclosing(self.kv.watch(KEY, 1)) as events:
            async for batch in events:
                self.seen += [int(event.value or b"0") for event in batch]

    async def complete(self) -> None:
        """Wait until the watcher has seen what was written, in order, once."""

        def caught_up() -> bool:
            assert self.watching
            if self.watching.done():
                self.watching.result()  # raises what ended it
            return bool(self.seen) and self.seen[-1] == self.written

        await until(caught_up, "the watcher catches up")
        assert self.seen == list(range(1, self.written + 1))


@pytest.fixture
async def traffic(own_kv: EtcdClient) -> AsyncIterator[Traffic]:
    """Writer and watcher on this test's own members."""
    traffic = Traffic(own_kv)
    task = traffic.watching = asyncio.ensure_future(traffic.watch())
    yield traffic
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def connected(cluster: EtcdCluster, kv: EtcdClient) -> EtcdMember:
    """Return the member the client uses now."""
    endpoint = kv._links.current.endpoint
    return next(member for member in cluster.members if member.endpoint == endpoint)


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_every_member_may_fail_in_turn(
    own_etcd: EtcdCluster, own_kv: EtcdClient, traffic: Traffic, fault: str
) -> None:
    """Kill -9 or SIGSTOP of whichever member the client uses, three times over: no write fails, is
    lost or doubled, and the watch sees every number once."""
    await traffic.write(20)
    for _ in range(3):
        member = connected(own_etcd, own_kv)
        getattr(member.child, fault)()
        await traffic.write(30)
        await traffic.complete()
        if fault == "kill":
            member.child.start()
        else:
            member.child.resume()
        own_etcd.wait_ready()
    assert own_kv.stats.rotations >= 3


async def test_a_lost_quorum_blocks_and_comes_back(
    own_etcd: EtcdCluster, own_kv: EtcdClient, traffic: Traffic
) -> None:
    """With two of three members gone every call ends within its bound, typed; afterwards reads,
    writes and the watch go on as if nothing had been."""
    await traffic.write(5)
    lost = own_etcd.members[:2]
    for member in lost:
        member.child.kill()
    hasty = await EtcdClient.connect(own_etcd.endpoints, options=EtcdOptions(call_ms=800))
    with pytest.raises(UnavailableError):
        await hasty.get(KEY)
    with pytest.raises((UnavailableError, AmbiguousError)):
        await hasty.txn((), [Put(key=b"/other", value=b"1")])
    await hasty.aclose()
    for member in lost:
        member.child.start()
    own_etcd.wait_ready()
    await traffic.write(5)
    await traffic.complete()


async def test_without_a_raft_leader_nobody_is_named(own_etcd: EtcdCluster) -> None:
    """A member that knows no raft leader leaves the field out: to ask who leads says that nobody
    does."""
    for member in own_etcd.members[:2]:
        member.child.kill()

    def nobody() -> bool:
        try:
            own_etcd.leader()
        except WeirError as error:
            return "no member leads" in str(error)
        return False

    status = own_etcd.members[2].client_port
    await until(lambda: "leader" not in (etcd_status(status) or {"leader": 0}), "it steps down")
    assert nobody()


async def test_a_member_is_replaced(
    own_etcd: EtcdCluster, own_kv: EtcdClient, traffic: Traffic
) -> None:
    """A member that lost its disk is removed and added anew at its address, under traffic."""
    await traffic.write(10)
    member = connected(own_etcd, own_kv)
    others = [m.endpoint for m in own_etcd.members if m is not member]
    listed = etcdctl(others, "member", "list")
    member_id = next(
        line.split(",")[0] for line in listed.splitlines() if f" {member.name}," in line
    )
    member.child.kill()
    shutil.rmtree(member.directory)
    await traffic.write(10)  # the others have a leader again
    etcdctl(others, "member", "remove", member_id)
    peer = f"http://127.0.0.1:{member.peer_port}"
    await until(  # etcd wants every remaining member connected for 5 s before it takes a new one
        lambda: etcdctl_ok(others, "member", "add", member.name, f"--peer-urls={peer}"), "added"
    )
    member.child.argv = [
        arg.replace("cluster-state=new", "cluster-state=existing") for arg in member.child.argv
    ]
    member.child.start()
    own_etcd.wait_ready()
    for other in own_etcd.members:  # the new member alone carries the client
        if other is not member:
            own_kv._links.failed(next(k for k in own_kv._links.all if k.endpoint == other.endpoint))
    await traffic.write(10)
    await traffic.complete()


# --- links that lose, delay and hang -----------------------------------------------------------


@pytest.fixture
async def proxies(own_etcd: EtcdCluster) -> AsyncIterator[list[Proxy]]:
    """One proxy before every member."""
    proxies = [await Proxy(member.client_port).start() for member in own_etcd.members]
    yield proxies
    for proxy in proxies:
        await proxy.stop()


@pytest.fixture
async def far_kv(proxies: list[Proxy]) -> AsyncIterator[EtcdClient]:
    """Return a client that reaches the members through the proxies only."""
    options = EtcdOptions(attempt_ms=200, call_ms=20_000, progress_ms=100, silence_ms=400)
    client = await EtcdClient.connect([p.endpoint for p in proxies], options=options)
    yield client
    await client.aclose()


def used(proxies: list[Proxy], kv: EtcdClient) -> Proxy:
    """Return the proxy the client uses now."""
    return next(p for p in proxies if p.endpoint == kv._links.current.endpoint)


async def once(kv: EtcdClient, number: int) -> bool:
    """One once-only write of a number."""
    found = await kv.get(KEY)
    revision = found.mod_revision if found else 0
    compare = Compare(key=KEY, target="mod", op="==", operand=revision)
    proxy_txn = await kv.txn([compare], [Put(key=KEY, value=b"%d" % number)])
    return proxy_txn.succeeded


async def lost_reply(own: EtcdClient, proxies: list[Proxy], kv: EtcdClient) -> bool:
    """Write once while the replies of the first tries are lost; return what the client says."""
    await kv.get(KEY)
    compare = Compare(key=KEY, target="mod", op="==", operand=0)
    for proxy in proxies:
        proxy.lose_replies = True
    writing = asyncio.ensure_future(kv.txn([compare], [Put(key=KEY, value=b"mine")]))
    await happened(own)
    for proxy in proxies:
        proxy.lose_replies = False
        proxy.cut()
    result = await writing
    found = await own.get(KEY)
    assert found is not None
    assert (found.value, found.version) == (b"mine", 1)
    return result.succeeded


async def happened(own: EtcdClient) -> None:
    """Wait until somebody has written the key, although nobody was told."""
    async with contextlib.aclosing(own.watch(KEY, 1)) as events:
        await anext(events)


async def test_a_lost_reply_is_not_a_lost_write(
    own_kv: EtcdClient, proxies: list[Proxy], far_kv: EtcdClient
) -> None:
    """The write happened, its answer did not come: tried again elsewhere, recognised as ours, told
    as the success it is, applied once."""
    assert await lost_reply(own_kv, proxies, far_kv) is True


async def test_without_reading_back_a_success_is_told_as_failure(
    own_kv: EtcdClient,
    proxies: list[Proxy],
    far_kv: EtcdClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutation: without the look at whose value it is, the client denies a write that happened."""
    monkeypatch.setattr(etcd, "_was_ours", lambda *_: 0)
    assert await lost_reply(own_kv, proxies, far_kv) is False


async def test_an_unguarded_write_is_never_repeated(
    own_kv: EtcdClient, proxies: list[Proxy], far_kv: EtcdClient
) -> None:
    """A plain put whose reply was lost says "ambiguous" at once and is not sent twice."""
    await far_kv.get(KEY)
    used(proxies, far_kv).lose_replies = True
    with pytest.raises(AmbiguousError):
        await far_kv.txn((), [Put(key=KEY, value=b"x")])
    await happened(own_kv)
    found = await far_kv.get(KEY)
    assert found is not None
    assert found.version == 1


async def test_overwritten_before_it_could_be_read_is_ambiguous(
    own_kv: EtcdClient, proxies: list[Proxy], far_kv: EtcdClient
) -> None:
    """Reply lost, then another writer was faster than the second try: nobody can tell any more."""
    await far_kv.get(KEY)
    for proxy in proxies:
        proxy.lose_replies = True
    compare = Compare(key=KEY, target="mod", op="==", operand=0)
    writing = asyncio.ensure_future(far_kv.txn([compare], [Put(key=KEY, value=b"mine")]))
    await happened(own_kv)
    await own_kv.txn((), [Put(key=KEY, value=b"theirs")])
    for proxy in proxies:
        proxy.lose_replies = False
        proxy.cut()
    with pytest.raises(AmbiguousError):
        await writing


async def test_the_next_member_is_connected_beforehand(proxies: list[Proxy]) -> None:
    """Leaving a member costs no handshake: one link beside the one in use stands ready, also after
    a member was lost."""
    kv = await EtcdClient.connect([p.endpoint for p in proxies], options=PATIENT)
    await kv.get(KEY)
    await until(lambda: sum(p.connections > 0 for p in proxies) == 2, "one more is connected")
    gone = used(proxies, kv)
    await gone.stop()
    await kv.get(KEY)
    assert used([p for p in proxies if p is not gone], kv)
    await until(lambda: all(p.connections for p in proxies if p is not gone), "and the next")
    await kv.aclose()


async def test_a_slow_member_is_left(proxies: list[Proxy]) -> None:
    """A member that answers later than an attempt may take is left for the next; it stays left."""
    options = EtcdOptions(attempt_ms=2_000, call_ms=60_000)  # the others answer in that time
    kv = await EtcdClient.connect([p.endpoint for p in proxies], options=options)
    async with contextlib.aclosing(kv):
        await kv.get(KEY)
        slow = used(proxies, kv)
        slow.delay_ms = 4_000
        for number in range(10):
            assert await once(kv, number)
            assert used(proxies, kv) is not slow


async def test_a_slow_cluster_is_waited_for(proxies: list[Proxy], far_kv: EtcdClient) -> None:
    """When every member is slower than an attempt, patience grows and the write succeeds once."""
    await far_kv.get(KEY)
    for proxy in proxies:
        proxy.delay_ms = 150  # both ways: 300 ms against attempts of 200
    assert await once(far_kv, 1)
    found = await far_kv.get(KEY)
    assert found is not None
    assert found.version == 1


async def test_a_silent_watch_moves_on(
    proxies: list[Proxy], own_kv: EtcdClient, far_kv: EtcdClient
) -> None:
    """A member that goes silent without closing anything is left after the silence bound, and what
    was written meanwhile arrives, once."""
    traffic = Traffic(far_kv)
    writer = Traffic(own_kv)
    task = asyncio.ensure_future(traffic.watch())
    await writer.write(5)
    await until(lambda: traffic.seen == [1, 2, 3, 4, 5], "the watch runs")
    silent = used(proxies, far_kv)
    silent.lose_replies = True
    await writer.write(5)
    await until(lambda: len(traffic.seen) >= 10, "the watch moved on")
    silent.lose_replies = False
    await writer.write(5)
    await until(lambda: len(traffic.seen) >= 15, "and goes on")
    assert traffic.seen == list(range(1, 16))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_compacted_while_cut_off(
    proxies: list[Proxy], own_kv: EtcdClient, far_kv: EtcdClient
) -> None:
    """What was compacted while the watch was cut off is gone: it says so instead of skipping."""
    watch = far_kv.watch(KEY, 1)
    await Traffic(own_kv).write(3)
    seen = 0
    while seen < 3:
        seen += len(await anext(watch))
    for proxy in proxies:
        proxy.lose_replies = proxy.lose_requests = True
    writer = Traffic(own_kv, written=3)
    await writer.write(5)
    found = await own_kv.get(KEY)
    assert found is not None
    await own_kv.compact(found.mod_revision)
    for proxy in proxies:
        proxy.lose_replies = proxy.lose_requests = False
        proxy.cut()
    with pytest.raises(CompactedError):
        await anext(watch)


async def test_a_restored_etcd_is_noticed(
    own_etcd: EtcdCluster, own_kv: EtcdClient, traffic: Traffic
) -> None:
    """After a restore etcd's revision is below what the watch has seen: it raises, instead of
    waiting for ever in the future."""
    await traffic.write(5)
    snapshot = own_etcd.directory / "snapshot.db"
    etcdctl([own_etcd.members[0].endpoint], "snapshot", "save", str(snapshot))
    await traffic.write(20)
    await traffic.complete()
    watch = own_kv.watch(KEY, (await own_kv.revision()) + 1)
    waiting = asyncio.ensure_future(anext(watch))
    restore(own_etcd, snapshot)
    with pytest.raises(CompactedError, match="restored"):
        await waiting
    found = await own_kv.get(KEY)
    assert found is not None
    assert found.value == b"5"
