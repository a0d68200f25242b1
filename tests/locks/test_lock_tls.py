"""Redis and Sentinel under mutual TLS, with passwords at both, as they should run in production."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from lock_lab import Lab, until

from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.adapters.redis_sync import BlockingRedis
from controlplane.clock import SystemClock
from controlplane.config import parse
from controlplane.dev.ca import DevelopmentCa
from controlplane.dev.process import Child, find_binary, free_port
from controlplane.dev.servers import EtcdCluster, RedisServer, redis_args, tcp_answers, wait_until
from controlplane.locks.direct import DirectLocks
from controlplane.model.errors import UnavailableError, WeirError
from controlplane.wiring import lock_address

TTL = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """A primary and a Sentinel that demand certificates and passwords."""

    server: RedisServer
    address: RedisAddress
    ca: DevelopmentCa
    redis: Child

    @property
    def by_sentinel(self) -> RedisAddress:
        """As production asks: Sentinels only."""
        return replace(self.address, host="", port=0)

    @property
    def direct(self) -> RedisAddress:
        """Without the Sentinel."""
        return replace(self.address, sentinels=())


@pytest.fixture
def guarded(folder: Path) -> Iterator[Guarded]:
    """Start both; only TLS ports are open."""
    ca = DevelopmentCa(folder / "ca", SystemClock())
    theirs, ours = ca.issue("redis"), ca.issue("replica", "east", "east-0")
    tls = {
        "tls-cert-file": theirs.cert, "tls-key-file": theirs.key, "tls-ca-cert-file": theirs.ca,
        "tls-auth-clients": "yes", "tls-replication": "yes",
    }  # fmt: skip
    for name, word in (("redis-password", "of-redis"), ("sentinel-password", "of-sentinel")):
        (folder / name).write_text(word + "\n")
    port, sentinel_port = free_port(), free_port()
    argv = [find_binary("redis-server"), *redis_args(0, folder), "--tls-port", str(port)]
    argv += [word for key, value in tls.items() for word in (f"--{key}", str(value))]
    argv += ["--requirepass", "of-redis"]
    config = folder / "sentinel.conf"
    config.write_text(
        f"port 0\ntls-port {sentinel_port}\nbind 127.0.0.1\ndir {folder}\n"
        "requirepass of-sentinel\n"
        f"sentinel monitor weir 127.0.0.1 {port} 1\nsentinel auth-pass weir of-redis\n"
        + "".join(f"{key} {value}\n" for key, value in tls.items())
    )
    children = [
        Child("redis", argv, folder / "redis.log"),
        Child("sentinel", [find_binary("redis-sentinel"), str(config)], folder / "sentinel.log"),
    ]
    try:
        for child, at in zip(children, (port, sentinel_port), strict=True):
            child.start()
            wait_until(lambda at=at: tcp_answers(at), child.name)
        yield Guarded(
            server=RedisServer(folder, port=port),
            address=RedisAddress(
                host="127.0.0.1",
                port=port,
                sentinels=(("127.0.0.1", sentinel_port),),
                password_file=folder / "redis-password",
                sentinel_password_file=folder / "sentinel-password",
                tls=True,
                ca_file=ours.ca,
                cert_file=ours.cert,
                key_file=ours.key,
            ),
            ca=ca,
            redis=children[0],
        )
    finally:
        for child in children:
            child.kill()


async def test_locks_over_mutual_tls(guarded: Guarded, lock_etcd: EtcdCluster) -> None:
    """The manager and the direct client find the primary by a Sentinel that demands a certificate
    and a password, and lock there; their tokens are of one lineage."""
    async with Lab(guarded.server, lock_etcd, "tls") as lab:
        locks = await lab.manager(address=guarded.by_sentinel)
        first = await locks.acquire("a", owner="o", ttl_ms=TTL)
        assert await locks.release("a", owner="o", token=first.token) == 0
        direct = DirectLocks(guarded.by_sentinel, prefix=lab.prefix)
        with direct.hold("a", owner="p", ttl_ms=TTL) as hold:
            assert hold.token > first.token
        direct.close()


@pytest.mark.parametrize("lacks", ["certificate", "right CA", "password", "Sentinel's password"])
async def test_what_lacks_is_said(guarded: Guarded, folder: Path, lacks: str) -> None:
    """Whoever shows no certificate, one of another CA, or no password is refused, with the reason."""
    stranger = DevelopmentCa(folder / "other", SystemClock()).issue("replica", "east", "east-0")
    of, says = {
        "certificate": (replace(guarded.direct, cert_file=None, key_file=None), None),
        "right CA": (replace(guarded.direct, ca_file=stranger.ca), "certificate verify failed"),
        "password": (replace(guarded.direct, password_file=None), "NOAUTH"),
        "Sentinel's password": (
            replace(guarded.by_sentinel, sentinel_password_file=None),
            "no sentinel knows a primary of 'weir' .*NOAUTH",
        ),
    }[lacks]
    with pytest.raises((WeirError, OSError), match=says):
        await RedisLink(of)._connect()
    with pytest.raises((WeirError, OSError), match=says):
        BlockingRedis(of, "c", 1_000)


async def test_a_certificate_that_is_missing_is_named(guarded: Guarded, folder: Path) -> None:
    """One line with the file, no traceback."""
    gone = replace(guarded.direct, cert_file=folder / "gone.pem")
    with pytest.raises(UnavailableError, match=r"gone\.pem"):
        await RedisLink(gone)._connect()


def test_silence_under_tls_ends_in_time(guarded: Guarded) -> None:
    """A Redis that hangs does not hold the caller for ever: ssl retries reads that the kernel ended."""
    link = BlockingRedis(guarded.direct, "c", 100)
    assert guarded.redis.pid
    os.kill(guarded.redis.pid, signal.SIGSTOP)
    try:
        assert link.wait_push(50) is None
        with pytest.raises(TimeoutError, match="no answer for 100 ms"):
            link.call("PING")
    finally:
        os.kill(guarded.redis.pid, signal.SIGCONT)
        link.close()


async def test_a_renewed_certificate_is_used_at_the_next_connection(guarded: Guarded) -> None:
    """Files are read anew: a certificate that is over is refused, its successor is not."""
    address, files = guarded.direct, guarded.ca.issue("replica", "east", "east-0", expired=True)
    assert files.cert == address.cert_file
    with pytest.raises((UnavailableError, OSError)):
        await RedisLink(address)._connect()
    guarded.ca.issue("replica", "east", "east-0")
    link = RedisLink(address)
    wire = await link._connect()
    assert link.connected.is_set()
    wire.close()
    await until(wire.closed.done)


def test_the_configuration_carries_it() -> None:
    """`locks.tls` uses the files of the tls section, the certificate too."""
    config = parse(
        """
        regions: {east: {role: primary, share_bp: 10000, capacity_tps: 9}}
        channels: {alipay: {regions: [east]}}
        coordination: {endpoints: ["e:2379"]}
        tls: {ca_file: /t/ca, cert_file: /t/cert, key_file: /t/key}
        locks: {sentinels: ["s1:26379"], tls: true, sentinel_password_file: /t/word}
        """
    )
    assert lock_address(config) == RedisAddress(
        sentinels=(("s1", 26_379),),
        sentinel_password_file=Path("/t/word"),
        tls=True,
        ca_file=Path("/t/ca"),
        cert_file=Path("/t/cert"),
        key_file=Path("/t/key"),
    )
