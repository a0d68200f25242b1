"""What `weir chaos` can do to the running local topology, and how each is undone.

Everything is real: SIGKILL, SIGSTOP, a provider that really answers slowly or not at all. Regions
and processes may be hurt in any order and combination; `restore-region` (or `--for`) brings back
whatever is dead or hung then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from controlplane.clock import SystemClock
from controlplane.dev.cluster import Cluster
from controlplane.dev.members import Member, Role, State
from controlplane.dev.provider import Faults
from controlplane.model.errors import InvalidInputError, RefusedError, UnavailableError

ACTIONS: Mapping[str, str] = {
    "kill-region": "SIGKILL everything of a region: replica, agent, gateway, etcd, Redis",
    "hang-region": "SIGSTOP everything of a region: sockets stay open, nobody answers",
    "isolate-region": "cut a region's network (only in the laboratory: `make chaos`)",
    "restore-region": "wake what hangs and start what is dead, in one region or in all",
    "degrade-channel": "make a provider fail and slow down, in one region or everywhere",
    "heal-channel": "end what degrade-channel began",
    "kill-leader": "SIGKILL the replica that leads",
    "kill-etcd": "SIGKILL the etcd member that leads raft, or a region's members",
    "kill-redis": "SIGKILL the Redis primary, or a region's Redis",
    "list": "show the actions, every process and the faults in force",
}
FOR_S_MAX = 86_400.0
SLOWNESS_DEFAULTS = {"errors": 0.3, "latency_ms": 900.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One action. `for_s` undoes it after that many seconds; fault figures are for channels."""

    action: str
    region: str = ""
    channel: str = ""
    for_s: float | None = None
    faults: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Request:
        """Build from JSON; InvalidInputError names what is wrong."""
        action = str(raw.get("action", ""))
        if action not in ACTIONS:
            raise InvalidInputError("ACTION", f"{action!r} is none of {', '.join(ACTIONS)}")
        for_s = raw.get("for_s")
        if for_s is not None and not (isinstance(for_s, (int, float)) and 0 < for_s <= FOR_S_MAX):
            raise InvalidInputError("--for", f"must be above 0 and at most {FOR_S_MAX:g} s")
        return cls(
            action=action,
            region=str(raw.get("region") or ""),
            channel=str(raw.get("channel") or ""),
            for_s=for_s,
            faults=dict(raw.get("faults") or {}),
        )


Undo = Callable[[], Awaitable[Any]]


