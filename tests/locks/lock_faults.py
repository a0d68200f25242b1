"""The forced losses of the campaign: each takes a world that works and takes something away."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from lock_world import TTL_MS, World

from controlplane.dev.servers import EtcdCluster

Fault = Callable[[World, EtcdCluster], Awaitable[None]]


async def _thread(work: Callable[[], object]) -> None:
    """Run something that blocks, so that the workers go on."""
    await asyncio.to_thread(work)


async def flushall(world: World, _: EtcdCluster) -> None:
    """Everything in Redis is gone, the process lives."""
    await world.redis(world.a, "FLUSHALL")


async def delete_fence(world: World, _: EtcdCluster) -> None:
    """Only the fence is gone: locks and queues stay."""
    await world.redis(world.a, "DEL", "{" + world.prefix + "}:fence")


async def script_flush(world: World, _: EtcdCluster) -> None:
    """FLUSHALL together with SCRIPT FLUSH: the scripts have to be sent again."""
    await world.redis(world.a, "SCRIPT", "FLUSH")
    await world.redis(world.a, "FLUSHALL")


async def empty_restart(world: World, _: EtcdCluster) -> None:
    """Kill -9 and a start with nothing on disk."""
    await _thread(world.a.kill)
    world.a.wipe()
    await _thread(world.a.start)


async def old_rdb(world: World, _: EtcdCluster) -> None:
    """Kill -9 and a start from a snapshot that misses the newest grants."""
    await world.redis(world.a, "SAVE")
    before = int((await world.fence(world.a)).get("counter", 0))
    await world.granted(3)
    after = int((await world.fence(world.a)).get("counter", 0))
    assert after > before, "no token was lost: the fault did not happen"
    await _thread(world.a.kill)
    await _thread(world.a.start)


async def truncated_aof(world: World, _: EtcdCluster) -> None:
    """Kill -9 and a start from an append-only file whose end is missing."""
    await world.redis(world.a, "CONFIG", "SET", "appendonly", "yes")
    async with asyncio.timeout(20):
        while True:
            info = await world.redis(world.a, "INFO", "persistence")
            if "aof_rewrite_in_progress:0" in info and "aof_rewrite_scheduled:0" in info:
                break
            await asyncio.sleep(0.01)
    await world.granted(5)
    await _thread(world.a.kill)
    folder = world.a.directory / world.a.name / "appendonlydir"
    # only the newest file may be truncated; an older one belongs to a rewrite that was repeated
    newest = max(folder.glob("*.incr.aof"), key=lambda part: int(part.name.split(".")[-3]))
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    saved = tuple(world.a.extra_args)
    world.a.extra_args = (*saved, "--appendonly", "yes", "--aof-load-truncated", "yes")
    await _thread(world.a.start)
    world.a.extra_args = saved
    await world.redis(world.a, "CONFIG", "SET", "appendonly", "no")
    shutil.rmtree(folder, ignore_errors=True)


async def _replicate(world: World) -> None:
    """Make b a replica of a that has caught up."""
    await world.redis(world.b, "REPLICAOF", "127.0.0.1", str(world.a.port))
    async with asyncio.timeout(20):
        while "master_link_status:up" not in await world.redis(world.b, "INFO", "replication"):
            await asyncio.sleep(0.01)


def _swap(world: World) -> None:
    world.a, world.b = world.b, world.a


async def _cut_and_lose(world: World) -> None:
    """Stop replication, let tokens be granted that only a has, and make sure that they were."""
    await world.redis(world.b, "REPLICAOF", "127.0.0.1", "1")
    await world.granted(3)
    ours, theirs = await world.fence(world.a), await world.fence(world.b)
    lost = (
        (int(ours["epoch"]), int(ours["counter"])),
        (int(theirs["epoch"]), int(theirs["counter"])),
    )
    assert lost[0] > lost[1], f"the promotion would lose nothing: {ours} {theirs}"


async def lossy_promotion(world: World, _: EtcdCluster) -> None:
    """The primary dies, a replica that lags behind is promoted."""
    await _replicate(world)
    await world.granted(2)
    await _cut_and_lose(world)
    await _thread(world.a.kill)
    await world.redis(world.b, "REPLICAOF", "NO", "ONE")
    for name in world.managers:
        world.move(name, world.b)
    world.a.wipe()
    await _thread(world.a.start)
    _swap(world)


async def demote_and_promote(world: World, _: EtcdCluster) -> None:
    """The primary follows another server for a moment and loses its data to it: same process."""
    await _replicate(world)
    await world.granted(2)
    await _cut_and_lose(world)
    await world.redis(world.b, "REPLICAOF", "NO", "ONE")
    await world.redis(world.a, "REPLICAOF", "127.0.0.1", str(world.b.port))
    async with asyncio.timeout(20):
        while "master_link_status:up" not in await world.redis(world.a, "INFO", "replication"):
            await asyncio.sleep(0.01)
    await world.redis(world.a, "REPLICAOF", "NO", "ONE")


async def two_masters(world: World, _: EtcdCluster) -> None:
    """A partition: the leader is with the new primary, the other manager still with the old one."""
    await _replicate(world)
    await world.granted(2)
    await _cut_and_lose(world)
    await world.redis(world.b, "REPLICAOF", "NO", "ONE")
    world.move("m1", world.b)
    await world.granted(10)
    world.move("m2", world.b)
    await world.redis(world.a, "FLUSHALL")
    _swap(world)


async def etcd_down(world: World, etcd: EtcdCluster) -> None:
    """Redis loses everything while etcd is gone: nothing may be granted until both are back."""
    for member in etcd.members:
        member.child.kill()
    await world.redis(world.a, "FLUSHALL")
    await asyncio.sleep(0.3)
    for member in etcd.members:
        member.child.start()
    await _thread(etcd.wait_ready)


async def lost_replies(world: World, _: EtcdCluster) -> None:
    """Replies are lost, delayed, calls repeated, and in the middle of it everything is lost."""
    for link in world.links.values():
        link.rates = {"lose": 0.15, "repeat": 0.15, "delay": 0.3}
    await asyncio.sleep(0.2)
    await world.redis(world.a, "FLUSHALL")
    await asyncio.sleep(0.4)
    for link in world.links.values():
        link.rates = {}


async def _late(world: World, script: str) -> None:
    """One step of a bump is lost on the way; it arrives after the next loss and the next bump."""
    link = world.links["m1"]
    link.keep_back.add(script)
    await world.redis(world.a, "FLUSHALL")
    async with asyncio.timeout(20):
        while not link.held:
            await asyncio.sleep(0.002)
    link.keep_back.clear()
    await world.redis(world.a, "FLUSHALL")
    await world.granted(2)
    await link.deliver()


async def late_install(world: World, _: EtcdCluster) -> None:
    """A delayed INSTALL must not bring its epoch back."""
    await _late(world, "install")


async def late_prepare(world: World, _: EtcdCluster) -> None:
    """A delayed PREPARE must not bring its nonce back."""
    await _late(world, "prepare")


def _crash_at(script: str) -> Fault:
    async def crash(world: World, _: EtcdCluster) -> None:
        """The leader dies after a step of the bump; the other manager carries on."""
        link = world.links[world.leader.name]
        link.keep_back.add(script)
        await world.redis(world.a, "FLUSHALL")
        async with asyncio.timeout(20):
            while not link.held:
                await asyncio.sleep(0.002)
        world.leader.name = "m2" if world.leader.name == "m1" else "m1"
        await world.granted(2)
        await link.deliver()
        world.leader.name = "m1"

    crash.__name__ = f"crash_before_{script}"
    return crash


async def stopped_redis(world: World, _: EtcdCluster) -> None:
    """SIGSTOP of Redis for longer than a TTL, and it wakes up empty."""
    assert world.a.child is not None
    world.a.child.pause()
    await asyncio.sleep(TTL_MS * 1.5 / 1000)
    world.a.child.resume()
    await world.redis(world.a, "FLUSHALL")


async def eviction(world: World, _: EtcdCluster) -> None:
    """Memory runs out under a policy that evicts: the fence goes as well."""
    fence = "{" + world.prefix + "}:fence"
    await world.redis(world.a, "CONFIG", "SET", "maxmemory-policy", "allkeys-random")
    await world.redis(world.a, "CONFIG", "SET", "maxmemory", "1kb")
    async with asyncio.timeout(10):
        while await world.redis(world.a, "EXISTS", fence):
            await world.redis(world.a, "SET", "filler", "x")
    await world.redis(world.a, "CONFIG", "SET", "maxmemory", "0")
    await world.redis(world.a, "CONFIG", "SET", "maxmemory-policy", "noeviction")


_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long offset(void) {          /* seconds to add, from a file that the test writes */
  static long last = 0; static struct timespec read_at = {0, 0};
  struct timespec now; clock_gettime(CLOCK_MONOTONIC, &now);
  if (now.tv_sec * 1000 + now.tv_nsec / 1000000 - read_at.tv_sec * 1000 - read_at.tv_nsec / 1000000 > 20) {
    read_at = now;
    FILE *f = fopen(getenv("CLOCK_SHIM"), "r");
    if (f) { if (fscanf(f, "%ld", &last) != 1) last = 0; fclose(f); }
  }
  return last;
}
int gettimeofday(struct timeval *tv, void *tz) {
  static int (*real)(struct timeval *, void *) = 0;
  if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
  int r = real(tv, tz); if (tv) tv->tv_sec += offset(); return r;
}
"""


