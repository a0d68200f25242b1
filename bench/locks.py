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

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from controlplane.dev.servers import EtcdCluster, RedisServer, scratch_root

CLIENTS = 16
CONTENDER = Path(__file__).with_name("locks_contenders.py")

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
            sys.executable, str(CONTENDER), "--what", what, "--clients", str(clients),
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
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", default="", help="only contenders whose name contains this")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="weir-bench-", dir=scratch_root()))
    etcd, server = EtcdCluster(directory).start(), RedisServer(directory).start()
    ports = {"redis": server.port, "etcd": ",".join(etcd.endpoints), "grpc": 0}
    service = subprocess.Popen(
        [sys.executable, str(CONTENDER), "--what", "serve", "--redis", str(server.port), "--etcd",
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
