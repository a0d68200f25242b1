"""From configuration to the options of adapters: who we are, how to reach etcd, where the locks'
Redis is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.etcd_links import EtcdOptions, EtcdTls
from controlplane.adapters.grpc_server import tls_files
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.clock import Clock
from controlplane.config import WeirConfig
from controlplane.locks.grant import Limits, Mode
from controlplane.locks.manager import LockManager
from controlplane.locks.metrics import LockMetrics
from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import RegionName, ReplicaId
from controlplane.ports import KeyValueStore
from controlplane.views import Identity


def identity(config: WeirConfig) -> Identity:
    """Return who this replica is; InvalidInputError when the configuration does not say."""
    if config.cluster.id is None:
        raise InvalidInputError("cluster.id", "is required; set it or WEIR_CLUSTER__ID")
    if config.cluster.region is None:
        raise InvalidInputError("cluster.region", "is required; set it or WEIR_CLUSTER__REGION")
    return Identity(
        cluster=config.cluster.name,
        replica=ReplicaId(config.cluster.id),
        region=RegionName(config.cluster.region),
    )


def etcd_options(config: WeirConfig) -> EtcdOptions:
    """Return how to reach etcd."""
    section = config.coordination
    password = _secret(section.password_file)
    files = tls_files(config) if section.tls else None
    return EtcdOptions(
        attempt_ms=section.attempt_timeout_ms,
        username=section.username or "",
        password=password,
        tls=EtcdTls(ca=files.ca, certificate=files.cert, key=files.key) if files else None,
    )


def lock_address(config: WeirConfig) -> RedisAddress | None:
    """Return where the locks' Redis is, None when none is configured."""
    section = config.locks
    if section.primary is None and not section.sentinels:
        return None
    host, port = _split(section.primary or "127.0.0.1:6379")
    return RedisAddress(
        host=host,
        port=port,
        sentinels=tuple(_split(sentinel) for sentinel in section.sentinels),
        service=section.service_name,
        username=section.username or "default",
        password_file=section.password_file,
        sentinel_username=section.sentinel_username or "default",
        sentinel_password_file=section.sentinel_password_file,
        tls=section.tls,
        ca_file=config.tls.ca_file,
        cert_file=config.tls.cert_file,
        key_file=config.tls.key_file,
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _secret(path: Path | None) -> str:
    return path.read_text().strip() if path else ""


def lock_manager(
    config: WeirConfig,
    kv: KeyValueStore,
    keys: Keys,
    clock: Clock,
    *,
    may_bump: Callable[[], bool],
    metrics: LockMetrics,
) -> LockManager | None:
    """Make the lock manager, None when no Redis is configured."""
    section, address = config.locks, lock_address(config)
    if address is None:
        return None
    return LockManager(
        redis=RedisLink(address, clock=clock),
        store=kv,
        prefix=config.cluster.name,
        epoch_key=keys.locks_epoch,
        limits=Limits(ttl_min_ms=section.ttl_min_ms, ttl_max_ms=section.ttl_max_ms),
        mode=Mode(section.mode),
        wait_replicas=section.wait_replicas,
        clock=clock,
        may_bump=may_bump,
        metrics=metrics,
    )
