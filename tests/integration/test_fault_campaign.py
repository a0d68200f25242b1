"""A short fault campaign; `python -m tests.integration.fault_campaign --schedules 60` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration import fault_campaign
from tests.integration.fault_campaign import Command, once, schedule
from tests.support.etcd import *  # noqa: F403 - fixtures
from tests.support.fault_world import (
    World,
    compacted,
    fault_world,
    follower_killed,
    leader_stopped,
    lease_revoked,
    raft_leader_stopped,
)

QUICK = (leader_stopped, follower_killed, raft_leader_stopped, lease_revoked, compacted)
SEED = 7


@pytest.mark.timeout(300)
async def test_no_promise_is_broken_whatever_happens(
    etcd_scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seeded steps of faults, two at once among them, with an operator's command under way: the
    history is sound, the command took effect once, and the leader's plan carries it. The checker
    sees what it should: a command that was recorded twice, or accepted and never recorded."""
    monkeypatch.setattr(fault_campaign, "LIVE_MS", fault_campaign.PATIENCE_MS - 1)  # a busy machine
    async with fault_world(etcd_scratch, "faults") as world:
        outcome = await schedule(world, SEED, steps=2, faults=QUICK)
        assert outcome.violations == []
        assert any("+" in step for step in outcome.faults)
        assert sum(outcome.commands.values())
        assert outcome.writes > 10
        promises_that_are_broken(world)


def promises_that_are_broken(world: World) -> None:
    """Mutation: the same history with a record lost, and with one that came twice."""
    [record] = [e for e in world.history if b"/requests/" in e.key][:1]
    command = Command(
        "undrain", "no such reason", request_id=record.key.decode().rpartition("/")[2]
    )
    command.accepted.add("op-1")
    whole = list(world.history)
    assert once(world, command) == []
    world.history = [e for e in whole if e is not record]
    assert "recorded 0 times" in once(world, command)[0]
    world.history = [*whole, record]
    assert "recorded 2 times" in once(world, command)[0]
