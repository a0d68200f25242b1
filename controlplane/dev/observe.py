"""What the view shows, gathered from where users could look too: the replicas' HTTP, the payer's
statistics, the ledgers, and the kernel's word on every process.

Every source has its own loop with its own deadline, so that a hung replica delays nobody. Events
come from all replicas' streams at once and are told apart by their number: none is missed when the
replica one listened to dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from controlplane.clock import SystemClock, rfc3339
from controlplane.dev.cluster import Cluster
from controlplane.dev.ledger import Tally
from controlplane.dev.members import Member, Role

PLAN_EVERY_MS = 500
STATUS_EVERY_MS = 1000
STALE_MS = 3000
"""An answer older than this is not shown any more."""
RECONNECT_MS = 500
EVENTS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process as the kernel sees it: running, hung or dead."""

    name: str
    region: str
    role: str
    state: str


@dataclass(slots=True)
class Snapshot:
    """Everything known at one moment. `plan` and `status` are the JSON of a replica's API."""

    at: str
    plan: dict[str, Any] | None
    status: dict[str, Any] | None
    epochs: dict[str, int]
    payments: dict[str, Any] | None
    charges: int
    double_charges: int
    processes: list[Process]
    events: list[dict[str, Any]] = field(default_factory=list)


class Observer:
    """Keeps the newest answer of every source."""

    def __init__(self, cluster: Cluster, on_event: Callable[[dict[str, Any]], None]) -> None:
        self._cluster = cluster
        self._on_event = on_event
        self._clock = SystemClock()
        self._latest: dict[tuple[str, str], tuple[int, Any]] = {}
        self._tally = Tally(cluster.layout.ledgers)
        self._events: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def run(self) -> None:
        """Gather until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for replica in self._cluster.of_role(Role.REPLICA):
                tasks.create_task(self._follow(replica, "/api/plan", PLAN_EVERY_MS))
                tasks.create_task(self._follow(replica, "/api/status", STATUS_EVERY_MS))
                tasks.create_task(self._listen(replica))
            for payer in self._cluster.of_role(Role.PAYER):
                tasks.create_task(self._follow(payer, "/stats", PLAN_EVERY_MS))

    def note(self, message: str, kind: str = "dev") -> None:
        """Add an event of our own."""
        at = rfc3339(self._clock.wall_ms())
        self._keep({"at": at, "kind": kind, "message": message}, f"{at} {message}")

    def snapshot(self) -> Snapshot:
        """Everything as it stands now."""
        replicas = self._cluster.of_role(Role.REPLICA)
        plans = {r.name: plan for r in replicas if (plan := self._fresh(r.name, "/api/plan"))}
        statuses = [s for r in replicas if (s := self._fresh(r.name, "/api/status"))]
        tally = self._tally.update()
        return Snapshot(
            at=rfc3339(self._clock.wall_ms()),
            plan=max(plans.values(), key=lambda plan: int(plan["epoch"]), default=None),
            status=max(statuses, key=lambda status: int(status.get("term") or 0), default=None),
            epochs={name: int(plan["epoch"]) for name, plan in plans.items()},
            payments=self._fresh("payer", "/stats"),
            charges=tally.charges,
            double_charges=tally.doubles,
            processes=[
                Process(name=m.name, region=m.region, role=str(m.role), state=str(m.state))
                for m in self._cluster.members.values()
            ],
            events=list(self._events.values()),
        )

    def _fresh(self, name: str, path: str) -> Any:
        at_ms, value = self._latest.get((name, path), (0, None))
        return value if self._clock.monotonic_ms() - at_ms < STALE_MS else None

    async def _follow(self, member: Member, path: str, every_ms: int) -> None:
        while True:
            value = await self._cluster.get_json(member.port, path)
            if value is not None:
                self._latest[member.name, path] = (self._clock.monotonic_ms(), value)
            await self._clock.sleep_ms(every_ms)

    async def _listen(self, replica: Member) -> None:
        url = f"http://127.0.0.1:{replica.port}/api/events"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError, OSError, ValueError):
                    async with session.get(url) as stream:
                        await self._read_events(stream.content)
                await self._clock.sleep_ms(RECONNECT_MS)

    async def _read_events(self, stream: aiohttp.StreamReader) -> None:
        kind = ""
        while line := (await stream.readline()).decode():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ").strip()
            elif line.startswith("data: ") and kind == "decision":
                event = json.loads(line.removeprefix("data: "))
                self._keep(event, str(event.get("id")))

    def _keep(self, event: dict[str, Any], identity: str) -> None:
        if identity in self._events:
            return
        self._events[identity] = event
        if len(self._events) > EVENTS_MAX:
            self._events.popitem(last=False)
        self._on_event(event)
