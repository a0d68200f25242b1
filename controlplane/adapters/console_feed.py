"""The console's live feed: made once a change, shared by every stream.

A hundred consoles that are open cost one status a second and a hundred writes of the same bytes.
While nobody looks, nothing is made. What follows here is what one replica knows by itself; only
`regions` of a replica that does not lead asks etcd, once a second for all consoles together.
`status` waits for nothing: a page that hears none takes its replica for dead.

Events of the stream
- `status`    GetStatusResponse, at once, whenever the plan or the journal changes, every second;
- `regions`   ListRegionsResponse and "now", the time of this replica; with each `status`, or later
              when it has to be waited for;
- `decision`  one Event; a new stream begins with the last `BACKLOG`, oldest first.

A slow reader never holds up others: it sees the newest status, not every one. Events it missed
because more than `EVENTS_KEPT` came meanwhile are read from /api/events again when it reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controlplane.adapters.jsonview import to_json
from controlplane.clock import Clock, rfc3339
from controlplane.model.errors import WeirError
from controlplane.model.load import load_bp
from controlplane.model.plan import Plan
from controlplane.model.topology import Topology
from controlplane.v1 import admin_pb2

REFRESH_MS: Final = 1_000
"""Consoles hear at least this often."""
GAP_MS: Final = 100
"""And never more often than this, however fast plans change."""
BACKLOG: Final = 100
EVENTS_KEPT: Final = 200
HISTORY_KEPT: Final = 500
"""Plans remembered for the chart of weights; a quiet day has a handful."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSource:
    """Where the feed comes from; each is asked anew for every refresh."""

    status: Callable[[], admin_pb2.GetStatusResponse]
    regions: Callable[[], Awaitable[admin_pb2.ListRegionsResponse]]
    changed: Callable[[int], Awaitable[int]]
    """Wait for a plan above an epoch and return its epoch."""
    events: Callable[[int], AsyncIterator[admin_pb2.Event]]
    """The last n events, then new ones for ever."""


class ConsoleFeed:
    """Frames of server-sent events for any number of streams. `run` is a part of the replica."""

    def __init__(self, source: FeedSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._streams = 0
        self._wanted = asyncio.Event()
        self._dirty = asyncio.Event()
        self._news = asyncio.Event()
        self._due = asyncio.Event()
        self._status = self._regions = b""
        self._status_no = self._regions_no = 0
        self._made_ms = -REFRESH_MS
        self._events: deque[tuple[int, bytes]] = deque(maxlen=EVENTS_KEPT)
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY_KEPT)

    @property
    def streams(self) -> int:
        """Streams that are open."""
        return self._streams

    def remember(self, plan: Plan, topology: Topology) -> None:
        """Keep what a plan makes each region carry, for the chart of a console opened later."""
        point = {
            "at_ms": plan.committed_at_ms,
            "epoch": int(plan.epoch),
            "load_bp": {str(r.name): load_bp(topology, plan, r.name) for r in topology.regions},
        }
        if self._history and self._history[-1]["load_bp"] == point["load_bp"]:
            return
        self._history.append(point)

    def history(self) -> list[dict[str, Any]]:
        """Return the changes of load that this replica has seen, oldest first."""
        return list(self._history)

    async def run(self) -> None:
        """Make frames until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_events(), name="console_events")
            group.create_task(self._follow_plan(), name="console_plan")
            group.create_task(self._make_regions(), name="console_regions")
            while True:
                if not self._streams:
                    self._wanted.clear()
                    await self._wanted.wait()
                self._make()
                self._dirty.clear()
                await self._clock.sleep_ms(GAP_MS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout((REFRESH_MS - GAP_MS) / 1000):
                        await self._dirty.wait()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield bytes for one console, for ever: everything new since the last in one piece."""
        self._streams += 1
        self._wanted.set()
        try:
            status_no, regions_no, event_id = 0, 0, self._first_event()
            if self._clock.monotonic_ms() - self._made_ms > REFRESH_MS:
                # what is there is old: wait for what is being made
                status_no, regions_no = self._status_no, self._regions_no
            while True:
                pieces = []
                if self._status_no != status_no:
                    status_no = self._status_no
                    pieces.append(self._status)
                if self._regions_no != regions_no:
                    regions_no = self._regions_no
                    pieces.append(self._regions)
                for number, frame in self._events:
                    if number > event_id and status_no:
                        event_id = number
                        pieces.append(frame)
                if pieces:
                    yield b"".join(pieces)
                else:
                    await self._news.wait()
        finally:
            self._streams -= 1

    def _first_event(self) -> int:
        last = list(self._events)[-BACKLOG:]
        return last[0][0] - 1 if last else 0

    async def _follow_events(self) -> None:
        async for event in self._source.events(BACKLOG):
            self._events.append((event.id, frame("decision", to_json(event), event.id)))
            self._dirty.set()
            self._announce()

    async def _follow_plan(self) -> None:
        epoch = 0
        while True:
            epoch = await self._source.changed(epoch)
            self._dirty.set()

    def _make(self) -> None:
        self._status = frame("status", to_json(self._source.status()))
        self._status_no += 1
        self._made_ms = self._clock.monotonic_ms()
        self._due.set()
        self._announce()

    async def _make_regions(self) -> None:
        """Make the regions once a status; one that takes long is not asked for twice."""
        while True:
            await self._due.wait()
            self._due.clear()
            listed = admin_pb2.ListRegionsResponse()
            with contextlib.suppress(WeirError):  # no plan or state yet: the status says so
                listed = await self._source.regions()
            now = {"now": rfc3339(self._clock.wall_ms())}
            self._regions = frame("regions", {**now, **to_json(listed)})
            self._regions_no += 1
            self._announce()

    def _announce(self) -> None:
        """Wake every stream once; whoever is not waiting looks anyway."""
        news, self._news = self._news, asyncio.Event()
        news.set()


def frame(kind: str, data: Mapping[str, Any], number: int | None = None) -> bytes:
    """Return one server-sent event."""
    head = f"id: {number}\n" if number is not None else ""
    body = json.dumps(data, separators=(",", ":"))
    return f"{head}event: {kind}\ndata: {body}\n\n".encode()
