"""How long leadership takes to change hands, on real processes and real etcd.

    python bench/etcd_takeover.py [--runs 30] [--members 3] [--tick-ms 500] [--only kill,stop,…]

kill, stop: the leader gets SIGKILL or SIGSTOP; time until the next leader's first committed plan.
exit: the leader gets SIGTERM; from the moment it begins to stop. both: leader and etcd's raft
leader get SIGKILL together. rolling: every replica is restarted in turn; the longest pause between
two committed plans (a tick included). Prints one JSON line per scenario: median, p99 and largest,
in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import tempfile
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from controlplane.dev.servers import EtcdCluster, scratch_root
from tests.support.replicas import LeaderProcess, Replicas, now_ms, until


async def settle(replicas: Replicas, rng: random.Random) -> LeaderProcess:
    """Wait until one leads steadily, everybody runs, and a random part of a tick has passed."""
    for process in replicas.processes:
        if not process.child.alive:
            process.child.start()
            await until(lambda p=process: p.history()[-1]["op"] == "ready", "a restart")
    await asyncio.sleep(3 + rng.random())
    return await replicas.leader(now_ms() - 1500)


async def one(kind: str, cluster: EtcdCluster, replicas: Replicas, rng: random.Random) -> int:
    """One change of leader; ms until the next one's first committed plan."""
    leader = await settle(replicas, rng)
    member = cluster.leader() if kind == "both" else None
    begun = now_ms()
    if kind == "stop":
        leader.child.pause()
    elif kind == "exit":
        leader.child.signal(15)
        await until(lambda: leader.said("stopping", begun), "the leader stops")
        begun = leader.said("stopping", begun)[0]["at_ms"]
    else:
        leader.child.kill()
        if member:
            member.child.kill()
    successor = await replicas.leader(begun + 1, other_than=leader)
    took = successor.said("ok", begun + 1)[0]["at_ms"] - begun
    leader.child.resume()
    if kind == "exit" and leader.child.process:
        leader.child.process.wait(10)
    if member:
        member.child.start()
        cluster.wait_ready()
    return int(took)


async def rolling(replicas: Replicas, rng: random.Random) -> int:
    """Restart every replica in turn; ms of the longest pause between two committed plans."""
    await settle(replicas, rng)
    begun = now_ms()
    for process in list(replicas.processes):
        asked = now_ms()
        process.child.signal(15)
        await until(lambda p=process: not p.child.alive, "it left")
        process.child.start()
        await until(lambda p=process, t=asked: p.said("ready", t), "it is back")
        await replicas.leader(now_ms())
    oks = sorted(line["at_ms"] for p in replicas.processes for line in p.said("ok", begun))
    return max(after - before for before, after in itertools.pairwise([begun, *oks]))


async def main() -> None:
    """Run every scenario."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--tick-ms", type=int, default=500)
    parser.add_argument("--only", default="kill,stop,exit,both,rolling")
    args = parser.parse_args()
    rng = random.Random(4)
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        cluster = EtcdCluster(Path(name) / "etcd", size=args.members).start()
        replicas = Replicas(Path(name), cluster.endpoints)
        replicas.start(3, tick_ms=args.tick_ms)
        try:
            for kind in args.only.split(","):
                took = [
                    await rolling(replicas, rng)
                    if kind == "rolling"
                    else await one(kind, cluster, replicas, rng)
                    for _ in range(args.runs)
                ]
                ordered = sorted(took)
                line = {
                    "scenario": kind, "members": args.members, "runs": args.runs,
                    "median_ms": ordered[len(ordered) // 2],
                    "p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
                    "max_ms": ordered[-1], "all_ms": took,
                }  # fmt: skip
                print(json.dumps(line), flush=True)
        finally:
            replicas.stop()
            cluster.stop()


if __name__ == "__main__":
    asyncio.run(main())
