"""Locks at scale: 10,000 held at once, 1,000 waiters on one name, and nothing left behind.

    .venv/bin/python bench/locks_scale.py [--locks 10000] [--waiters 1000]

Real Redis and etcd. Prints Redis's memory a lock, the latency of grants and of a hand-over through
the whole queue, the memory of the manager, and the keys that remain after release.
"""

# ruff: noqa: ASYNC110 - what another process shows is polled

import argparse
import asyncio
import resource
import shutil
import tempfile
import time
from pathlib import Path

import structlog
import uvloop

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.dev.servers import EtcdCluster, RedisServer, scratch_root
from controlplane.locks.grant import Limits, Mode
from controlplane.locks.manager import LockManager


def quantiles(values):
    """Say p50 and p99 of seconds in ms."""
    ordered = sorted(values)
    p50, p99 = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    return f"p50 {p50 * 1000:.2f} p99 {p99 * 1000:.2f} ms"


def rss_mb():
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def used(link):
    """Bytes that Redis uses."""
    info = (await link.call("INFO", "memory")).decode()
    return int(info.split("used_memory:")[1].split()[0])


async def hold_many(locks, link, count):
    """Hold many locks at once, list them, give them back."""
    before, waits, grants = await used(link), [], []
    gate = asyncio.Semaphore(64)

    async def take(i):
        async with gate:
            asked = time.perf_counter()
            grants.append(await locks.acquire(f"account:{i}", owner=f"job-{i}", ttl_ms=120_000))
            waits.append(time.perf_counter() - asked)

    started = time.perf_counter()
    await asyncio.gather(*(take(i) for i in range(count)))
    seconds = time.perf_counter() - started
    held = await used(link)
    print(
        f"{count} locks held: {seconds:.1f} s, {quantiles(waits)}, "
        f"{(held - before) / count:.0f} bytes of Redis each, manager {rss_mb():.0f} MB"
    )
    listed, cursor, started = 0, 0, time.perf_counter()
    while True:
        states, cursor = await locks.list(cursor, 1000)
        listed += len(states)
        if not cursor:
            break
    print(f"listed {listed} in {time.perf_counter() - started:.2f} s")
    await asyncio.gather(
        *(locks.release(grant.name, owner=grant.owner, token=grant.token) for grant in grants)
    )
    print(f"keys left: {await link.call('DBSIZE')} (the fence)")


async def wait_many(locks, link, count):
    """Let many wait for one name and serve them all."""
    holder = await locks.acquire("one", owner="holder", ttl_ms=120_000)
    before, order, times = await used(link), [], []

    async def wait(i):
        grant = await locks.acquire(
            "one", owner=f"w{i}", ttl_ms=60_000, wait_ms=60_000, mode=Mode.LINEAGE
        )
        times.append(time.perf_counter())
        order.append(i)
        await locks.release("one", owner=f"w{i}", token=grant.token)

    tasks = [asyncio.ensure_future(wait(i)) for i in range(count)]
    while (await locks.inspect("one")).waiters < count:
        await asyncio.sleep(0.01)
    queued = await used(link)
    started = time.perf_counter()
    await locks.release("one", owner="holder", token=holder.token)
    await asyncio.gather(*tasks)
    gaps = [b - a for a, b in zip([started, *times], times, strict=False)]
    fifo = order == list(range(count))
    print(
        f"{count} waiters on one name: {(queued - before) / count:.0f} bytes of Redis each; all "
        f"served in {times[-1] - started:.2f} s, a hand-over {quantiles(gaps)}, in order: {fifo}"
    )
    print(f"keys left: {await link.call('DBSIZE')} (the fence)")


async def main(args, directory):
    """Start the servers and measure."""
    etcd, server = EtcdCluster(directory).start(), RedisServer(directory).start()
    store = await EtcdClient.connect(etcd.endpoints)
    link = RedisLink(RedisAddress(port=server.port))
    limits = Limits(waiters_max=args.waiters + 1)
    locks = LockManager(redis=link, store=store, prefix="scale", limits=limits)
    async with locks.running():
        while locks.lineage.state != "open":
            await asyncio.sleep(0.01)
        await hold_many(locks, link, args.locks)
        await wait_many(locks, link, args.waiters)
    await store.aclose()
    etcd.stop()
    server.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--locks", type=int, default=10_000)
    parser.add_argument("--waiters", type=int, default=1_000)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    folder = Path(tempfile.mkdtemp(prefix="weir-bench-", dir=scratch_root()))
    try:
        uvloop.run(main(parser.parse_args(), folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
