"""A short loss campaign in both modes; `lock_campaign.py --rounds 1000` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from lock_campaign import campaign
from lock_faults import CLOCK_JUMPS, LOSSES, MAY_OVERLAP, UNORDERED_BY_LINEAGE, clock_shim
from lock_world import World

from controlplane.dev.servers import EtcdCluster
from controlplane.locks.grant import Mode


@pytest.mark.parametrize("mode", list(Mode))
async def test_no_token_goes_back_whatever_is_lost(folder: Path, mode: Mode) -> None:
    """Every kind of loss once, in one history: tokens unique and forward, no update lost at the
    guarded resource, and no two holds at once where a quarantine can prevent it."""
    etcd = EtcdCluster(folder, size=3).start()
    try:
        expected = len(LOSSES) - (len(UNORDERED_BY_LINEAGE) if mode is Mode.LINEAGE else 0)
        outcome = await campaign(folder, etcd, rounds=expected, seed=3, mode=mode)
    finally:
        etcd.stop()
    assert sum(outcome.rounds.values()) == expected
    assert outcome.verdict.ok, outcome.verdict.examples
    assert outcome.lost_updates == 0
    assert outcome.verdict.overlaps == 0 or MAY_OVERLAP & set(outcome.rounds)
    assert outcome.verdict.grants > 10 * expected


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
