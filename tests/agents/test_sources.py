"""Outcomes and queue lags from real HTTP servers; whatever they answer."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.counters import Counters
from agents.sources import (
    MAX_QUEUES,
    STALE_MS,
    Queues,
    Source,
    parse_outcomes,
    parse_queues,
    traffic_into,
)
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import Outcomes
from tests.agents.servers import answering, serving, silent
from tests.agents.timing import ManualClock

GOOD = {"boot": 7, "channels": {"alipay": {"ok": 3, "declined": 1, "latency": {"12": 3}}}}


def reply(body: bytes, status: int = 200) -> bytes:
    """Return an HTTP answer with this body."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


def test_good_outcomes_are_read() -> None:
    """The documented shape is understood; what is left out is 0."""
    boot, channels = parse_outcomes(GOOD)
    assert boot == 7
    assert channels == {"alipay": Outcomes(ok=3, declined=1, latency={12: 3})}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ({"channels": {}}, "boot"),
        ({"boot": True, "channels": {}}, "boot"),
        ({"boot": 1}, "channels"),
        ({"boot": 1, "channels": {"a": 1}}, "channels.a"),
        ({"boot": 1, "channels": {"a": {"ok": -1}}}, "channels.a.ok"),
        ({"boot": 1, "channels": {"a": {"ok": 1.5}}}, "channels.a.ok"),
        ({"boot": 1, "channels": {"a": {"error": 1 << 63}}}, "channels.a.error"),
        ({"boot": 1, "channels": {"a": {"latency": {"66": 1}}}}, "channels.a.latency"),
        ({"boot": 1, "channels": {"a": {"latency": {"²": 1}}}}, "channels.a.latency"),
        ({"boot": 1, "channels": {"a": {"latency": {"3": -1}}}}, "channels.a.latency.3"),
    ],
)
def test_bad_outcomes_name_the_field(body: Any, field: str) -> None:
    """Each fault is refused with the path of the field."""
    with pytest.raises(InvalidInputError) as caught:
        parse_outcomes(body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "body",
    [
        1,
        {"q": "x"},
        {"q": -1},
        {"q": float("nan")},
        {"q": True},
        {"Q!": 1},
        {f"q{i}": 1 for i in range(MAX_QUEUES + 1)},
    ],
)
def test_bad_queues_are_refused(body: Any) -> None:
    """Lags are finite and not negative, names are names, and there are few."""
    with pytest.raises(InvalidInputError):
        parse_queues(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(body=json_values)
def test_arbitrary_json_is_taken_or_refused(body: Any) -> None:
    """Property: no JSON raises anything but InvalidInputError."""
    for parse in (parse_outcomes, parse_queues):
        with contextlib.suppress(InvalidInputError):
            parse(body)


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"not json"),
        reply(b'{"boot": 1, "channels": []}'),
        reply(b"{}", 500),
        reply(b"[" * 100_000),
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_a_bad_answer_changes_nothing(answer: bytes) -> None:
    """A source that errs, lies or breaks off is no data, and no exception."""
    counters = Counters(["alipay"], [])
    async with serving(answering(answer)) as port, aiohttp.ClientSession() as session:
        source = Source("outcomes", f"http://127.0.0.1:{port}/", traffic_into(counters))
        assert not await source.poll(session)
    assert counters.cells()[0].traffic == Outcomes()


async def test_a_hung_source_costs_its_deadline_only() -> None:
    """A source that accepts and never answers ends with the session's deadline."""
    timeout = aiohttp.ClientTimeout(total=0.1)
    async with serving(silent) as port, aiohttp.ClientSession(timeout=timeout) as session:
        assert not await Source("q", f"http://127.0.0.1:{port}/", lambda _: None).poll(session)


async def test_polling_counts_our_channels_only() -> None:
    """A running source fills the counters; channels that are not configured are left out."""
    body = {"boot": 1, "channels": {"alipay": {"ok": 5}, "stranger": {"ok": 9}}}
    counters = Counters(["alipay"], [])
    counters.counted("alipay", 1, Outcomes(ok=2))
    taken: list[Any] = []

    class Enough(Exception):  # noqa: N818
        pass

    def take(answer: Any) -> None:
        traffic_into(counters)(answer)
        taken.append(answer)
        raise Enough

    async with serving(answering(reply(json.dumps(body).encode()))) as port:
        source = Source("outcomes", f"http://127.0.0.1:{port}/", take)
        with pytest.raises(Enough):
            await source.run(ManualClock(), random.Random(1), 5000)
    assert taken == [body]
    assert [(c.channel, c.traffic.ok) for c in counters.cells()] == [("alipay", 3)]


def test_queue_lags_are_dropped_when_old() -> None:
    """A lag nobody confirms any more is unknown, not a fact."""
    clock = ManualClock()
    queues = Queues(clock)
    assert queues.lags_s == {}
    queues.take({"callbacks": 1.5})
    clock.now_ms += STALE_MS
    assert queues.lags_s == {"callbacks": 1.5}
    clock.now_ms += 1
    assert queues.lags_s == {}
