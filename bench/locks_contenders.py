"""The contenders of `bench/locks.py`, which starts this file once for each.

A contender lives for the whole run, measures one slice whenever a line with its length in ms comes
in, and answers with one line of JSON.
"""

# ruff: noqa: ARG001, ASYNC110, D102, D103 - what another process shows is polled; contenders have one
# signature

import argparse
import asyncio
import json
import os
import sys
import threading
import time

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # before gRPC: servers are started meanwhile

import grpc
import redis
import structlog
import uvloop
from redis.asyncio import Redis as AsyncRedis

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.lock_client import LockClient, SyncLockClient
from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.locks.audit import AuditLog
from controlplane.locks.direct import DirectLocks
from controlplane.locks.grant import Mode
from controlplane.locks.manager import LockManager
from controlplane.v1 import lock_pb2_grpc

TTL_MS = 5_000
WARM_UP = 200


class Waits:
    """Times to a grant, and grants by client, of one slice."""

    def __init__(self, clients):
        self.counts = [0] * clients
        self.waits = []
        self.cpu = time.process_time()
        self.started = time.perf_counter()
        self.until = 0.0

    def add(self, client, seconds):
        self.counts[client] += 1
        self.waits.append(seconds)

    def report(self):
        """One line of JSON for the parent; what was under way at the end counts for the rate."""
        seconds = time.perf_counter() - self.started
        ordered = sorted(self.waits)
        print(json.dumps({
            "rate": len(ordered) / seconds,
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
            "cpu_us": (time.process_time() - self.cpu) / len(ordered) * 1e6,
            "counts": self.counts,
        }), flush=True)  # fmt: skip


def commands():
    """Lengths of slices in s, as the parent asks for them."""
    while line := sys.stdin.readline():
        yield int(line) / 1000


def run_threads(clients, contended, make):
    """`make(client)` returns a function that acquires and releases a name."""
    pairs = [make(client) for client in range(clients)]
    names = ["one" if contended else f"n{client}" for client in range(clients)]
    for client, pair in enumerate(pairs):
        pair(f"warm{client}")
    print("ready", flush=True)
    for seconds in commands():
        waits = Waits(clients)
        waits.until = waits.started + seconds

        def work(client, waits=waits):
            pair, name = pairs[client], names[client]
            while (asked := time.perf_counter()) < waits.until:
                waits.add(client, pair(name) - asked)

        threads = [threading.Thread(target=work, args=(c,)) for c in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        waits.report()


async def run_tasks(clients, contended, make):
    """`make(client)` returns a coroutine function that acquires and releases a name."""
    pairs = [make(client) for client in range(clients)]
    names = ["one" if contended else f"n{client}" for client in range(clients)]
    await asyncio.gather(*(pair(f"warm{client}") for client, pair in enumerate(pairs)))
    print("ready", flush=True)

    async def work(client, waits):
        pair, name = pairs[client], names[client]
        while (asked := time.perf_counter()) < waits.until:
            waits.add(client, await pair(name) - asked)

    asked_for = commands()
    while (seconds := await asyncio.to_thread(next, asked_for, None)) is not None:
        waits = Waits(clients)
        waits.until = waits.started + seconds
        await asyncio.gather(*(work(client, waits) for client in range(clients)))
        waits.report()


def direct(args):
    locks = DirectLocks(RedisAddress(port=args.redis), prefix="bench")
    wait_ms = 30_000 if args.contended else 0

    def make(client):
        def pair(name):
            grant = locks.acquire(name, owner=f"c{client}", ttl_ms=TTL_MS, wait_ms=wait_ms)
            got = time.perf_counter()
            locks.release(grant)
            return got

        return pair

    run_threads(args.clients, args.contended, make)


def redis_py(args):
    def make(client):
        connection = redis.Redis(port=args.redis)

        def pair(name):
            lock = connection.lock(f"py:{name}", timeout=TTL_MS / 1000)
            lock.acquire()
            got = time.perf_counter()
            lock.release()
            return got

        return pair

    run_threads(args.clients, args.contended, make)


async def redis_py_async(args):
    connection = AsyncRedis(port=args.redis)

    def make(client):
        async def pair(name):
            lock = connection.lock(f"pa:{name}", timeout=TTL_MS / 1000)
            await lock.acquire()
            got = time.perf_counter()
            await lock.release()
            return got

        return pair

    await run_tasks(args.clients, args.contended, make)
    await connection.aclose()


def pair_of(locks, mode, wait_ms):
    def make(client):
        async def pair(name):
            grant = await locks.acquire(
                name, owner=f"c{client}", ttl_ms=TTL_MS, wait_ms=wait_ms, mode=mode
            )
            got = time.perf_counter()
            await locks.release(name, owner=f"c{client}", token=grant.token)
            return got

        return pair

    return make


async def with_manager(args, then, may_bump=True):
    store = await EtcdClient.connect(args.etcd.split(","))
    locks = LockManager(
        redis=RedisLink(RedisAddress(port=args.redis)), store=store, prefix="bench",
        may_bump=lambda: may_bump,
    )  # fmt: skip
    async with locks.running():
        while locks.lineage.state != "open":
            await asyncio.sleep(0.01)
        await then(locks)
    await store.aclose()


async def managed(args):
    mode = Mode(args.what)
    wait_ms = 30_000 if args.contended else 0
    await with_manager(
        args,
        lambda locks: run_tasks(args.clients, args.contended, pair_of(locks, mode, wait_ms)),
        may_bump=False,
    )


async def serve(args):
    async def forever(locks):
        server = grpc.aio.server()
        store = await EtcdClient.connect(args.etcd.split(","))
        servicer = LockServiceServicer(locks, AuditLog(store, b"/bench/audit/"))
        lock_pb2_grpc.add_LockServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(port, flush=True)
        await server.wait_for_termination()

    await with_manager(args, forever)


async def over_grpc(args):
    mode = Mode(args.what.removeprefix("grpc-"))
    wait_ms = 30_000 if args.contended else 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{args.grpc}") as channel:
        make = pair_of(LockClient([channel]), mode, wait_ms)
        await run_tasks(args.clients, args.contended, make)


def over_grpc_in_threads(args):
    mode = Mode(args.what.removeprefix("grpc-sync-"))
    wait_ms = 30_000 if args.contended else 0
    with grpc.insecure_channel(f"127.0.0.1:{args.grpc}") as channel:
        locks = SyncLockClient([channel])

        def make(client):
            def pair(name):
                grant = locks.acquire(
                    name, owner=f"c{client}", ttl_ms=TTL_MS, wait_ms=wait_ms, mode=mode
                )
                got = time.perf_counter()
                locks.release(grant)
                return got

            return pair

        run_threads(args.clients, args.contended, make)


def main():
    """Run one contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--what", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--contended", action="store_true")
    parser.add_argument("--redis", type=int, required=True)
    parser.add_argument("--etcd", required=True)
    parser.add_argument("--grpc", type=int, default=0)
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if args.what == "direct":
        direct(args)
    elif args.what == "redis-py":
        redis_py(args)
    elif args.what == "redis-py-async":
        uvloop.run(redis_py_async(args))
    elif args.what == "serve":
        uvloop.run(serve(args))
    elif args.what.startswith("grpc-sync-"):
        over_grpc_in_threads(args)
    elif args.what.startswith("grpc-"):
        uvloop.run(over_grpc(args))
    else:
        uvloop.run(managed(args))


if __name__ == "__main__":
    main()
