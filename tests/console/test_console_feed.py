"""The feed behind the console: made once, shared by all, nothing while nobody looks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controlplane import config
from controlplane.adapters.console import actions_refusal, origins
from controlplane.adapters.console_feed import EVENTS_KEPT, ConsoleFeed, FeedSource
from controlplane.clock import SystemClock
from controlplane.model.errors import UnavailableError
from controlplane.v1 import admin_pb2 as pb

CONFIG = """
cluster: {{name: test, id: east-0, region: east}}
coordination: {{endpoints: ["127.0.0.1:2379"]}}
channels: {{alipay: {{regions: [east]}}}}
regions: {{east: {{role: primary, share_bp: 10000, capacity_tps: 10}}}}
server: {{http_listen: "{http}"}}
{more}
"""


class Source:
    """A replica's knowledge, counted: how often each part of it was asked for."""

    def __init__(self) -> None:
        self.made = 0
        self.broken = False
        self.held = asyncio.Event()
        self.held.set()
        self.events: asyncio.Queue[pb.Event] = asyncio.Queue()
        self.plans: asyncio.Queue[int] = asyncio.Queue()

    def status(self) -> pb.GetStatusResponse:
        """Count a status."""
        self.made += 1
        return pb.GetStatusResponse(cluster="test", plan_epoch=self.made)

    async def regions(self) -> pb.ListRegionsResponse:
        """One region, once they are not held back; or none when etcd does not answer."""
        await self.held.wait()
        if self.broken:
            raise UnavailableError("no state")
        return pb.ListRegionsResponse(
            regions=[pb.Region(name="east")], last_known=pb.LastKnown(age_ms=self.made)
        )

    async def changed(self, epoch: int) -> int:
        """Wait for a plan."""
        return await self.plans.get()

    async def follow(self, backlog: int) -> AsyncIterator[pb.Event]:
        """Give events as they are put in."""
        while True:
            yield await self.events.get()


@contextlib.asynccontextmanager
async def feeding() -> Any:
    """A feed that runs, with its source."""
    source = Source()
    feed = ConsoleFeed(
        FeedSource(
            status=source.status,
            regions=source.regions,
            changed=source.changed,
            events=source.follow,
        ),
        SystemClock(),
    )
    async with asyncio.TaskGroup() as group:
        task = group.create_task(feed.run())
        yield feed, source
        task.cancel()


async def test_a_hundred_streams_share_what_is_made_once() -> None:
    """Every stream gets the very same bytes, from one status; a plan wakes all of them at once."""
    async with feeding() as (feed, source):
        streams = [feed.stream() for _ in range(100)]
        first = await asyncio.gather(*(anext(stream) for stream in streams))
        assert source.made == 1
        assert all(chunk == first[0] for chunk in first)
        assert first[0].startswith(b'event: status\ndata: {"cluster":"test"')
        assert b"event: regions\n" in first[0]
        assert feed.streams == 100
        source.plans.put_nowait(7)
        second = await asyncio.gather(*(anext(stream) for stream in streams))
        assert source.made == 2
        assert len(set(second)) == 1
        for stream in streams:
            await stream.aclose()
        assert feed.streams == 0


async def test_nothing_is_made_while_nobody_looks() -> None:
    """Plans and events without a console cost no status."""
    async with feeding() as (feed, source):
        source.plans.put_nowait(1)
        source.events.put_nowait(pb.Event(id=1))
        while not (source.plans.empty() and source.events.empty()):
            await asyncio.sleep(0)
        assert source.made == 0
        stream = feed.stream()
        assert b'"id":1' in await anext(stream)
        await stream.aclose()


async def test_a_slow_reader_misses_no_event_and_gets_the_newest_status_only() -> None:
    """While one stream is not read, events wait for it in order and statuses do not pile up."""
    async with feeding() as (feed, source):
        slow, fast = feed.stream(), feed.stream()
        await asyncio.gather(anext(slow), anext(fast))
        for number in range(1, 6):
            source.events.put_nowait(pb.Event(id=number))
            while f"id: {number}\n".encode() not in await anext(fast):
                pass
        waited = await anext(slow)
        numbers = [line for line in waited.split(b"\n") if line.startswith(b"id: ")]
        assert numbers == [f"id: {n}".encode() for n in range(1, 6)]
        assert waited.count(b"event: status\n") <= 1
        await asyncio.gather(slow.aclose(), fast.aclose())


async def test_the_memory_of_events_is_bounded() -> None:
    """However many events come, only the last EVENTS_KEPT are held."""
    async with feeding() as (feed, source):
        for number in range(1, EVENTS_KEPT * 3):
            source.events.put_nowait(pb.Event(id=number))
        while not source.events.empty():
            await asyncio.sleep(0)
        assert len(feed._events) == EVENTS_KEPT


async def test_without_a_state_the_status_still_flows() -> None:
    """Regions that cannot be read are an empty list, not the end of the stream."""
    async with feeding() as (feed, source):
        source.broken = True
        stream = feed.stream()
        chunk = await anext(stream)
        assert b"event: status\n" in chunk
        assert b'"regions":[]' in chunk
        await stream.aclose()


async def test_the_status_waits_for_no_regions() -> None:
    """While the regions are not to be had, the status comes on: a page that hears none takes its
    replica for dead. Once there they follow, with their age."""
    async with feeding() as (feed, source):
        source.held.clear()
        stream = feed.stream()
        chunks = []
        for made in (1, 2, 3):
            chunks.append(await anext(stream))
            assert source.made == made
            source.plans.put_nowait(made)
        assert all(b"event: status\n" in chunk for chunk in chunks)
        assert not any(b"event: regions\n" in chunk for chunk in chunks)
        source.held.set()
        while b"event: regions\n" not in (chunk := await anext(stream)):
            pass
        assert b'"name":"east"' in chunk
        assert b'"last_known":{"age_ms":' in chunk
        await stream.aclose()


@pytest.mark.parametrize(
    ("http", "more", "words"),
    [
        ("127.0.0.1:7780", "", ""),
        ("0.0.0.0:7780", "", "beyond loopback"),
        ("10.1.2.3:7780", "", "beyond loopback"),
        ("127.0.0.1:7780", "tls: {ca_file: a, cert_file: b, key_file: c}", "client certificate"),
    ],
)
def test_actions_exist_only_where_grpc_knows_no_identity_either(
    http: str, more: str, words: str
) -> None:
    """Plaintext on loopback acts; TLS or a listener others can reach is told to use the CLI."""
    refusal = actions_refusal(config.parse(CONFIG.format(http=http, more=more)))
    assert words in refusal
    assert bool(refusal) == bool(words)
    assert not refusal or "weir drain" in refusal


def test_loopback_has_two_names() -> None:
    """A person who types localhost has the same rights as one who types 127.0.0.1; no other host
    has an alias."""
    assert origins("127.0.0.1:80") == ("http://127.0.0.1:80", "http://localhost:80")
    assert origins("10.0.0.1:80") == ("http://10.0.0.1:80",)