def clock_shim(directory: Path) -> dict[str, str]:
    """Build the shim that lets a test move the clock of a Redis; returns its environment."""
    source, library = directory / "shim.c", directory / "shim.so"
    source.write_text(_SHIM)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True
    )
    moved = directory / "clock"
    moved.write_text("0")
    return {"LD_PRELOAD": str(library), "CLOCK_SHIM": str(moved)}


def _clock_jump(seconds: int) -> Fault:
    async def jump(world: World, _: EtcdCluster) -> None:
        """The clock of Redis jumps while locks are held, and everything is lost on top."""
        clock = world.directory / "clock"
        clock.write_text(str(seconds))
        await asyncio.sleep(0.1)
        await world.redis(world.a, "FLUSHALL")
        await world.granted(1)
        clock.write_text("0")
        await asyncio.sleep(0.05)

    jump.__name__ = f"clock_{'forward' if seconds > 0 else 'back'}"
    return jump


LOSSES: tuple[Fault, ...] = (
    flushall, delete_fence, script_flush, empty_restart, old_rdb, truncated_aof, lossy_promotion,
    demote_and_promote, two_masters, etcd_down, lost_replies, late_install, late_prepare,
    _crash_at("prepare"), _crash_at("install"), _crash_at("open"), stopped_redis, eviction,
)  # fmt: skip
CLOCK_JUMPS: tuple[Fault, ...] = (_clock_jump(3600), _clock_jump(-3600))
"""Only for servers started with the shim."""
UNORDERED_BY_LINEAGE = {"two_masters"}
"""What lineage mode does not promise anything about."""
MAY_OVERLAP = {"delete_fence", "eviction", "clock_forward", "clock_back"}
"""Faults after which holds may overlap (tokens still order them): locks vanished unnoticed."""
