"""Three whole replicas on three members of etcd, everything written recorded, and the faults that may happen to them.

The history is recorded while it happens, so that it may be compacted under the replicas' feet; never
beyond what the recorder has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.dev.process import Child
from controlplane.dev.servers import EtcdCluster, EtcdMember
from controlplane.model.errors import WeirError
from controlplane.ports import WatchEvent
from tests.operate.lab import REGIONS
from tests.support.daemons import Daemons, daemons
from tests.support.etcd import raft_leader
from tests.support.slow_disk import SlowDisk

SLOW_MS = 1000
"""A slow disk: every fourth sync takes this much longer."""


@dataclass(slots=True)
class World:
    """What the faults happen to."""

    etcd: EtcdCluster
    group: Daemons
    kv: EtcdClient
    cluster: str
    history: list[WatchEvent] = field(default_factory=list)

    @property
    def keys(self) -> Keys:
        """Names of the keys."""
        return Keys(self.cluster)

    async def record(self) -> None:
        """Keep every change, until cancelled."""
        async with contextlib.aclosing(self.kv.watch(self.keys.root, 1)) as batches:
            async for batch in batches:
                self.history += batch

    async def recorded(self) -> list[WatchEvent]:
        """Return the history up to now."""
        while True:
            with contextlib.suppress(WeirError):
                found = await self.kv.get(self.keys.heartbeat)
                goal = found.mod_revision if found else 0
                break
        while not self.history or self.history[-1].mod_revision < goal:
            await asyncio.sleep(0.01)
        return list(self.history)

    async def leader(self) -> str:
        """Region whose replica wrote last under a leadership; any when nobody can be asked."""
        with contextlib.suppress(WeirError):
            if (found := await self.kv.get(self.keys.heartbeat)) is not None:
                return str(json.loads(found.value)["replica"])[:-2]
        return REGIONS[0]


@contextlib.asynccontextmanager
async def fault_world(directory: Path, cluster: str) -> AsyncIterator[World]:
    """Start everything; end it."""
    etcd = EtcdCluster(directory / "etcd").start()
    kv = await EtcdClient.connect(etcd.endpoints, options=EtcdOptions(call_ms=5000))
    try:
        async with daemons(etcd.endpoints, directory, cluster) as group:
            world = World(etcd, group, kv, cluster)
            recorder = asyncio.ensure_future(world.record())
            yield world
            recorder.cancel()
            await asyncio.gather(recorder, return_exceptions=True)
    finally:
        await kv.aclose()
        etcd.stop()


@dataclass(frozen=True, slots=True)
class Happening:
    """A fault that has begun: what it hit, and how it ends."""

    target: str
    end: Callable[[], Awaitable[Any]]


Fault = Callable[[World], Awaitable[Happening]]


async def _nothing() -> None:
    """End what has no end."""


def _stop(child: Child) -> Happening:
    child.pause()

    async def end() -> None:
        child.resume()

    return Happening(child.name, end)


def _kill(child: Child) -> Happening:
    child.kill()

    async def end() -> None:
        if not child.alive:
            child.start()

    return Happening(child.name, end)


async def _slow(world: World, member: EtcdMember) -> Happening:
    disk = SlowDisk(world.etcd, member, delay_ms=SLOW_MS, ready_s=0)
    await asyncio.to_thread(disk.begin)

    async def end() -> None:
        if disk.member.child.alive:
            disk.member.child.kill()
        disk.member.child.argv = disk.argv
        disk.member.child.start()

    return Happening(member.child.name, end)


async def _other_region(world: World) -> str:
    leads = await world.leader()
    return next(region for region in REGIONS if region != leads)


async def _other_member(world: World) -> EtcdMember:
    leads = await raft_leader(world.etcd)
    return next(m for m in world.etcd.members if m is not leads and m.child.alive)


async def leader_killed(world: World) -> Happening:
    """SIGKILL the leading replica."""
    return _kill(world.group.children[await world.leader()])


async def leader_stopped(world: World) -> Happening:
    """SIGSTOP the leading replica."""
    return _stop(world.group.children[await world.leader()])


async def follower_killed(world: World) -> Happening:
    """SIGKILL another replica."""
    return _kill(world.group.children[await _other_region(world)])


async def follower_stopped(world: World) -> Happening:
    """SIGSTOP another replica."""
    return _stop(world.group.children[await _other_region(world)])


async def raft_leader_killed(world: World) -> Happening:
    """SIGKILL the member that leads raft."""
    return _kill((await raft_leader(world.etcd)).child)


async def raft_leader_stopped(world: World) -> Happening:
    """SIGSTOP the member that leads raft."""
    return _stop((await raft_leader(world.etcd)).child)


async def raft_follower_killed(world: World) -> Happening:
    """SIGKILL a member that follows."""
    return _kill((await _other_member(world)).child)


async def raft_follower_stopped(world: World) -> Happening:
    """SIGSTOP a member that follows."""
    return _stop((await _other_member(world)).child)


async def raft_leader_slow(world: World) -> Happening:
    """Give the member that leads raft a slow disk; it starts again with it."""
    return await _slow(world, await raft_leader(world.etcd))


async def raft_follower_slow(world: World) -> Happening:
    """Give a member that follows a slow disk."""
    return await _slow(world, await _other_member(world))


async def lease_revoked(world: World) -> Happening:
    """Revoke the lease of the leader key."""
    with contextlib.suppress(WeirError):
        if (found := await world.kv.get(world.keys.leader)) is not None and found.lease:
            await world.kv.revoke_lease(found.lease)
    return Happening("lease", _nothing)


async def compacted(world: World) -> Happening:
    """Drop the history that the recorder has seen."""
    if world.history:
        with contextlib.suppress(WeirError):
            await world.kv.compact(world.history[-1].mod_revision)
    return Happening("history", _nothing)


FAULTS: tuple[Fault, ...] = (
    leader_killed, leader_stopped, follower_killed, follower_stopped,
    raft_leader_killed, raft_leader_stopped, raft_follower_killed, raft_follower_stopped,
    raft_leader_slow, raft_follower_slow, lease_revoked, compacted,
)  # fmt: skip
