"""A short loss campaign in both modes; `lock_campaign.py --rounds 1000` is the long one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from lock_campaign import campaign
from lock_faults import CLOCK_JUMPS, LOSSES, MAY_OVERLAP, UNORDERED_BY_LINEAGE, clock_shim
from lock_history import Granted, check
from lock_lab import Lab
from lock_world import Ledger, World

from controlplane.dev.process import Child
from controlplane.dev.servers import EtcdCluster, RedisServer
from controlplane.locks.grant import Mode


@pytest.mark.parametrize("mode", list(Mode))
async def test_no_token_goes_back_whatever_is_lost(folder: Path, mode: Mode) -> None:
    """Every kind of loss once, in one history: tokens unique and forward, no update lost at the
    guarded resource, and no two holds at once where a quarantine can prevent it."""
    etcd = EtcdCluster(folder, size=3).start()
    try:
        expected = len(LOSSES) - (len(UNORDERED_BY_LINEAGE) if mode is Mode.LINEAGE else 0)
        outcome = await campaign(folder, etcd, rounds=expected, seed=3, mode=mode, settle=6)
    finally:
        etcd.stop()
    assert sum(outcome.rounds.values()) == expected
    assert outcome.verdict.ok, outcome.verdict.examples
    assert outcome.lost_updates == 0
    assert outcome.verdict.overlaps == 0 or MAY_OVERLAP & set(outcome.rounds)
    assert outcome.verdict.grants > 5 * expected


async def test_a_clock_that_jumps_moves_no_token(folder: Path, lock_etcd: EtcdCluster) -> None:
    """The clock of Redis jumps an hour ahead and an hour back around losses."""
    env = clock_shim(folder)
    world = World(
        directory=folder, endpoints=lock_etcd.endpoints, prefix=f"clock-{folder.name[-8:]}",
        redis_env=env,
    )  # fmt: skip
    outcome = await campaign(
        folder, lock_etcd, rounds=4, seed=3, mode=Mode.STRICT, faults=CLOCK_JUMPS, world=world
    )
    assert outcome.verdict.ok, outcome.verdict.examples
    assert outcome.lost_updates == 0


async def test_a_daemon_that_was_stopped_wakes_up_late(
    request: pytest.FixtureRequest,
    folder: Path,
    lock_etcd: EtcdCluster,
    redis_server: RedisServer,
) -> None:
    """SIGSTOP of a leading daemon with its holders, past every TTL, while Redis loses everything
    and another daemon goes on: what the sleeper does when it wakes breaks nothing."""
    prefix, stop = f"stopped-{folder.name[-8:]}", folder / "stop"
    daemons: list[Child] = []
    request.addfinalizer(lambda: [daemon.kill() for daemon in daemons])
    for seed in (1, 2):
        args = {
            "etcd": lock_etcd.endpoints, "redis": redis_server.port, "prefix": prefix,
            "seed": seed, "ledger": str(folder / "ledger.db"), "stop": str(stop),
            "beat": str(folder / f"beat{seed}"), "out": str(folder / f"out{seed}"),
        }  # fmt: skip
        script = str(Path(__file__).with_name("lock_daemon.py"))
        argv = [sys.executable, script, json.dumps(args)]
        daemons.append(Child(f"daemon{seed}", argv, folder / f"daemon{seed}.log").start())

    async def granted(seed: int, more: int) -> None:
        """Wait until a daemon has granted so many more."""
        goal = _beat(folder, seed) + more
        async with asyncio.timeout(60):
            while _beat(folder, seed) < goal:
                tails = "\n".join(daemon.tail() for daemon in daemons)
                assert all(daemon.alive for daemon in daemons), tails
                await asyncio.sleep(0.01)

    async with Lab(redis_server, lock_etcd, prefix) as lab:
        for seed in (1, 2):
            await granted(seed, 3)
        for turn in range(6):
            sleeper, awake = daemons[turn % 2], 2 - turn % 2
            sleeper.pause()
            await lab.redis("FLUSHALL")
            await granted(awake, 8)
            sleeper.resume()
            await granted(turn % 2 + 1, 2)
        stop.write_text("")
        async with asyncio.timeout(60):
            while any(daemon.alive for daemon in daemons):
                await asyncio.sleep(0.01)
    reports = [json.loads((folder / f"out{seed}").read_text()) for seed in (1, 2)]
    history = [Granted(**grant) for report in reports for grant in report["history"]]
    verdict = check(history)
    assert verdict.ok, verdict.examples
    assert verdict.overlaps == 0, verdict.examples
    ledger = Ledger(folder / "ledger.db").open()
    for report in reports:
        for name, count in report["committed"].items():
            ledger.committed[name] = ledger.committed.get(name, 0) + count
    assert ledger.lost_updates() == 0
    ledger.close()


def _beat(folder: Path, seed: int) -> int:
    beat = folder / f"beat{seed}"
    text = beat.read_text() if beat.exists() else ""
    return int(text or 0)
