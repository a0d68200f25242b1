"""Scenarios for the checks of the scripts: each does something real to real servers (or delivers a
late message) and records what was granted. Where today's Redis makes two checks cover each other,
the scenario takes the other one's cover away first and says so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lock_history import Granted
from lock_lab import Lab, until

from controlplane.dev.servers import RedisServer
from controlplane.locks import scripts as script_files
from controlplane.locks.grant import Limits, Mode
from controlplane.locks.manager import LockManager
from controlplane.locks.scripts import Script, script_of
from controlplane.model.errors import RefusedError, UnavailableError

TTL = 250
LONG = 3_000
"""For holds that have to outlast a bump on a machine that stalls."""
LIMITS = Limits(ttl_min_ms=20, ttl_usual_ms=TTL, ttl_max_ms=60_000, beat_ms=3_000)
Sources = Mapping[str, Script]


def without(name: str) -> Sources:
    """The scripts with the lines of one check taken out (the nonce loses the time instead)."""
    sources, removed = {}, 0
    for script in script_files.load().values():
        lines = []
        for line in script.source.splitlines():
            if line.endswith(f"-- check: {name}"):
                removed += 1
                if name == "nonce_time":
                    lines.append("local nonce = ARGV[2]")
                continue
            lines.append(line)
        sources[script.name] = script_of(script.name, "\n".join(lines))
    assert removed, f"no script has a check named {name}"
    return sources


class Bench:
    """A scenario's hands: managers whose leadership it decides, grants that go into a history."""

    def __init__(self, lab: Lab, folder: Path, sources: Sources | None) -> None:
        self.lab = lab
        self.folder = folder
        self.sources = sources
        self.leads = True
        self.limits = LIMITS
        self.history: list[Granted] = []
        self.servers: list[RedisServer] = []

    async def manager(self, port: int = 0, mode: Mode = Mode.LINEAGE) -> LockManager:
        """A manager whose leadership the scenario decides."""
        return await self.lab.manager(
            port=port,
            mode=mode,
            limits=self.limits,
            sources=self.sources,
            ready=False,
            may_bump=lambda: self.leads,
        )

    async def quiet(self, locks: LockManager) -> None:
        """Nobody leads, and the keeper has looked for the last time: what follows is up to the
        scripts alone, however long it takes."""
        self.leads = False
        rested = asyncio.Event()

        async def look() -> int:
            rested.set()
            return 60_000

        locks.keeper.look = look
        locks.keeper.kick()
        await rested.wait()

    async def second(self) -> RedisServer:
        """Another Redis, a replica of the first that has caught up."""
        server = RedisServer(self.folder, "second", replica_of=self.lab.server.port).start()
        self.servers.append(server)
        await self.link_up(server.port)
        return server

    async def link_up(self, port: int) -> None:
        """Wait until a server follows its primary."""
        async with asyncio.timeout(20):
            while "master_link_status:up" not in await self.info(port):
                await asyncio.sleep(0.01)

    async def caught_up(self, replica: RedisServer) -> None:
        """Wait until a replica has the fence as the primary has it."""
        async with asyncio.timeout(20):
            while await self.redis("HGETALL", self.lab.fence, port=replica.port) != (
                await self.redis("HGETALL", self.lab.fence)
            ):
                await asyncio.sleep(0.005)

    async def info(self, port: int = 0) -> str:
        """What a server says of its replication."""
        return str(await self.lab.redis("INFO", "replication", port=port))

    async def take(
        self,
        locks: LockManager,
        *,
        owner: str = "o",
        name: str = "a",
        wait_ms: int = 0,
        ttl_ms: int = TTL,
        keep: bool = False,
    ) -> Granted | None:
        """Take and give back (or keep until its time is over); None when it was refused."""
        asked = time.monotonic_ns()
        try:
            grant = await locks.acquire(name, owner=owner, ttl_ms=ttl_ms, wait_ms=wait_ms)
        except (UnavailableError, RefusedError):
            return None
        now = time.monotonic_ns()
        until_ns = now + (grant.deadline_ms - locks.clock.monotonic_ms()) * 1_000_000
        if not keep:
            await locks.release(name, owner=owner, token=grant.token)
            until_ns = now
        self.history.append(
            Granted(name=name, token=grant.token.value, asked_ns=asked, returned_ns=now,
                    until_ns=until_ns)
        )  # fmt: skip
        return self.history[-1]

    async def settled(self, locks: LockManager, *, wait_ms: int = 20_000) -> Granted:
        """Take a lock as soon as it can be had."""
        granted = await self.take(locks, wait_ms=wait_ms)
        assert granted is not None
        return granted

    async def script(self, locks: LockManager, name: str, *argv: str | int) -> list[Any]:
        """Run a script of the fence by hand."""
        reply: list[Any] = await locks.scripts.run(name, None, *argv)
        return [item.decode() if isinstance(item, bytes) else item for item in reply]

    async def redis(self, *args: Any, port: int = 0) -> Any:
        """Run a script of the fence by hand."""
        return await self.lab.redis(*args, port=port)


