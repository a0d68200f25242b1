"""A small world on real servers: etcd, two Redis, two managers, workers, a guarded resource.

Everything that is granted goes into one history on one clock; every write goes through a guard in
SQLite, so that a lost update shows as a sum that does not add up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
from lock_history import Granted

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.dev.servers import RedisServer
from controlplane.locks.errors import StaleTokenError
from controlplane.locks.grant import Grant, Limits, Mode
from controlplane.locks.guards import SqlDialect, SqlGuard
from controlplane.locks.manager import LockManager
from controlplane.locks.scripts import Script
from controlplane.model.errors import AmbiguousError, RefusedError, UnavailableError, WeirError

TTL_MS = 300
LIMITS = Limits(
    ttl_min_ms=20, ttl_max_ms=60_000, ttl_usual_ms=TTL_MS, beat_ms=150, wait_max_ms=60_000
)


@dataclass(slots=True)
class Leader:
    """Which manager may bump; a crash at a step of a bump moves it."""

    name: str = "m1"


class FaultyLink(RedisLink):
    """A link that loses, delays and repeats calls on demand. `rates` are probabilities."""

    def __init__(self, address: RedisAddress, seed: int) -> None:
        super().__init__(address, call_timeout_ms=400)
        self.rng = random.Random(seed)
        self.rates: dict[str, float] = {}
        self.held: list[tuple[Any, ...]] = []
        """Calls kept back to be delivered late."""
        self.keep_back: set[str] = set()
        """Names of scripts whose calls are lost now and delivered later by `deliver`."""
        self.scripts: Mapping[str, Script] = {}
        self.lost = 0

    def _name(self, args: tuple[Any, ...]) -> str:
        for script in self.scripts.values():
            if len(args) > 1 and args[1] == script.sha:
                return script.name
        return ""

    def call(self, *args: Any) -> Any:
        """Send, or meddle."""
        if not self.rates and not self.keep_back:
            return super().call(*args)
        return self._meddle(args)

    def post(self, args: Any, otherwise: Any = (), lost: Callable[[], None] = lambda: None) -> None:
        """Send untouched: nobody waits for the outcome."""
        rates, keep_back = self.rates, self.keep_back
        self.rates, self.keep_back = {}, set()
        try:
            super().post(args, otherwise, lost)
        finally:
            self.rates, self.keep_back = rates, keep_back

    async def _meddle(self, args: tuple[Any, ...]) -> Any:
        if self._name(args) in self.keep_back:
            self.held.append(args)
            raise UnavailableError("kept back")
        dice = self.rng.random()
        if dice < self.rates.get("repeat", 0):
            await super().call(*args)
            return await super().call(*args)
        reply = await super().call(*args)
        if dice > 1 - self.rates.get("lose", 0):
            self.lost += 1
            raise UnavailableError("reply lost")
        if dice > 1 - self.rates.get("lose", 0) - self.rates.get("delay", 0):
            await asyncio.sleep(self.rng.random() * 0.05)
        return reply

    async def deliver(self) -> list[Any]:
        """Deliver what was kept back, in its order; the servers' answers."""
        self.keep_back.clear()
        held, self.held = self.held, []
        return [await RedisLink.call(self, *args) for args in held]


@dataclass(slots=True)
class Ledger:
    """A resource that only a current holder may change: read, think, write; sums must add up."""

    path: Path
    guard: SqlGuard = field(default_factory=lambda: SqlGuard(SqlDialect.SQLITE))
    committed: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    connection: sqlite3.Connection | None = None

    def open(self) -> Ledger:
        """Open or reopen the database."""
        self.connection = sqlite3.connect(self.path, timeout=30)
        cursor = self.connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=OFF")
        self.guard.create_table(cursor)
        cursor.execute("CREATE TABLE IF NOT EXISTS balance (name TEXT PRIMARY KEY, n INTEGER)")
        self.connection.commit()
        return self

    def add(self, name: str, token: int) -> None:
        """Add one under a token; counts what was refused."""
        assert self.connection is not None
        try:
            with self.guard.transaction(self.connection, name, token) as cursor:
                row = cursor.execute("SELECT n FROM balance WHERE name = ?", (name,)).fetchone()
                value = row[0] if row else 0
                cursor.execute("INSERT OR REPLACE INTO balance VALUES (?, ?)", (name, value + 1))
        except StaleTokenError:
            self.refused += 1
        else:
            self.committed[name] = self.committed.get(name, 0) + 1

    def lost_updates(self) -> int:
        """Committed additions that the sums do not show."""
        assert self.connection is not None
        sums = dict(self.connection.execute("SELECT name, n FROM balance").fetchall())
        return sum(self.committed.values()) - sum(sums.values())

    def close(self) -> None:
        """Close it."""
        if self.connection:
            self.connection.close()
            self.connection = None


