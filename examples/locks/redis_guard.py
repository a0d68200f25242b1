"""Data in Redis, guarded there: seal and commands run in one step.

python examples/locks/redis_guard.py 127.0.0.1:7700 redis://127.0.0.1:6379
"""

# ruff: noqa: INP001, T201 - a script that prints

import sys

import grpc
import redis

from controlplane.adapters.lock_client import SyncLockClient
from controlplane.locks.guards import RedisGuard


def main(server: str, url: str) -> None:
    """Add to a counter: the read seals, the write is refused if somebody came after."""
    guard = RedisGuard(redis.Redis.from_url(url))
    with grpc.insecure_channel(server) as channel:
        locks = SyncLockClient([channel])
        with locks.hold("sequence/7", ttl_ms=2_000, wait_ms=5_000) as held:
            (value,) = guard.run("sequence/7", held.token, [("GET", "seq:7")])
            guard.run("sequence/7", held.token, [("SET", "seq:7", int(value or 0) + 1)])
            print("now", int(value or 0) + 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
