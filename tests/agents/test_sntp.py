"""The clock offset against a real UDP server: right, checked, bounded."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import sntp
from agents.sntp import KEEP, STALE_MS, ClockOffset, Sample, valid
from controlplane.clock import SystemClock
from controlplane.model.errors import UnavailableError
from tests.agents.timing import ManualClock

EPOCH_1900_S = 2_208_988_800


def stamp(unix_ms: float) -> bytes:
    """Return an NTP timestamp."""
    seconds, ms = divmod(unix_ms, 1000)
    whole = (int(seconds) + EPOCH_1900_S) % (1 << 32)
    return struct.pack("!II", whole, int(ms / 1000 * (1 << 32)))


def answer(query: bytes, ahead_ms: float, **fields: Any) -> bytes:
    """Return what a server says whose clock is `ahead_ms` ahead of this machine's."""
    now = stamp(SystemClock().wall_ms() + ahead_ms)
    first = fields.get("leap", 0) << 6 | 4 << 3 | fields.get("mode", 4)
    head = struct.pack("!BBbb", first, fields.get("stratum", 2), 6, -20)
    nonce = fields.get("nonce", query[40:48])
    return head + bytes(12) + now + nonce + now + fields.get("transmit", now)


@contextlib.asynccontextmanager
async def server(reply: Callable[[bytes], bytes | None]) -> AsyncIterator[int]:
    """Serve UDP on loopback."""

    class Protocol(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            if (out := reply(data)) is not None:
                self.transport.sendto(out, addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
        await asyncio.sleep(0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an answer take as long as a busy machine needs."""
    monkeypatch.setattr(sntp, "TIMEOUT_S", 60.0)


def client(port: int) -> ClockOffset:
    """Return a client of that server."""
    return ClockOffset("127.0.0.1", port, SystemClock(), random.Random(1))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("ahead_ms", [0.0, 300_000.0, -62_000.0])
async def test_offset_is_right_to_the_round_trip(ahead_ms: float) -> None:
    """A reference that is ahead means that we are behind; the error is within the round trip."""
    async with server(lambda query: answer(query, ahead_ms)) as port:
        sample = await client(port).query()
    assert abs(sample.offset_ms + ahead_ms) <= sample.round_trip_ms / 2 + 3


@pytest.mark.usefixtures("patient")
async def test_second_ntp_era() -> None:
    """After February 2036 timestamps start again from 0: the offset stays right."""
    far_ms = (2_085_978_496 + 86_400 * 365) * 1000 - SystemClock().wall_ms()
    async with server(lambda query: answer(query, far_ms)) as port:
        sample = await client(port).query()
    assert abs(sample.offset_ms + far_ms) <= sample.round_trip_ms / 2 + 3


@pytest.mark.parametrize(
    "fields",
    [
        {"stratum": 0},
        {"stratum": 16},
        {"mode": 3},
        {"leap": 3},
        {"nonce": bytes(8)},
        {"transmit": bytes(8)},
    ],
)
async def test_unbelievable_answers_count_as_lost(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kiss of death, unsynchronised, not ours: no offset is better than a wrong one."""
    monkeypatch.setattr(sntp, "TIMEOUT_S", 0.05)
    async with server(lambda query: answer(query, 1e6, **fields)) as port:
        with pytest.raises(UnavailableError, match="no valid answer"):
            await client(port).query()


async def test_silence_and_refusal_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is silent, or not there, is an expected error."""
    monkeypatch.setattr(sntp, "TIMEOUT_S", 0.05)
    async with server(lambda _: None) as port:
        with pytest.raises(UnavailableError):
            await client(port).query()
    with pytest.raises((UnavailableError, OSError)):
        await client(port).query()


@given(data=st.binary(max_size=80), nonce=st.binary(min_size=8, max_size=8))
def test_arbitrary_packets_are_judged(data: bytes, nonce: bytes) -> None:
    """Property: no packet raises."""
    assert valid(data, nonce) in (True, False)


async def test_the_shortest_round_trip_counts_and_old_ones_do_not() -> None:
    """A sample delayed on its way does not spoil the offset; stale ones are forgotten."""
    clock = ManualClock()
    offset = ClockOffset("127.0.0.1", 1, clock, random.Random(1))
    assert offset.offset_ms is None
    for ms, trip in ((5.0, 100.0), (1.0, 2.0), (9.0, 50.0)):
        offset._samples.append(Sample(offset_ms=ms, round_trip_ms=trip, at_ms=clock.now_ms))
    assert offset.offset_ms == 1.0
    clock.now_ms += STALE_MS + 1
    assert offset.offset_ms is None
    assert offset._samples.maxlen == KEEP


@pytest.mark.usefixtures("patient")
async def test_running_asks_quickly_then_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first queries come within seconds, later ones as rarely as public servers demand;
    a lost answer stops nothing."""
    clock = ManualClock()
    asked: list[int] = []
    async with server(lambda query: answer(query, 0.0)) as port:
        offset = ClockOffset("127.0.0.1", port, clock, random.Random(1))
        real = offset.query

        async def query() -> Sample:
            asked.append(clock.now_ms)
            if len(asked) == 2:
                raise UnavailableError("lost")
            if len(asked) > 6:
                raise asyncio.CancelledError
            return await real()

        monkeypatch.setattr(offset, "query", query)
        with pytest.raises(asyncio.CancelledError):
            await offset.run()
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert all(gap < 3_000 for gap in gaps[:3])
    assert all(50_000 < gap < 80_000 for gap in gaps[3:])
