"""Locks: pairs of acquire and release a second against redis-py's Lock, in one run.

    .venv/bin/python bench/locks.py [--pairs 6000] [--rounds 3]

Real Redis, a real etcd of three members, all on loopback. Each contender runs in a process of its
own, `--rounds` times in turn, and the medians are compared: ratios hold better than absolute
figures. Threads are threads of one process, as most users have them.

    direct       DirectLocks: threads straight on Redis, lineage mode
    lineage      LockManager (asyncio), lineage mode
    strict       LockManager (asyncio), strict mode: plus batched reads of etcd
    grpc         LockClient over LockService in another process, lineage and strict
    redis-py     redis.lock.Lock and redis.asyncio.lock.Lock

`contended`: sixteen clients on one name; fairness is least / most grants of a client, p99 the wait
for a grant. The peers that need another redis-py (`bench/locks_peers.py`) run in an environment of
uv's own when uv is there.
"""

# ruff: noqa: ASYNC110, ARG001, D102, D103 - what another process shows is polled; contenders have
# one signature

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import redis
import structlog
import uvloop
from redis.asyncio import Redis as AsyncRedis

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.lock_client import LockClient
from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.dev.servers import EtcdCluster, RedisServer, scratch_root
from controlplane.locks.audit import AuditLog
from controlplane.locks.direct import DirectLocks
from controlplane.locks.grant import Mode
from controlplane.locks.manager import LockManager
from controlplane.v1 import lock_pb2_grpc

TTL_MS = 5_000
CLIENTS = 16
WARM_UP = 200


class Waits:
    """Times to a grant, and grants by client."""

    def __init__(self, clients):
        self.counts = [0] * clients
        self.waits = []

    def add(self, client, seconds):
        self.counts[client] += 1
        self.waits.append(seconds)


def report(waits, started, ended, half_counts):
    """One line of JSON for the parent."""
    ordered = sorted(waits.waits)
    print(json.dumps({
        "rate": len(ordered) / (ended - started),
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
        "fairness": min(half_counts) / max(1, *half_counts),
    }))  # fmt: skip


def run_threads(pairs, clients, contended, make):
    """`make(client)` returns a function that acquires and releases a name."""
    waits, half = Waits(clients), []
    gate = threading.Barrier(clients + 1)
    total = pairs // clients

    def work(client):
        pair = make(client)
        name = "one" if contended else f"n{client}"
        pair(f"warm{client}")
        gate.wait()
        for _ in range(total):
            asked = time.perf_counter()
            got = pair(name)
            waits.add(client, got - asked)
            if not half and len(waits.waits) >= pairs // 2:
                half.append(list(waits.counts))

    threads = [threading.Thread(target=work, args=(c,)) for c in range(clients)]
    for thread in threads:
        thread.start()
    gate.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    report(waits, started, time.perf_counter(), half[0])


async def run_tasks(pairs, clients, contended, make):
    """`make(client)` returns a coroutine function that acquires and releases a name."""
    waits, half = Waits(clients), []
    total = pairs // clients

    async def work(client):
        pair = make(client)
        name = "one" if contended else f"n{client}"
        for _ in range(total):
            asked = time.perf_counter()
            got = await pair(name)
            waits.add(client, got - asked)
            if not half and len(waits.waits) >= pairs // 2:
                half.append(list(waits.counts))

    await asyncio.gather(*(make(c)(f"warm{c}") for c in range(clients)))
    started = time.perf_counter()
    await asyncio.gather(*(work(c) for c in range(clients)))
    report(waits, started, time.perf_counter(), half[0])


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

    run_threads(args.pairs, args.clients, args.contended, make)


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

    run_threads(args.pairs, args.clients, args.contended, make)


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

    await run_tasks(args.pairs, args.clients, args.contended, make)
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
        lambda locks: run_tasks(
            args.pairs, args.clients, args.contended, pair_of(locks, mode, wait_ms)
        ),
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
        await run_tasks(args.pairs, args.clients, args.contended, make)


