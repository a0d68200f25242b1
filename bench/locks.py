"""Locks: pairs of acquire and release a second against redis-py's Lock, in one run.

    .venv/bin/python bench/locks.py [--slice-ms 250] [--rounds 15]

Real Redis, a real etcd of three members, all on loopback. Each contender is a process of its own
that lives for the whole run; in each round they all get one short slice of time, one after the
other. The ratio is the median over the rounds of (contender / redis-py in the same round), so that
a machine that is busy in between slows both; `best` is the best slice, which a busy machine
disturbs least; `cpu` is what the client process used, in microseconds a pair. Threads are threads
of one process, as most users have them: they are compared with redis-py's blocking Lock, asyncio
contenders with its asyncio Lock.

    direct       DirectLocks: threads straight on Redis, lineage mode
    lineage      LockManager (asyncio), lineage mode
    strict       LockManager (asyncio), strict mode: plus batched reads of etcd
    grpc         LockClient over LockService in another process, lineage and strict
    grpc-sync    SyncLockClient (threads) over the same
    redis-py     redis.lock.Lock and redis.asyncio.lock.Lock

`on one`: sixteen clients on one name; fairness is least / most grants of a client, p99 the wait
for a grant. The peers that need another redis-py (`bench/locks_peers.py`) run in an environment of
uv's own, beside the redis-py of that environment.
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
    elif args.what.startswith("grpc-sync-"):
        over_grpc_in_threads(args)
    elif args.what.startswith("grpc-"):
        uvloop.run(over_grpc(args))
    else:
        uvloop.run(managed(args))


PLAN = (
    # what, clients, contended; redis-py first, with what is compared with it after it
    ("redis-py", 1, False), ("direct", 1, False), ("grpc-sync-lineage", 1, False),
    ("redis-py-async", 1, False), ("lineage", 1, False), ("strict", 1, False),
    ("grpc-lineage", 1, False),
    ("redis-py", CLIENTS, False), ("direct", CLIENTS, False),
    ("grpc-sync-lineage", CLIENTS, False),
    ("redis-py-async", CLIENTS, False), ("lineage", CLIENTS, False), ("strict", CLIENTS, False),
    ("grpc-lineage", CLIENTS, False), ("grpc-strict", CLIENTS, False),
    ("redis-py", CLIENTS, True), ("direct", CLIENTS, True),
    ("redis-py-async", CLIENTS, True), ("lineage", CLIENTS, True), ("strict", CLIENTS, True),
    ("grpc-lineage", CLIENTS, True),
)  # fmt: skip
SLICES = {True: 4}
"""A contended slice is longer: fairness and p99 need more grants."""


class Contender:
    """A process that measures a slice whenever it is asked."""

    def __init__(self, what, clients, contended, ports):
        self.key = (what, clients, contended)
        command = [
            sys.executable, __file__, "--what", what, "--clients", str(clients),
            "--redis", str(ports["redis"]), "--etcd", ports["etcd"], "--grpc", str(ports["grpc"]),
            *(["--contended"] if contended else []),
        ]  # fmt: skip
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def _line(self):
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self.key} ended")
        return line

    def slice(self, ms):
        """Measure one slice."""
        self._child.stdin.write(f"{ms}\n")
        self._child.stdin.flush()
        return json.loads(self._line())

    def stop(self):
        """End it."""
        self._child.stdin.close()
        self._child.wait(30)


def against(runs, base):
    """Return one row: medians, and the ratio round by round."""
    row = {
        key: statistics.median(run[key] for run in runs)
        for key in ("rate", "p50_ms", "p99_ms", "cpu_us")
    }
    counts = [sum(column) for column in zip(*(run["counts"] for run in runs), strict=True)]
    row["fairness"] = min(counts) / max(counts)
    row["best"] = max(run["rate"] for run in runs)
    row["best_ratio"] = row["best"] / max(run["rate"] for run in base)
    row["ratio"] = statistics.median(
        run["rate"] / other["rate"] for run, other in zip(runs, base, strict=True)
    )
    return row


def table(results):
    """Print the rows; each is compared with the redis-py above it."""
    print(
        f"{'':18}{'clients':>10}{'pairs/s':>9}{'ratio':>7}{'best':>8}{'ratio':>7}{'p50 ms':>8}"
        f"{'p99 ms':>8}{'cpu us':>8}{'fair':>6}"
    )
    base = []
    for (what, clients, contended), runs in results.items():
        if what.startswith("redis-py"):
            base = runs
        row = against(runs, base)
        label = f"{clients}{' on one' if contended else ''}"
        print(
            f"{what:18}{label:>10}{row['rate']:9.0f}{row['ratio']:7.2f}{row['best']:8.0f}"
            f"{row['best_ratio']:7.2f}{row['p50_ms']:8.2f}{row['p99_ms']:8.2f}{row['cpu_us']:8.0f}"
            f"{row['fairness'] if clients > 1 else 1:6.2f}"
        )


def uv_binary():
    """Where uv is: on PATH, or where the Makefile fetches it."""
    script = Path(__file__).resolve().parent.parent / "scripts/bootstrap_uv.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def peers(args, ports):
    """Peers in an environment of their own, beside its redis-py."""
    script = Path(__file__).with_name("locks_peers.py")
    done = subprocess.run(
        [uv_binary(), "run", "--quiet", "--script", str(script), "--redis", str(ports["redis"]),
         "--rounds", str(args.rounds), "--slice-ms", str(args.slice_ms)],
        stdout=subprocess.PIPE, text=True, timeout=900, check=False,
        env={k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"},
    )  # fmt: skip
    results = {}
    for line in done.stdout.splitlines():
        found = json.loads(line)
        key = (found.pop("what"), found.pop("clients"), found.pop("contended"))
        results.setdefault(key, []).append(found)
    print("\nPeers, with the redis-py that they need:")
    table(results)


def compare(args, ports):
    """Run everybody in turn, round after round."""
    plan = [entry for entry in PLAN if "redis-py" in entry[0] or args.only in entry[0]]
    contenders, results = [], {}
    try:
        contenders = [Contender(*entry, ports) for entry in plan]
        for turn in range(args.rounds + 1):
            for contender in contenders:
                found = contender.slice(args.slice_ms * SLICES.get(contender.key[2], 1))
                if turn:  # the first round warms up
                    results.setdefault(contender.key, []).append(found)
    finally:
        for contender in contenders:
            contender.stop()
    table(results)


def main():
    """Parent: start the servers, run everybody in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slice-ms", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=15)
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
    try:
        ports["grpc"] = int(service.stdout.readline())
        compare(args, ports)
        if not args.no_peers:
            peers(args, ports)
    finally:
        service.kill()
        service.wait()
        etcd.stop()
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
