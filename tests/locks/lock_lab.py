"""What most tests of the locks need: managers on real servers, and a way to meddle with Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

import hiredis

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.dev.servers import EtcdCluster, RedisServer
from controlplane.locks.grant import Limits, Mode
from controlplane.locks.manager import LockManager
from controlplane.locks.scripts import Script

LIMITS = Limits(ttl_min_ms=20, ttl_max_ms=60_000, ttl_usual_ms=300, beat_ms=200)
"""Short quarantines and beats, for tests in which something is lost."""
PATIENT = Limits(ttl_min_ms=20, ttl_max_ms=60_000, ttl_usual_ms=30_000, beat_ms=20_000)
"""For tests that rely on a lock that is still held, or on a place in a queue: a machine that stalls
for seconds changes nothing."""


class Lab:
    """Use as an async context manager; `manager()` makes and runs another manager."""

    def __init__(self, redis: RedisServer, etcd: EtcdCluster, prefix: str) -> None:
        self.server = redis
        self.etcd = etcd
        self.prefix = prefix
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def store(self) -> EtcdClient:
        """A client of etcd, closed at the end of the test."""
        store = await EtcdClient.connect(self.etcd.endpoints)
        self._stack.push_async_callback(store.aclose)
        return store

    async def manager(
        self, *, limits: Limits = LIMITS, mode: Mode = Mode.STRICT, port: int = 0,
        may_bump: Callable[[], bool] = lambda: True, address: RedisAddress | None = None,
        sources: Mapping[str, Script] | None = None, wait_replicas: int = 0, ready: bool = True,
        epoch_floor: int = 0, metrics: Any = None, link: RedisLink | None = None,
        store: EtcdClient | None = None,
    ) -> LockManager:  # fmt: skip
        """A running manager; with `ready`, once it may grant."""
        address = address or RedisAddress(port=port or self.server.port)
        manager = LockManager(
            redis=link or RedisLink(address, call_timeout_ms=1_000), store=store or await self.store(),
            prefix=self.prefix, limits=limits, mode=mode, may_bump=may_bump, sources=sources,
            wait_replicas=wait_replicas, epoch_floor=epoch_floor, seed=1, metrics=metrics,
        )  # fmt: skip
        await self._stack.enter_async_context(manager.running())
        if ready:
            await until(lambda: manager.lineage.state == "open")
        return manager

    async def redis(self, *args: Any, port: int = 0) -> Any:
        """Send one command to Redis."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port or self.server.port)
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
            await writer.wait_closed()

    @property
    def fence(self) -> str:
        """Key of the fence."""
        return "{" + self.prefix + "}:fence"

    def key(self, kind: str, name: str) -> str:
        """Key of a lock (l), its queue (q) or its waiters (w)."""
        return "{" + self.prefix + "}:" + kind + ":" + name


async def until(condition: Callable[[], Any], deadline_s: float = 30.0) -> None:
    """Wait for an observable condition."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.002)