def child(args):
    """Run one contender."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    if args.what == "direct":
        direct(args)
    elif args.what == "redis-py":
        redis_py(args)
    elif args.what == "redis-py-async":
        uvloop.run(redis_py_async(args))
    elif args.what == "serve":
        uvloop.run(serve(args))
    elif args.what.startswith("grpc-"):
        uvloop.run(over_grpc(args))
    else:
        uvloop.run(managed(args))


PLAN = (
    # what, clients, contended, share of the pairs
    ("redis-py", 1, False, 1), ("direct", 1, False, 1),
    ("redis-py-async", 1, False, 1), ("lineage", 1, False, 1),
    ("redis-py", CLIENTS, False, 1), ("direct", CLIENTS, False, 1),
    ("redis-py-async", CLIENTS, False, 1), ("lineage", CLIENTS, False, 1),
    ("strict", CLIENTS, False, 1),
    ("grpc-lineage", CLIENTS, False, 1), ("grpc-strict", CLIENTS, False, 1),
    ("redis-py", CLIENTS, True, 2), ("direct", CLIENTS, True, 2),
    ("redis-py-async", CLIENTS, True, 2), ("lineage", CLIENTS, True, 2),
    ("strict", CLIENTS, True, 8),
)  # fmt: skip


def measure(args, what, clients, contended, pairs, ports):
    command = [
        sys.executable, __file__, "--what", what, "--clients", str(clients), "--pairs", str(pairs),
        "--redis", str(ports["redis"]), "--etcd", ports["etcd"], "--grpc", str(ports["grpc"]),
    ]  # fmt: skip
    if contended:
        command.append("--contended")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    print(what, clients, contended, done.stdout.strip(), file=sys.stderr)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(results):
    print(f"{'':18}{'clients':>8}{'pairs/s':>10}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'fair':>7}")
    base = {}
    for (what, clients, contended), runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        asynchronous = what not in {"redis-py", "direct", "pottery", "python-redis-lock",
                                    "redlock-ng"}  # fmt: skip
        if what in {"redis-py", "redis-py-async"}:
            base[asynchronous, clients, contended] = middle["rate"]
        ratio = middle["rate"] / base[asynchronous, clients, contended]
        label = f"{clients}{' on one' if contended else ''}"
        print(
            f"{what:18}{label:>8}{middle['rate']:10.0f}{ratio:8.2f}{middle['p50_ms']:9.2f}"
            f"{middle['p99_ms']:9.2f}{middle['fairness'] if contended else 1:7.2f}"
        )


def peers(args, ports, results):
    """Peers in an environment of their own; left out, with a word, where uv is not."""
    uv = shutil.which("uv")
    if uv is None:
        print("(uv is not on PATH: pottery, python-redis-lock and redlock-ng are left out)")
        return
    script = Path(__file__).with_name("locks_peers.py")
    for clients, contended in ((1, False), (CLIENTS, False), (CLIENTS, True)):
        done = subprocess.run(
            [uv, "run", "--quiet", "--script", str(script), "--redis", str(ports["redis"]),
             "--clients", str(clients), "--pairs", str(args.pairs // 4),
             *(["--contended"] if contended else [])],
            capture_output=True, text=True, timeout=600, check=False,
            env={k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"},
        )  # fmt: skip
        for line in done.stdout.splitlines():
            found = json.loads(line)
            results[found.pop("what"), clients, contended] = [found]
        if done.returncode:
            print(done.stderr[-500:])


def main():
    """Parent: start the servers, run everybody in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--what", default="")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--contended", action="store_true")
    parser.add_argument("--redis", type=int, default=0)
    parser.add_argument("--etcd", default="")
    parser.add_argument("--grpc", type=int, default=0)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", default="", help="only contenders whose name contains this")
    args = parser.parse_args()
    if args.what:
        child(args)
        return
    directory = Path(tempfile.mkdtemp(prefix="weir-bench-", dir=scratch_root()))
    etcd, server = EtcdCluster(directory).start(), RedisServer(directory).start()
    ports = {"redis": server.port, "etcd": ",".join(etcd.endpoints), "grpc": 0}
    service = subprocess.Popen(
        [sys.executable, __file__, "--what", "serve", "--redis", str(server.port), "--etcd",
         ports["etcd"]],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    results = {}
    try:
        ports["grpc"] = int(service.stdout.readline())
        for _ in range(args.rounds):
            for what, clients, contended, share in PLAN:
                if args.only not in what and "redis-py" not in what:
                    continue
                found = measure(args, what, clients, contended, args.pairs // share, ports)
                results.setdefault((what, clients, contended), []).append(found)
        if not args.no_peers:
            peers(args, ports, results)
        ordered = dict(sorted(results.items(), key=lambda item: (item[0][2], item[0][1])))
        table(ordered)
    finally:
        service.kill()
        service.wait()
        etcd.stop()
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
