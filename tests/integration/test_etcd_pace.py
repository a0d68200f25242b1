"""How patient the client is, in virtual time; and on real etcd what becomes of attempts that were left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_call import OPEN_MAX
from controlplane.adapters.etcd_links import EtcdOptions, Metadata
from controlplane.adapters.etcd_pace import KEPT_MS, SLOWER_MAX, Pace
from controlplane.dev.servers import EtcdCluster
from controlplane.ports import Compare, Put
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.proxy import Proxy
from tests.support.replicas import until

ATTEMPT_MS, CALL_MS = 700, 2500


def pace(*took_ms: int, at_ms: int = 0) -> Pace:
    """Return a pace after answers that took so long."""
    one = Pace(ATTEMPT_MS, CALL_MS)
    for took in took_ms:
        one.answered(at_ms, took)
    return one


@pytest.mark.parametrize(
    ("took_ms", "attempt_ms", "call_ms"),
    [
        ((), ATTEMPT_MS, CALL_MS),
        ((3, 5, 4), ATTEMPT_MS, CALL_MS),
        ((3, 5, 2000), ATTEMPT_MS, 4000),  # one late answer: only the whole call may last longer
        ((900, 1000, 2000), 2000, 4000),
        ((9000, 9000), SLOWER_MAX * ATTEMPT_MS, SLOWER_MAX * CALL_MS),
    ],
)
def test_patience_follows_the_answers(
    took_ms: tuple[int, ...], attempt_ms: int, call_ms: int
) -> None:
    """Twice the usual answer for an attempt, twice the longest for a call, both bounded."""
    one = pace(*took_ms)
    assert (one.attempt_ms(0), one.call_ms(0)) == (attempt_ms, call_ms)


def test_late_answers_are_forgotten() -> None:
    """A disk that is well again is soon treated so: by new answers, or by time."""
    one = pace(3000, 3000, 3000, at_ms=1000)
    assert one.attempt_ms(1000) > ATTEMPT_MS
    assert one.attempt_ms(1000 + KEPT_MS + 1) == ATTEMPT_MS
    for _ in range(100):
        one.answered(1000, 3)
    assert one.call_ms(1000) == CALL_MS


@pytest.fixture
async def proxies(shared_etcd: EtcdCluster) -> AsyncIterator[list[Proxy]]:
    """One proxy before every member."""
    proxies = [await Proxy(member.client_port).start() for member in shared_etcd.members]
    yield proxies
    for proxy in proxies:
        await proxy.stop()


@pytest.fixture
async def hasty_kv(proxies: list[Proxy]) -> AsyncIterator[EtcdClient]:
    """Return a client that soon leaves a member, and does not soon give up."""
    options = EtcdOptions(attempt_ms=200, call_ms=60_000)
    client = await EtcdClient.connect([p.endpoint for p in proxies], options=options)
    yield client
    await client.aclose()


async def write(kv: EtcdClient, name: str) -> bool:
    """Write a key of this test once, if it is not there."""
    key = f"/pace/{name}".encode()
    absent = Compare(key=key, target="create", op="==", operand=0)
    return (await kv.txn([absent], [Put(key=key, value=name.encode())])).succeeded


async def test_an_attempt_that_was_left_may_still_answer(
    proxies: list[Proxy], hasty_kv: EtcdClient, cluster_name: str
) -> None:
    """Every member holds its request, as on a slow disk; then the first one asked takes up what it
    holds, and nothing that is sent later. That answer counts, long after it was left."""
    await hasty_kv.get(b"/pace")
    first = next(p for p in proxies if p.endpoint == hasty_kv._links.current.endpoint)
    for proxy in proxies:
        proxy.gate = asyncio.Event()
    writing = asyncio.ensure_future(write(hasty_kv, cluster_name))
    await until(lambda: hasty_kv.stats.failures["slow"] > 2, "it has left the first")
    held, first.gate = first.gate, asyncio.Event()
    assert held is not None
    held.set()
    assert await writing


async def test_lost_attempts_do_not_keep_others_from_being_made(
    proxies: list[Proxy], hasty_kv: EtcdClient, cluster_name: str
) -> None:
    """More requests vanish without a word than may be under way, as what members forward to a
    leader of etcd that is gone; the next one is made all the same, and answers."""
    await hasty_kv.get(b"/pace")
    for proxy in proxies:
        proxy.lose_requests = True
    writing = asyncio.ensure_future(write(hasty_kv, cluster_name))
    await until(lambda: hasty_kv.stats.failures["slow"] > OPEN_MAX + 2, "many are lost")
    for proxy in proxies:
        proxy.lose_requests = False
        proxy.cut()
    assert await writing


async def test_an_attempt_that_was_left_before_it_was_sent_may_happen(
    proxies: list[Proxy], hasty_kv: EtcdClient, kv: EtcdClient, cluster_name: str
) -> None:
    """The first attempt still logs in when it is left; then it is sent, happens, and its reply is
    lost. The next one finds the key there, and the client knows that it was its own write."""
    await hasty_kv.get(b"/pace")
    links = hasty_kv._links
    first = next(p for p in proxies if p.endpoint == links.current.endpoint)
    first.lose_replies = True
    usual, waits = links.metadata, [asyncio.Event(), asyncio.Event()]
    logins = iter([waits[0]])

    async def slow(timeout_s: float) -> Metadata:
        await next(logins, waits[1]).wait()
        return await usual(timeout_s)

    links.metadata = slow  # type: ignore[method-assign]
    writing = asyncio.ensure_future(write(hasty_kv, cluster_name))
    await until(lambda: hasty_kv.stats.failures["slow"], "the first is left")
    waits[0].set()
    async with contextlib.aclosing(kv.watch(f"/pace/{cluster_name}".encode(), 1)) as events:
        await anext(events)
    waits[1].set()
    assert await writing