Scenario = Callable[[Bench], Awaitable[None]]


async def epoch(bench: Bench) -> None:
    """The epoch is gone and the rest of the fence is there: a partial write, a careless hand."""
    locks = await bench.manager()
    await bench.settled(locks)
    await bench.quiet(locks)
    await bench.redis("HDEL", bench.lab.fence, "epoch")
    locks.lineage.floor = 0  # a process that has just started
    await bench.take(locks)


async def run_id(bench: Bench) -> None:
    """A restart from an old snapshot, on a server that keeps its replication id across restarts
    (today's Redis does not, which is why the scenario forges the id)."""
    locks = await bench.manager()
    await bench.settled(locks)
    await bench.redis("SAVE")
    await bench.settled(locks)
    await bench.quiet(locks)
    wire = locks._link._wire
    bench.lab.server.kill()
    bench.lab.server.start()
    info = await bench.info()
    replid = info.split("master_replid:")[1].split()[0]
    await bench.redis("HSET", bench.lab.fence, "replid", replid)
    await until(lambda: locks._link._wire not in (None, wire))
    await bench.take(locks)


async def replid(bench: Bench) -> None:
    """The primary follows a replica that missed its newest grants, and is promoted again: the same
    process, older data."""
    first, second = bench.lab.server, await bench.second()
    locks = await bench.manager()
    await bench.settled(locks)
    await bench.caught_up(second)
    await bench.quiet(locks)
    await bench.redis("REPLICAOF", "127.0.0.1", 1, port=second.port)
    await bench.settled(locks)
    await bench.redis("REPLICAOF", "NO", "ONE", port=second.port)
    await bench.redis("REPLICAOF", "127.0.0.1", second.port, port=first.port)
    await bench.link_up(first.port)
    await bench.redis("REPLICAOF", "NO", "ONE", port=first.port)
    await until(locks._link.connected.is_set)
    await bench.take(locks)


async def promoted(bench: Bench) -> tuple[LockManager, LockManager]:
    """Two primaries: the old one still whole, the new one with the next epoch in force."""
    second = await bench.second()
    old = await bench.manager()
    await bench.settled(old)
    await bench.caught_up(second)
    bench.leads = False
    await bench.redis("REPLICAOF", "NO", "ONE", port=second.port)
    new = await bench.lab.manager(
        port=second.port, mode=Mode.LINEAGE, limits=LIMITS, sources=bench.sources
    )
    await bench.settled(new)
    return old, new


async def role(bench: Bench) -> None:
    """A demoted primary that accepts writes and has not synchronised yet."""
    old, _ = await promoted(bench)
    await bench.quiet(old)
    old.lineage.floor = 0  # it has not heard of the new epoch, nor will it
    await bench.redis("CONFIG", "SET", "replica-read-only", "no")
    await bench.redis("REPLICAOF", "127.0.0.1", 1)
    await bench.take(old)


async def floor(bench: Bench) -> None:
    """A replica of the control plane that knows the new epoch meets the old primary."""
    old, new = await promoted(bench)
    await bench.quiet(old)
    old.lineage.saw(new.lineage.epoch)
    await bench.take(old)


async def quarantine(bench: Bench) -> None:
    """Redis loses everything while a lock is held."""
    bench.limits = replace(LIMITS, ttl_usual_ms=LONG)
    locks = await bench.manager()
    await bench.settled(locks)
    await bench.take(locks, owner="holder", keep=True, ttl_ms=LONG)
    await bench.redis("FLUSHALL")
    await bench.take(locks, owner="next", wait_ms=20_000)


async def ttl_high(bench: Bench) -> None:
    """Redis loses everything while a lock with a long TTL is held."""
    locks = await bench.manager()
    await bench.settled(locks)
    await bench.take(locks, owner="holder", keep=True, ttl_ms=LONG)
    await bench.redis("FLUSHALL")
    await bench.take(locks, owner="next", wait_ms=20_000)


async def hand_off(bench: Bench) -> None:
    """The fence goes while somebody waits; the release must not hand over without it."""
    locks = await bench.manager()
    await bench.settled(locks)
    grant = await locks.acquire("a", owner="holder", ttl_ms=20_000)
    async with asyncio.TaskGroup() as group:
        group.create_task(bench.take(locks, owner="w", wait_ms=1_000))
        async with asyncio.timeout(20):
            while not (await locks.inspect("a")).waiters:
                await asyncio.sleep(0.001)
        await bench.quiet(locks)
        await bench.redis("DEL", bench.lab.fence)
        await locks.release("a", owner="holder", token=grant.token)


