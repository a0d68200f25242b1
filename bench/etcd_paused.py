"""A leader stopped for a minute and woken writes nothing: N of N.

    python bench/etcd_paused.py [--leaders 20] [--rounds 5] [--pause-s 60]

Each of `leaders` clusters (own keys on one etcd) has two replicas. In every round the leading one
of each cluster is stopped at a random moment of its tick, the other takes over, and after the
pause it is woken, and has to notice that it was deposed. Then etcd's history is read back: a write
of the stopped one's term after its end, or any other violation the checker knows, is a failure.
Stopped processes cost nothing: `leaders` of them sleep side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import tempfile
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from controlplane.adapters.etcd import EtcdClient
from controlplane.dev.servers import EtcdCluster, scratch_root
from tests.support.history import check, read_history
from tests.support.replicas import LeaderProcess, Replicas, now_ms, until


async def stop_a_leader(replicas: Replicas, rng: random.Random) -> LeaderProcess:
    """Stop whoever leads, at a random moment; not one that lost its leadership just before, as
    happens where the machine is too busy for a tick in time."""
    while True:
        leader = await replicas.leader(now_ms())
        await asyncio.sleep(rng.random())
        leader.child.pause()
        await until(leader.is_stopped, "it stops")
        if not leader.said("lost", leader.said("elected")[-1]["at_ms"]):
            return leader
        leader.child.resume()


async def pause_one(replicas: Replicas, pause_s: float, rng: random.Random) -> bool:
    """Stop the leader, let the other take over, wake it, wait until it has noticed; whether it then
    tried to write under its old term."""
    leader = await stop_a_leader(replicas, rng)
    term, stopped = leader.said("elected")[-1]["term"], now_ms()
    await replicas.leader(stopped, other_than=leader)
    await asyncio.sleep(pause_s)
    woken = now_ms()
    leader.child.resume()
    await until(lambda: leader.said("lost", woken), "the woken one notices")
    return any(line["term"] <= term for line in leader.said("try", woken))


async def main() -> None:
    """Run all rounds and judge the histories."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--leaders", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause-s", type=float, default=60)
    args = parser.parse_args()
    rng = random.Random(7)
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        etcd = EtcdCluster(Path(name) / "etcd").start()
        groups = [
            Replicas(Path(name) / f"c{i}", etcd.endpoints, f"c{i}") for i in range(args.leaders)
        ]
        tried, violations = 0, []
        try:
            for group in groups:
                group.start(2, tick_ms=500, rules={"poll_ms": 400})
                await asyncio.sleep(0.5)
            for _ in range(args.rounds):
                done = await asyncio.gather(*(pause_one(g, args.pause_s, rng) for g in groups))
                tried += sum(done)
            kv = await EtcdClient.connect(etcd.endpoints)
            for group in groups:
                logs = [list(process.history()) for process in group.processes]
                events = await read_history(kv, group.cluster)  # later than the logs
                violations += check(events, group.cluster, logs)
            await kv.aclose()
        finally:
            for group in groups:
                group.stop()
            etcd.stop()
        print(
            json.dumps(
                {
                    "pauses": args.leaders * args.rounds,
                    "pause_s": args.pause_s,
                    "tried_on_waking": tried,
                    "violations": violations,
                }
            )
        )


if __name__ == "__main__":
    asyncio.run(main())
