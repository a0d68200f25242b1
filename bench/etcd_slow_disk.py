"""What three replicas do when every disk of etcd is slow.

    python -m bench.etcd_slow_disk [--seconds 60] [--every 2] [--delay-ms 1000]
                                   [--heartbeat-ms 100] [--election-ms 1000] [--append FILE]

Three members, every `--every`-th sync of each takes `--delay-ms` longer (strace). Beside the
replicas somebody writes at every member directly: etcd's own pause is that writer's. Prints plans
committed, the longest pause between two, terms, and etcd's pause.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from bench.etcd_direct import direct, longest_ms
from bench.etcd_results import record
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.dev.servers import EtcdCluster, scratch_root
from tests.support.history import check, read_history
from tests.support.replicas import Replicas, now_ms, until
from tests.support.slow_disk import SlowDisk

APART_S = 5.0
"""Between the restarts that give the members their slow disks."""


async def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=int, default=2)
    parser.add_argument("--delay-ms", type=int, default=1000)
    parser.add_argument("--heartbeat-ms", type=int, default=100)
    parser.add_argument("--election-ms", type=int, default=1000)
    parser.add_argument("--tick-ms", type=int, default=500)
    parser.add_argument("--append", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        cluster = EtcdCluster(
            Path(name) / "etcd", heartbeat_ms=args.heartbeat_ms, election_ms=args.election_ms
        ).start()
        group = Replicas(Path(name), cluster.endpoints, "t")
        try:
            group.start(3, tick_ms=args.tick_ms, options={"attempt_ms": 700})
            await group.leader()
            disks = [
                SlowDisk(cluster, m, delay_ms=args.delay_ms, every=args.every, ready_s=0)
                for m in cluster.members
            ]
            for disk in disks:  # one after the other: etcd keeps a quorum, and the leader its key
                await asyncio.to_thread(disk.begin)
                await asyncio.sleep(APART_S)
            async with direct(cluster.endpoints, 200, 8) as asker:
                await until(lambda: asker.answered, "the members have elected, started again")
                begun = now_ms()
                await asyncio.sleep(args.seconds)
            ended = now_ms()
            await asyncio.gather(*(asyncio.to_thread(disk.end) for disk in disks))
            healed = now_ms()
            await group.leader(healed)
            back = min(
                p.said("ok", healed)[0]["at_ms"] for p in group.processes if p.said("ok", healed)
            )
            logs = [list(p.history()) for p in group.processes]
            kv = await EtcdClient.connect(cluster.endpoints, options=EtcdOptions(call_ms=20_000))
            events = await read_history(kv, group.cluster)
            await kv.aclose()
        finally:
            group.stop()
            cluster.stop()
    oks = sorted(line["at_ms"] for log in logs for line in log if line["op"] == "ok")
    inside = [at for at in oks if begun <= at <= ended]
    leads = [e for e in events if e.key == Keys(group.cluster).leader]
    record(args.append, {
        "what": f"every {args.every}. sync {args.delay_ms} ms late, all members, "
        f"{args.heartbeat_ms}/{args.election_ms} ms",
        "members": 3,
        "gap": {
            "between plans": [longest_ms([at / 1000 for at in (begun, *inside, ended)])],
            "etcd": [longest_ms([begun / 1000, *asker.answered])],
            "after healing": [back - healed],
        },
        "count": {
            "plans": len(inside), "direct_writes": len(asker.answered),
            "direct_median_ms": asker.median_ms(),
            "terms": sum(e.value is not None for e in leads),
            "lost": sum(line["op"] == "lost" for log in logs for line in log),
            "violations": len(check(events, group.cluster, logs)),
        },
    })  # fmt: skip


if __name__ == "__main__":
    asyncio.run(main())
