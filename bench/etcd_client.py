"""What a caller of the etcd client feels when the member it uses dies or hangs.

    python bench/etcd_client.py [--runs 30] [--members 3] [--only kill,stop] [--append FILE]

One writer does a compare-and-swap every 5 ms, one watcher follows. In each run the member that both
use is hit: kill -9 or SIGSTOP, once while it follows in raft (the client's own doing shows) and
once while it leads raft (etcd's election comes on top). Prints one JSON line per scenario: longest
gap between two acknowledged writes and between two watched events (median, p99, largest, in ms),
failed writes, and events lost or repeated. All the while the other members are asked directly:
the longest gap of these writes is etcd's own share, the rest is the client's. `--append` adds the
runs to a file that `bench/etcd_results.py` sums up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from bench.etcd_direct import direct, longest_ms
from bench.etcd_results import record
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.dev.servers import EtcdCluster, scratch_root
from controlplane.model.errors import WeirError
from controlplane.ports import Compare, Put

KEY = b"/bench"
BEFORE_S = 0.5
AFTER_S = {"kill": 4.0, "stop": 5.5}
"""How long traffic goes on after the fault: longer than any gap that was ever seen."""

DIRECT_MS, DIRECT_S = 5, 0.5
"""How often the other members are asked directly, and how long each question may take, in s."""


class Run:
    """One fault under traffic."""

    def __init__(self, kv: EtcdClient) -> None:
        self.kv = kv
        self.acked: list[float] = []
        self.seen: list[tuple[float, int]] = []
        self.numbers: list[int] = []
        self.failed = 0

    async def write(self, until_s: float) -> None:
        """Count up by compare-and-swap until a moment."""
        found = await self.kv.get(KEY)
        revision = found.mod_revision if found else 0
        number = int(found.value) if found else 0
        while time.perf_counter() < until_s:
            number += 1
            try:
                done = await self.kv.txn(
                    [Compare(key=KEY, target="mod", op="==", operand=revision)],
                    [Put(key=KEY, value=b"%d" % number)],
                )
            except WeirError:
                self.failed += 1
                found = await self.kv.get(KEY)
                assert found
                revision, number = found.mod_revision, int(found.value)
                continue
            self.failed += not done.succeeded
            revision = done.revision
            self.acked.append(time.perf_counter())
            self.numbers.append(number)
            await asyncio.sleep(0.005)

    async def watch(self, revision: int) -> None:
        """See every write."""
        async for batch in self.kv.watch(KEY, revision):
            self.seen += [(time.perf_counter(), int(e.value or b"0")) for e in batch]


async def one(
    cluster: EtcdCluster, fault: str, *, leads: bool
) -> tuple[float, float, int, int, float]:
    """One run: write gap, watch gap, failed writes, events lost or repeated, etcd's own gap."""
    kv = await EtcdClient.connect(
        cluster.endpoints, options=EtcdOptions(attempt_ms=700, call_ms=5000)
    )
    member = cluster.leader()
    if not leads:
        member = next(m for m in cluster.members if m is not member)
    kv._links._current = next(k for k in kv._links.all if k.endpoint == member.endpoint)  # noqa: SLF001
    run = Run(kv)
    watching = asyncio.ensure_future(run.watch(await kv.revision() + 1))
    writing = asyncio.ensure_future(run.write(time.perf_counter() + BEFORE_S + AFTER_S[fault]))
    others = [m.endpoint for m in cluster.members if m is not member]
    async with direct(others, DIRECT_MS, DIRECT_S) as asker:
        await asyncio.sleep(BEFORE_S)
        (member.child.kill if fault == "kill" else member.child.pause)()
        await writing
    for _ in range(500):
        if run.seen and run.seen[-1][1] == run.numbers[-1]:
            break
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await kv.aclose()
    if fault == "kill":
        member.child.start()
    else:
        member.child.resume()
    cluster.wait_ready()
    seen = [number for _, number in run.seen]
    expected = list(range(run.numbers[0], run.numbers[-1] + 1))
    wrong = len(seen) - len(set(seen)) + len(set(expected) ^ set(seen))
    return (
        longest_ms(run.acked), longest_ms([at for at, _ in run.seen]), run.failed, wrong,
        asker.longest_gap_ms(),
    )  # fmt: skip


async def main() -> None:
    """Run every scenario."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--only", default="kill,stop")
    parser.add_argument("--append", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        cluster = EtcdCluster(Path(name), size=args.members).start()
        try:
            for fault in args.only.split(","):
                for leads in (False, True):
                    done = [await one(cluster, fault, leads=leads) for _ in range(args.runs)]
                    part = {
                        "what": f"{fault} of the raft {'leader' if leads else 'follower'}",
                        "members": args.members,
                        "gap": {
                            "write": [d[0] for d in done],
                            "watch": [d[1] for d in done],
                            "etcd": [d[4] for d in done],
                            "beyond etcd": [max(0, d[0] - d[4]) for d in done],
                        },
                        "count": {
                            "failed_writes": sum(d[2] for d in done),
                            "events_lost_or_repeated": sum(d[3] for d in done),
                        },
                    }
                    record(args.append, part)
        finally:
            cluster.stop()


if __name__ == "__main__":
    asyncio.run(main())
