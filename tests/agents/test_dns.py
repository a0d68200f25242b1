"""Name resolution of the probes: fresh, bounded, and never able to hang the agent."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from agents.probes import dns, observe
from agents.probes.dns import MAX_LOOKUPS, Resolver
from agents.probes.observation import ProbeFailedError, Reason, Trace
from agents.sinks import FreshNames
from controlplane.adapters.wire import decode_plan
from tests.agents.plans import plan
from tests.agents.servers import answering, serving, target
from tests.agents.timing import eventually


class Names:
    """A system resolver the test controls; `hold` makes it hang."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Sequence[str] = ["192.0.2.1"]
        self.hold = threading.Event()
        self.hold.set()

    def __call__(self, host: str) -> Sequence[str]:
        """Answer like getaddrinfo."""
        self.asked.append(host)
        assert self.hold.wait(60)
        if not self.answer:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.answer


@pytest.fixture
def names() -> Iterator[Names]:
    """Return a resolver that is released at the end."""
    names = Names()
    yield names
    names.hold.set()


async def test_answers_are_kept_briefly_and_flushed(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer is used for at most 5 s, and not beyond a flush."""
    now = 1000.0
    monkeypatch.setattr(dns, "precise_ms", lambda: now)
    resolver = Resolver(names)
    assert await resolver.resolve("pay.example", Trace()) == ("192.0.2.1",)
    names.answer = ["192.0.2.2"]
    now += 4_999
    assert await resolver.resolve("pay.example", Trace()) == ("192.0.2.1",)
    now += 2
    assert await resolver.resolve("pay.example", Trace()) == ("192.0.2.2",)
    names.answer = ["192.0.2.3"]
    resolver.flush()
    assert await resolver.resolve("pay.example", Trace()) == ("192.0.2.3",)
    assert len(names.asked) == 3


async def test_a_new_epoch_flushes_once(names: Names) -> None:
    """A new plan makes probes see what payments now see; a confirmation of it does not."""
    resolver = Resolver(names)
    sink = FreshNames(resolver)
    await resolver.resolve("pay.example", Trace())
    for _ in range(2):
        await sink.take(decode_plan(plan(5)), confirmed=True)
        await resolver.resolve("pay.example", Trace())
    assert len(names.asked) == 2


async def test_failures_are_not_kept(names: Names) -> None:
    """A name that fails now may answer at once afterwards."""
    resolver = Resolver(names)
    names.answer = []
    with pytest.raises(ProbeFailedError, match="not known"):
        await resolver.resolve("pay.example", Trace())
    names.answer = ["192.0.2.9"]
    assert await resolver.resolve("pay.example", Trace()) == ("192.0.2.9",)


async def test_only_real_lookups_are_timed(names: Names) -> None:
    """A cached answer or an address has no phase dns: it would make the histogram look good."""
    resolver = Resolver(names)
    first, second, address = Trace(), Trace(), Trace()
    await resolver.resolve("pay.example", first)
    await resolver.resolve("pay.example", second)
    assert await resolver.resolve("::1", address) == ("::1",)
    assert "dns" in first.phases
    assert "dns" not in second.phases
    assert "dns" not in address.phases


async def test_a_hung_resolver_times_out_in_dns_and_is_asked_once(names: Names) -> None:
    """Probes of a name whose look-up hangs time out in phase dns; they share one look-up."""
    resolver = Resolver(names)
    names.hold.clear()
    wanted = target(1, host="slow.example", deadline_ms=50.0)
    seen = [await observe(wanted, resolver) for _ in range(3)]
    assert {s.reason for s in seen} == {Reason.TIMEOUT}
    assert all("dns" in s.detail for s in seen)
    await eventually(lambda: names.asked, "the look-up has begun")
    assert len(names.asked) == 1
    names.hold.set()
    await eventually(lambda: not resolver._pending, "the look-up has ended")


async def test_hung_lookups_are_bounded(names: Names) -> None:
    """Many hung names cost few threads; the next one fails at once and by name."""
    resolver = Resolver(names)
    names.hold.clear()
    hung = [
        asyncio.ensure_future(resolver.resolve(f"h{i}.example", Trace()))
        for i in range(MAX_LOOKUPS)
    ]
    await asyncio.sleep(0)
    with pytest.raises(ProbeFailedError, match="already hang"):
        await resolver.resolve("one-more.example", Trace())
    names.hold.set()
    await asyncio.gather(*hung)


async def test_an_answer_on_its_way_is_not_kept_over_a_flush(names: Names) -> None:
    """An answer asked for before a flush is used once and not remembered."""
    resolver = Resolver(names)
    names.hold.clear()
    early = asyncio.ensure_future(resolver.resolve("pay.example", Trace()))
    await asyncio.sleep(0)
    resolver.flush()
    names.hold.set()
    await early
    names.answer = ["192.0.2.7"]
    assert await resolver.resolve("pay.example", Trace()) == ("192.0.2.7",)


async def test_the_real_resolver() -> None:
    """`localhost` is found by the system and probed; a name that cannot be encoded is an error."""
    resolver = Resolver()
    async with serving(answering(b"HTTP/1.1 200 OK\r\n\r\n")) as port:
        seen = await observe(target(port, host="localhost"), resolver)
    assert seen.ok, seen
    assert "dns" in seen.phases
    bad = await observe(target(1, host="a" * 300), resolver)
    assert bad.reason is Reason.DNS