class Chaos:
    """Carries out actions, one at a time."""

    def __init__(
        self, cluster: Cluster, tasks: asyncio.TaskGroup, note: Callable[[str], None]
    ) -> None:
        self._cluster = cluster
        self._tasks = tasks
        self._note = note
        self._lock = asyncio.Lock()
        self._clock = SystemClock()

    async def act(self, request: Request) -> dict[str, Any]:
        """Do it; the answer says what was hit. InvalidInputError, RefusedError or UnavailableError
        when it cannot be done."""
        handlers: dict[str, Callable[[Request], Awaitable[tuple[dict[str, Any], Undo | None]]]] = {
            "kill-region": self._kill_region,
            "hang-region": self._hang_region,
            "isolate-region": self._isolate_region,
            "restore-region": self._restore_region,
            "degrade-channel": self._degrade,
            "heal-channel": self._heal,
            "kill-leader": self._kill_leader,
            "kill-etcd": self._kill_etcd,
            "kill-redis": self._kill_redis,
            "list": self._list,
        }
        async with self._lock:
            answer, undo = await handlers[request.action](request)
        if request.action != "list":
            self._note(f"chaos: {request.action} {request.region or request.channel}".rstrip())
        if undo and request.for_s:
            self._tasks.create_task(self._undo_later(request, undo))
            answer["undone_after_s"] = request.for_s
        return {"action": request.action} | answer

    async def _undo_later(self, request: Request, undo: Undo) -> None:
        await self._clock.sleep_ms(1000 * (request.for_s or 0))
        async with self._lock:
            await undo()
        self._note(f"chaos: {request.action} undone after {request.for_s:g} s")

    # -- regions --

    def _region(self, request: Request) -> str:
        known = self._cluster.layout.regions
        if request.region not in known:
            said = f"{request.region!r} is unknown" if request.region else "is required"
            raise InvalidInputError("--region", f"{said}; one of {', '.join(known)}")
        return request.region

    async def _kill_region(self, request: Request) -> tuple[dict[str, Any], Undo]:
        batch = self._cluster.of_region(self._region(request))
        return self._kill(batch), partial(self._cluster.restart, batch)

    async def _hang_region(self, request: Request) -> tuple[dict[str, Any], Undo]:
        batch = self._cluster.of_region(self._region(request))
        hit = [m for m in batch if m.state is State.RUNNING]
        for member in hit:
            member.child.pause()
        return _named(hit), partial(self._cluster.restart, batch)

    async def _isolate_region(self, request: Request) -> tuple[dict[str, Any], None]:
        self._region(request)
        raise RefusedError(
            "isolate-region",
            "processes on one loopback cannot be cut apart without touching the "
            "machine's firewall; the laboratory with network namespaces does it (make chaos), and "
            "hang-region comes closest here",
        )

    async def _restore_region(self, request: Request) -> tuple[dict[str, Any], None]:
        regions = [self._region(request)] if request.region else self._cluster.layout.regions
        batch = [member for region in regions for member in self._cluster.of_region(region)]
        hung = [m.name for m in batch if m.state is State.HUNG]
        started = await self._cluster.restart(batch)
        return {"woken": hung, "started": started}, None

    # -- channels --

    async def _degrade(self, request: Request) -> tuple[dict[str, Any], Undo]:
        faults = asdict(Faults.parse(request.faults or SLOWNESS_DEFAULTS))
        return await self._set(request, faults), partial(self._set, request, {})

    async def _heal(self, request: Request) -> tuple[dict[str, Any], None]:
        return await self._set(request, {}), None

    async def _set(self, request: Request, faults: dict[str, float]) -> dict[str, Any]:
        content = self._cluster.layout.content
        names = [channel.name for channel in content.channels]
        if request.channel not in names:
            said = f"{request.channel!r} is unknown" if request.channel else "is required"
            raise InvalidInputError("--channel", f"{said}; one of {', '.join(names)}")
        serving = content.channel(request.channel).regions
        if request.region and self._region(request) not in serving:
            raise InvalidInputError(
                "--region", f"{request.channel} is not served from {request.region}"
            )
        regions = [request.region] if request.region else list(serving)
        told = {r: await self._cluster.set_fault(r, request.channel, faults) for r in regions}
        return {
            "channel": request.channel,
            "regions": [region for region, reached in told.items() if reached],
            "unreached": [region for region, reached in told.items() if not reached],
            "faults": faults,
        }

    # -- single processes --

    async def _kill_leader(self, _: Request) -> tuple[dict[str, Any], Undo]:
        for replica in self._cluster.of_role(Role.REPLICA):
            status = await self._cluster.get_json(replica.port, "/api/status")
            leader = self._cluster.members.get(str((status or {}).get("leader")))
            if leader and leader.state is not State.DEAD:
                batch = [leader]
                return self._kill(batch), partial(self._cluster.restart, batch)
        raise UnavailableError("kill-leader: no replica leads at the moment; try again")

    async def _kill_etcd(self, request: Request) -> tuple[dict[str, Any], Undo]:
        if request.region:
            batch = self._cluster.of_role(Role.ETCD, self._region(request))
        else:
            leader = await self._cluster.etcd_leader()
            if leader is None:
                raise UnavailableError("kill-etcd: no member leads; name one with --region")
            batch = [leader]
        return self._kill(batch), partial(self._cluster.restart, batch)

    async def _kill_redis(self, request: Request) -> tuple[dict[str, Any], Undo]:
        if request.region:
            batch = self._cluster.of_role(Role.REDIS, self._region(request))
        else:
            primary = await self._cluster.redis_primary()
            if primary is None:
                raise UnavailableError("kill-redis: no primary answers; name one with --region")
            batch = [primary]
        return self._kill(batch), partial(self._cluster.restart, batch)

    def _kill(self, batch: list[Member]) -> dict[str, Any]:
        hit = [member for member in batch if member.state is not State.DEAD]
        answer = _named(hit)
        for member in hit:  # all signals first: a region dies at once, not one by one
            member.child.signal(9)
        for member in hit:
            member.child.kill()
        return answer

    async def _list(self, _: Request) -> tuple[dict[str, Any], None]:
        processes = [
            {
                "name": member.name,
                "region": member.region,
                "role": str(member.role),
                "pid": member.child.pid,
                "state": str(member.state),
            }
            for member in self._cluster.members.values()
        ]
        faults = [
            {"region": region, "channel": channel, **fault}
            for (region, channel), fault in sorted(self._cluster.faults.items())
            if fault
        ]
        return {"actions": dict(ACTIONS), "processes": processes, "faults": faults}, None


def _named(hit: list[Member]) -> dict[str, Any]:
    return {"processes": {member.name: member.child.pid for member in hit}}