async def survivor(bench: Bench) -> None:
    """A lock that had been released and passed on is back after a restart from a snapshot, and
    outlives the quarantine because the server's clock was set back; its old owner asks again."""
    locks = await bench.manager()
    await bench.settled(locks)
    first = await locks.acquire("a", owner="back", ttl_ms=TTL)
    while not await bench.redis("PEXPIRE", bench.lab.key("l", "a"), 60_000):
        first = await locks.acquire("a", owner="back", ttl_ms=TTL)  # too late: once more
    await bench.redis("SAVE")
    now = time.monotonic_ns()
    bench.history.append(
        Granted(name="a", token=first.token.value, asked_ns=now - 1, returned_ns=now)
    )
    await locks.release("a", owner="back", token=first.token)
    await bench.settled(locks)
    bench.lab.server.kill()
    bench.lab.server.start()
    await until(lambda: locks.lineage.state == "open" and locks.lineage.epoch > first.token.epoch)
    again = await bench.take(locks, owner="back", wait_ms=20_000)
    if again is not None and again.token == first.token.value:
        bench.history.remove(bench.history[1])  # one grant told twice counts once


async def _bumped_by_hand(bench: Bench, locks: LockManager, nonce: str) -> tuple[str, int]:
    _, named, above = await bench.script(locks, "prepare", 0, nonce)
    record = await locks.register.allocate(
        named, above=int(above), floor=locks.lineage.floor, ttl_usual_ms=TTL
    )
    await bench.script(locks, "install", named, record.epoch, TTL)
    await bench.script(locks, "open", record.epoch)
    return str(named), record.epoch


async def install_nonce(bench: Bench) -> None:
    """An INSTALL is delivered again after everything was lost once more."""
    bench.leads = False
    locks = await bench.manager()
    await until(locks._link.connected.is_set)
    nonce, number = await _bumped_by_hand(bench, locks, "n1")
    await bench.settled(locks)
    await bench.redis("FLUSHALL")
    await bench.script(locks, "prepare", 0, "n2")
    await bench.script(locks, "install", nonce, number, TTL)
    await bench.script(locks, "open", number)
    await bench.take(locks)


async def nonce_time(bench: Bench) -> None:
    """PREPARE and INSTALL of an old bump are both delivered again after a loss."""
    bench.leads = False
    locks = await bench.manager()
    await until(locks._link.connected.is_set)
    nonce, number = await _bumped_by_hand(bench, locks, "n1")
    await bench.settled(locks)
    await bench.redis("FLUSHALL")
    await bench.script(locks, "prepare", 0, "n1")
    await bench.script(locks, "install", nonce, number, TTL)
    await bench.script(locks, "open", number)
    await bench.take(locks)


async def install_ids(bench: Bench) -> None:
    """A nonce is replicated, the replica is promoted, and the INSTALL reaches both primaries."""
    bench.leads = False
    second = await bench.second()
    one, two = await bench.manager(), await bench.manager(port=second.port)
    await until(one._link.connected.is_set)
    _, nonce, _ = await bench.script(one, "prepare", 0, "n1")
    await bench.caught_up(second)
    await bench.redis("REPLICAOF", "NO", "ONE", port=second.port)
    await until(two._link.connected.is_set)
    record = await one.register.allocate(nonce, above=0, floor=0, ttl_usual_ms=TTL)
    for locks in (one, two):
        await bench.script(locks, "install", nonce, record.epoch, TTL)
        await bench.script(locks, "open", record.epoch)
        await bench.take(locks)


async def install_order(bench: Bench) -> None:
    """An allocation from an etcd that forgot everything must not lower an epoch that Redis has."""
    locks = await bench.manager()
    await bench.settled(locks)
    await bench.quiet(locks)
    number = locks.lineage.epoch
    await bench.redis("HINCRBY", bench.lab.fence, "epoch", 5)
    await bench.take(locks)
    _, nonce, _ = await bench.script(locks, "prepare", number + 6, "n1")
    await bench.script(locks, "install", nonce, number + 1, TTL)
    locks.lineage.floor = 0
    await bench.script(locks, "open", number + 1)
    await bench.take(locks)


SCENARIOS: tuple[Scenario, ...] = (
    epoch, run_id, replid, role, floor, quarantine, ttl_high, hand_off, survivor, install_nonce,
    nonce_time, install_ids, install_order,
)  # fmt: skip
