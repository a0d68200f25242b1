"""How long leadership takes to change hands, on real processes and real etcd.

    python bench/etcd_takeover.py [--runs 30] [--members 3] [--groups 1] [--tick-ms 500]
                                  [--only kill,stop,exit,both,rolling] [--append FILE]

kill, stop: the leader gets SIGKILL or SIGSTOP; time until the next leader's first committed plan.
exit: the leader gets SIGTERM; from the moment it begins to stop. both: leader and etcd's raft
leader get SIGKILL together. rolling: every replica is restarted in turn; the longest pause between
two committed plans (a tick included), and whether any epoch is missing or any plan differs.

`--groups` runs that many independent groups of three replicas on the same etcd at once: more runs
in the same time, each under the others' load. `both` breaks etcd itself, so it uses one group.
`--append` adds the runs to a file that `bench/etcd_results.py` sums up.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from bench.etcd_results import record
from controlplane.dev.servers import EtcdCluster, scratch_root
from tests.support.replicas import LeaderProcess, Replicas, now_ms, until

STEADY_S = 2.5
"""Every replica has run this long before the next fault: it knows who leads and how fast."""


async def settle(replicas: Replicas, rng: random.Random) -> LeaderProcess:
    """Wait until one leads steadily, everybody runs, and a random part of a tick has passed."""
    for process in replicas.processes:
        if not process.child.alive:
            process.child.start()
            await until(lambda p=process: p.history()[-1]["op"] == "ready", "a restart")
    await asyncio.sleep(STEADY_S + rng.random())
    return await replicas.leader(now_ms())


async def one(kind: str, cluster: EtcdCluster, replicas: Replicas, rng: random.Random) -> int:
    """One change of leader; ms until the next one's first committed plan."""
    leader = await settle(replicas, rng)
    await asyncio.sleep(rng.random() / 2)  # `leader` returns right after a commit
    member = cluster.leader() if kind == "both" else None
    begun = now_ms()
    if kind == "stop":
        leader.child.pause()
    elif kind == "exit":
        leader.child.signal(signal.SIGTERM)
        await until(lambda: leader.said("stopping", begun), "the leader stops")
        begun = leader.said("stopping", begun)[0]["at_ms"]
    else:
        leader.child.kill()
        if member:
            member.child.kill()
    successor = await replicas.leader(begun + 1, other_than=leader)
    took = successor.said("ok", begun + 1)[0]["at_ms"] - begun
    leader.child.resume()
    if kind == "exit":
        await until(lambda: not leader.child.alive, "the leader left")
    if member:
        member.child.start()
        cluster.wait_ready()
    return int(took)


async def rolling(
    _kind: str, _cluster: EtcdCluster, replicas: Replicas, rng: random.Random
) -> tuple[int, int]:
    """Restart every replica in turn; ms of the longest pause between two committed plans, and how
    many epochs were left out or committed twice."""
    await settle(replicas, rng)
    begun = now_ms()
    for process in list(replicas.processes):
        asked = now_ms()
        process.child.signal(signal.SIGTERM)
        await until(lambda p=process: not p.child.alive, "it left")
        process.child.start()
        await until(lambda p=process, t=asked: p.said("ready", t), "it is back")
        await replicas.leader(now_ms())
    oks = sorted(
        (line["at_ms"], line["epoch"]) for p in replicas.processes for line in p.said("ok", begun)
    )
    times = [begun, *(at for at, _ in oks)]
    wrong = sum(after[1] != before[1] + 1 for before, after in itertools.pairwise(oks))
    return max(after - before for before, after in itertools.pairwise(times)), wrong


async def scenario(
    kind: str, args: argparse.Namespace, cluster: EtcdCluster, groups: list[Replicas]
) -> None:
    """All runs of one kind, on every group at once."""
    if kind == "both":
        groups = groups[:1]
    measure: Callable[..., object] = rolling if kind == "rolling" else one

    async def several(index: int, group: Replicas) -> list[object]:
        rng = random.Random(f"{args.seed} {kind} {index}")
        share = len(range(index, args.runs, len(groups)))
        return [await measure(kind, cluster, group, rng) for _ in range(share)]  # type: ignore[misc]

    done = await asyncio.gather(*(several(i, group) for i, group in enumerate(groups)))
    took = list(itertools.chain(*done))
    count = {}
    if kind == "rolling":
        count = {"epochs_out_of_order": sum(wrong for _, wrong in took)}  # type: ignore[misc]
        took = [pause for pause, _ in took]  # type: ignore[misc]
    part = {"what": kind, "members": args.members, "gap": {"takeover": took}, "count": count}
    record(args.append, part)


async def main() -> None:
    """Run every scenario."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--tick-ms", type=int, default=500)
    parser.add_argument("--only", default="kill,stop,exit,both,rolling")
    parser.add_argument("--append", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        cluster = EtcdCluster(Path(name) / "etcd", size=args.members).start()
        groups = [
            Replicas(Path(name) / f"g{i}", cluster.endpoints, f"g{i}") for i in range(args.groups)
        ]
        try:
            for group in groups:
                group.start(3, tick_ms=args.tick_ms)
            for kind in args.only.split(","):
                await scenario(kind, args, cluster, groups)
        finally:
            for group in groups:
                group.stop()
            cluster.stop()


if __name__ == "__main__":
    asyncio.run(main())