class Worker:
    """Takes locks, acts, gives them back; sometimes forgets, sometimes acts too late."""

    def __init__(
        self,
        manager: LockManager,
        ledger: Ledger,
        history: list[Granted],
        label: str,
        seed: int,
        mode: Mode,
        names: int,
    ) -> None:
        self.manager = manager
        self.ledger = ledger
        self.history = history
        self.label = label
        self.rng = random.Random(seed)
        self.mode = mode
        self.names = names
        self.refusals = 0
        self.last = ""
        self.doing = ""

    async def run(self, go_on: Callable[[], bool]) -> None:
        """Work until told to stop."""
        turn = 0
        while go_on():
            turn += 1
            try:
                await self._once(f"r{self.rng.randrange(self.names)}", f"{self.label}.{turn}")
            except (UnavailableError, AmbiguousError, RefusedError) as error:
                self.refusals += 1
                self.last = f"{time.perf_counter():.1f} {error!r}"
                await asyncio.sleep(0.005)

    async def _once(self, name: str, owner: str) -> None:
        rng = self.rng
        request = f"{owner}.q"
        asked = time.monotonic_ns()
        wait_ms = rng.choice((0, 300, 1_500))
        grant: Grant | None = None
        self.doing = f"acquire {name} wait {wait_ms} since {time.perf_counter():.1f}"
        for _ in range(3):  # a lost reply is asked for again with the same request
            try:
                grant = await self.manager.acquire(
                    name,
                    owner=owner,
                    ttl_ms=TTL_MS,
                    wait_ms=wait_ms,
                    mode=self.mode,
                    request=request,
                )
                break
            except UnavailableError:
                await asyncio.sleep(0.01)
        if grant is None:
            raise UnavailableError("gave up")
        returned = time.monotonic_ns()
        self.doing = f"hold {name}"
        left_ns = (grant.deadline_ms - self.manager.clock.monotonic_ms()) * 1_000_000
        fate = rng.random()
        late = fate < 0.03
        if late:  # acts after its time: the guard has to refuse it if somebody came after
            await asyncio.sleep(TTL_MS / 1000 * (1.1 + rng.random()))
        elif fate < 0.6:
            await asyncio.sleep(rng.random() * 0.002)
        self.ledger.add(name, grant.token.value)
        until = min(time.monotonic_ns(), returned + left_ns)
        self.history.append(
            Granted(
                name=name,
                token=grant.token.value,
                asked_ns=asked,
                returned_ns=returned,
                until_ns=until,
            )
        )
        if fate < 0.97:
            with contextlib.suppress(WeirError):
                await self.manager.release(name, owner=owner, token=grant.token)


@contextlib.contextmanager
def _environment(extra: dict[str, str]) -> Iterator[None]:
    """Set variables while servers are started, for a shim around their clock."""
    os.environ.update(extra)
    try:
        yield
    finally:
        for name in extra:
            del os.environ[name]


