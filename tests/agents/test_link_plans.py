"""Plans over the link: applied, refused, acknowledged, and missed when they do not come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from agents import session
from tests.agents.linked import Agent
from tests.agents.plans import malformed, plan
from tests.agents.timing import eventually


@pytest.mark.usefixtures("patient")
async def test_plans_are_applied_and_acknowledged(tmp_path: Path, replicas: Callable) -> None:
    """A pushed plan is applied and acknowledged under the agent's name; the next report says so."""
    replica = await replicas()
    await replica.publish(plan(3))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: ("east/a-0", 3, "") in replica.acks, "acknowledged 3")
        await replica.publish(plan(4, 0))
        await eventually(lambda: ("east/a-0", 4, "") in replica.acks, "acknowledged 4")
        assert agent.applier.message == plan(4, 0)
        await eventually(lambda: replica.reports[-1].applied_epoch == 4, "reported 4")
    assert replica.watches[0].kind == "agent"
    assert replica.watches[0].subscriber == "east/a-0"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("what", ["empty", "sum", "failed region with weight", "unsorted"])
async def test_a_malformed_plan_is_refused_with_its_reason(
    tmp_path: Path, replicas: Callable, what: str
) -> None:
    """The replica learns why; the agent keeps its plan, its stream, and takes the next good one."""
    replica = await replicas()
    await replica.publish(plan(5))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: ("east/a-0", 5, "") in replica.acks, "acknowledged 5")
        await replica.publish(malformed()[what])
        await eventually(lambda: any(error for _, _, error in replica.acks), "refused")
        assert agent.applier.message == plan(5)
        await replica.publish(plan(11))
        await eventually(lambda: ("east/a-0", 11, "") in replica.acks, "acknowledged 11")
    refusals = [(name, epoch) for name, epoch, error in replica.acks if error]
    assert refusals == [("east/a-0", 5)]
    assert replica.streams == 1


@pytest.mark.usefixtures("patient")
async def test_a_lower_epoch_is_not_applied(tmp_path: Path, replicas: Callable) -> None:
    """Incident 1: a late, older plan is refused by the subscriber itself."""
    replica = await replicas()
    await replica.publish(plan(9))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: ("east/a-0", 9, "") in replica.acks, "acknowledged 9")
        await replica.publish(plan(8, 0))
        await eventually(lambda: any("not above 9" in e for _, _, e in replica.acks), "refused")
        assert agent.applier.message == plan(9)
        assert replica.streams == 1


async def test_an_announced_plan_that_never_comes_ends_the_session(
    tmp_path: Path, replicas: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WatchPlan may be silent for days, but not while the answers name a newer epoch."""
    monkeypatch.setattr(session, "PLAN_LAG_MS", 100)
    stuck, well = await replicas(), await replicas()
    await well.publish(plan(6))
    stuck.announced = 6
    async with Agent(tmp_path, [stuck.address, well.address]).running() as agent:
        await eventually(lambda: agent.applier.applied_epoch == 6, "plan from the next")
        assert agent.link.server == well.address


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("status", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
async def test_a_replica_without_plan_stream_is_left(
    tmp_path: Path, replicas: Callable, status: grpc.StatusCode
) -> None:
    """A replica that takes reports but serves no plans is tried a few times, then left."""
    ill, well = await replicas(), await replicas()
    ill.watch_status = status
    await well.publish(plan(2))
    async with Agent(tmp_path, [ill.address, well.address]).running() as agent:
        await eventually(lambda: agent.applier.applied_epoch == 2, "plan from the next")
    assert len(ill.watches) == session.WATCH_TRIES


@pytest.mark.usefixtures("patient")
async def test_a_lost_acknowledgement_is_repeated(tmp_path: Path, replicas: Callable) -> None:
    """The replica is told again until it has heard which epoch is applied."""
    replica = await replicas()
    replica.ack_status = grpc.StatusCode.UNAVAILABLE
    await replica.publish(plan(3))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: agent.applier.applied_epoch == 3, "applied")
        replica.ack_status = None
        await eventually(lambda: ("east/a-0", 3, "") in replica.acks, "acknowledged at last")


@pytest.mark.usefixtures("patient")
async def test_a_new_replica_learns_what_is_applied(tmp_path: Path, replicas: Callable) -> None:
    """After a move the next replica hears the epoch without a new plan, and streams none again."""
    first, second = await replicas(), await replicas()
    for replica in (first, second):
        await replica.publish(plan(3))
    second.watching = False
    async with Agent(tmp_path, [first.address, second.address]).running():
        await eventually(lambda: ("east/a-0", 3, "") in first.acks, "first knows")
        await first.kill()
        await eventually(lambda: ("east/a-0", 3, "") in second.acks, "second knows")
    assert second.watches[0].after_epoch == 3
