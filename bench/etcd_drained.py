"""How long leadership takes to move when only drained regions are left.

    python -m bench.etcd_drained [--runs 12] [--append FILE]

Three whole replicas, one a region. Two regions are drained, the third leads and loses its only
replica, by SIGKILL and by SIGSTOP in turn; time until the first write under the next term. Between
two runs the lost replica comes back and the drains move, so that it leads again by an election.
`bench/etcd_results.py` sums the file up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from bench.etcd_results import record
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_keys import Keys
from controlplane.dev.servers import EtcdCluster, scratch_root
from controlplane.v1 import admin_pb2 as pb
from tests.operate.lab import REGIONS, mutation
from tests.support.daemons import Daemons, daemons
from tests.support.replicas import now_ms, until

CLUSTER = "drained"
POLICY = {"tick_ms": 500, "report_interval_ms": 500, "ramp_step_ms": 400, "hold_down_ms": 1000}
CHANNELS = {"unionpay": {"regions": list(REGIONS), "demand_tps": 600}}
"""No channel keeps a region from being drained."""
FORCED = ["capacity", "headroom", "drill"]


async def pulse(kv: EtcdClient) -> tuple[str, int]:
    """Region and term of the last write of a leader."""
    found = await kv.get(Keys(CLUSTER).heartbeat)
    said = json.loads(found.value) if found else {}
    return str(said.get("replica", ""))[:-2], int(said.get("term") or 0)


async def drained(group: Daemons, kv: EtcdClient, wanted: set[str]) -> None:
    """Drain and undrain regions until these are, and every living replica knows it."""
    while True:
        for region in REGIONS:
            asked: Any = pb.DrainRegionRequest if region in wanted else pb.UndrainRegionRequest
            method = "DrainRegion" if region in wanted else "UndrainRegion"
            request = asked(region=region, mutation=mutation(override_rules=FORCED))
            via, _ = await pulse(kv)
            with contextlib.suppress(grpc.aio.AioRpcError):  # as it is already, or not yet possible
                await group.ask(via, method, request)
        known = [await group.drains(region) for region in REGIONS]
        if all(found == wanted for found in known):
            return
        await asyncio.sleep(0.2)


async def one(group: Daemons, kv: EtcdClient, fault: str, rng: random.Random) -> int:
    """One loss; ms until the next leader's first write."""
    await drained(group, kv, set())
    lost, _ = await pulse(kv)
    await drained(group, kv, set(REGIONS) - {lost})
    await asyncio.sleep(2.5 + rng.random())
    lost_now, before = await pulse(kv)
    assert lost_now == lost, "leadership moved before the fault"
    child = group.children[lost]
    begun = now_ms()
    (child.kill if fault == "kill" else child.pause)()
    async with contextlib.aclosing(kv.watch(Keys(CLUSTER).heartbeat, 0)) as pulses:
        async for _ in pulses:
            if (await pulse(kv))[1] not in {before, 0}:
                break
    took = now_ms() - begun
    child.resume()
    if not child.alive:
        child.start()
    await until(lambda: group.ready(lost), "it is back")
    return took


async def main() -> None:
    """Run both losses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--append", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        etcd = EtcdCluster(Path(name) / "etcd").start()
        kv = await EtcdClient.connect(etcd.endpoints)
        rng = random.Random(4)
        try:
            setup = {"policy": POLICY, "channels": CHANNELS}
            async with daemons(etcd.endpoints, Path(name), CLUSTER, **setup) as group:
                for fault in ("kill", "stop"):
                    took = [await one(group, kv, fault, rng) for _ in range(args.runs)]
                    what = f"{fault} of the only replica whose region is not drained"
                    record(args.append, {"what": what, "members": 3, "gap": {"takeover": took}})
        finally:
            await kv.aclose()
            etcd.stop()


if __name__ == "__main__":
    asyncio.run(main())