@dataclass(slots=True)
class World:
    """Servers a and b, managers m1 and m2 (m1 leads at first), and what happened so far."""

    directory: Path
    endpoints: list[str]
    prefix: str
    mode: Mode = Mode.STRICT
    seed: int = 1
    workers_each: int = 3
    names: int = 3
    sources: Mapping[str, Script] | None = None
    limits: Limits = LIMITS
    redis_args: tuple[str, ...] = ()
    redis_env: dict[str, str] = field(default_factory=dict)
    history: list[Granted] = field(default_factory=list)
    leader: Leader = field(default_factory=Leader)
    a: RedisServer = field(init=False)
    b: RedisServer = field(init=False)
    links: dict[str, FaultyLink] = field(default_factory=dict)
    managers: dict[str, LockManager] = field(default_factory=dict)
    stores: list[EtcdClient] = field(default_factory=list)
    ledger: Ledger = field(init=False)
    workers: list[Worker] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        """Start everything; stop it afterwards."""
        args = ("--enable-debug-command", "yes", *self.redis_args)
        with _environment(self.redis_env):
            self.a = RedisServer(self.directory, "a", extra_args=args).start()
            self.b = RedisServer(self.directory, "b", extra_args=args).start()
        self.ledger = Ledger(self.directory / "ledger.db").open()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.a.kill)
            stack.callback(self.b.kill)
            stack.callback(self.ledger.close)
            for number, name in enumerate(("m1", "m2")):
                link = FaultyLink(RedisAddress(port=self.a.port), self.seed * 10 + number)
                store = await EtcdClient.connect(self.endpoints)
                stack.push_async_callback(store.aclose)
                manager = LockManager(
                    redis=link,
                    store=store,
                    prefix=self.prefix,
                    limits=self.limits,
                    mode=self.mode,
                    may_bump=self._may_bump(name),
                    sources=self.sources,
                    seed=self.seed + number,
                )
                link.scripts = manager.scripts._scripts
                self.links[name], self.managers[name] = link, manager
                self.stores.append(store)
                await stack.enter_async_context(manager.running())
            yield self

    def _may_bump(self, name: str) -> Callable[[], bool]:
        return lambda: self.leader.name == name

    def move(self, name: str, server: RedisServer) -> None:
        """Point a manager at another server, as Sentinel would."""
        link = self.links[name]
        link.address = RedisAddress(port=server.port)
        link.leave("moved")

    async def work(self, until: Callable[[], bool]) -> list[Worker]:
        """Run workers on both managers until the condition says stop."""
        workers = self.workers = [
            Worker(
                self.managers[name],
                self.ledger,
                self.history,
                f"{name}-{i}-{time.monotonic_ns()}",
                self.seed * 100 + i,
                self.mode,
                self.names,
            )
            for name in self.managers
            for i in range(self.workers_each)
        ]
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.run(lambda: not until()))
        return workers

    async def redis(self, server: RedisServer, *args: Any) -> Any:
        """Send one command to a server on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(hiredis.pack_command(tuple(args)))
            parser = hiredis.Reader(encoding="utf-8", errors="replace")
            async with asyncio.timeout(5):
                while (reply := parser.gets()) is False:
                    data = await reader.read(65536)
                    if not data:
                        return None
                    parser.feed(data)
            return reply
        finally:
            writer.close()

    async def fence(self, server: RedisServer) -> dict[str, str]:
        """The fence as a server has it."""
        flat = await self.redis(server, "HGETALL", "{" + self.prefix + "}:fence")
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def granted(self, count: int = 1, deadline_s: float = 60.0) -> None:
        """Wait until `count` grants asked for from now on are in the history."""
        at, now, found = len(self.history), time.monotonic_ns(), 0
        until = time.perf_counter() + deadline_s
        while found < count:
            await asyncio.sleep(0.002)
            found += sum(grant.asked_ns >= now for grant in self.history[at:])
            at = len(self.history)
            assert time.perf_counter() < until, self.state()
            if os.environ.get("VERBOSE") and time.perf_counter() > until - deadline_s + 4:
                sys.stderr.write(self.state() + "\n")
                await asyncio.sleep(2)

    def state(self) -> str:
        """What an eye needs when nothing is granted any more."""
        lines = [f"nothing is granted at {time.perf_counter():.1f}; {self.leader} leads"]
        for name, manager in self.managers.items():
            link = self.links[name]
            lines.append(f"{name} {manager.lineage} {link.peer!r} {link._problem} {link.address}")
            lines.append(f"  {manager.keeper._record} hand_offs {len(manager.hand_offs)}")
            lines.append(f"  in flight {len(link._wire.waiting) if link._wire else None}")
        lines += [f"{w.label} {w.doing} refused {w.refusals} last {w.last}" for w in self.workers]
        lines += [
            f"{task.get_name()} {task.get_coro().__qualname__} "
            + " > ".join(f"{f.f_code.co_name}:{f.f_lineno}" for f in task.get_stack())
            for task in asyncio.all_tasks()
        ]
        return "\n".join(lines)
