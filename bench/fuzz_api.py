"""Structure-aware nonsense on every method of a whole replica: answers by code, plan, memory.

Usage: python bench/fuzz_api.py [requests]   (default 100000)
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from controlplane.adapters import authorisation  # noqa: E402
from controlplane.dev.servers import EtcdCluster, RedisServer, scratch_root  # noqa: E402
from controlplane.v1 import admin_pb2 as pb  # noqa: E402
from tests.operate.fuzz import calls  # noqa: E402
from tests.operate.lab import Lab, running  # noqa: E402
from tests.operate.test_fuzz import BROKEN, call, hold_a_lock, lock_of  # noqa: E402
from tests.operate.test_security import METHODS  # noqa: E402

WORKERS = 16
STREAM_SHARE = 0.01
"""A stream that is admitted waits for something to say: few of the calls are streams."""


def memory_mb() -> float:
    """Resident memory of this process (replicas and fuzzer), in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def fuzz(lab: Lab, total: int) -> tuple[collections.Counter, list]:
    """Send `total` requests through several connections; count the answers."""
    rng = random.Random(11)
    unary = [(n, m) for n, m in METHODS if not m.server_streaming]
    streams = [(n, m) for n, m in METHODS if m.server_streaming]
    todo = itertools.chain(
        itertools.islice(calls(rng, streams), int(total * STREAM_SHARE)),
        itertools.islice(calls(rng, unary), total - int(total * STREAM_SHARE)),
    )
    answers: collections.Counter = collections.Counter()
    broken: list = []

    async def work() -> None:
        async with lab.channel() as channel:
            for name, method, data in todo:
                code = await call(channel, name, method, data)
                answers[code.name] += 1
                if code in BROKEN:
                    broken.append((name, code, data[:200]))

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    return answers, broken


async def extend(lab: Lab) -> None:
    """Keep the bystander's lock: asking again extends it and gives the same token."""
    while True:
        await asyncio.sleep(60)
        await hold_a_lock(lab)


async def main(total: int) -> int:
    """Run and print; exit code 1 when anything broke."""
    authorisation.BURST = 10**9
    directory = Path(tempfile.mkdtemp(prefix="weir-fuzz-", dir=scratch_root()))
    etcd = EtcdCluster(directory, size=1).start()
    redis = RedisServer(directory).start()
    try:
        folder = directory / "replicas"
        async with running(etcd.endpoints, folder, "fuzz", redis=redis.port) as lab:
            held = await hold_a_lock(lab)
            extending = asyncio.ensure_future(extend(lab))
            async with lab.admin() as stub:
                before = await stub.GetStatus(pb.GetStatusRequest())
            await fuzz(lab, 2_000)  # warm-up: caches and pools fill
            start_mb = memory_mb()
            answers, broken = await fuzz(lab, total)
            end_mb = memory_mb()
            async with lab.admin() as stub:
                after = await stub.GetStatus(pb.GetStatusRequest())
            extending.cancel()
            same_lock = await lock_of(lab) == held
    finally:
        redis.kill()
        etcd.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(f"requests {sum(answers.values())} on {len(METHODS)} methods")
    for code, count in answers.most_common():
        print(f"  {code:24} {count}")
    same = before.plan_epoch == after.plan_epoch and same_lock
    print(f"broken {len(broken)}; plan epoch {before.plan_epoch} -> {after.plan_epoch}")
    print(f"memory {start_mb:.0f} MB -> {end_mb:.0f} MB")
    for item in broken[:5]:
        print("  ", *item)
    return 0 if same and not broken else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)))
