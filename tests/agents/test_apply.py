"""What an agent takes for a plan."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agents import apply
from agents.apply import Applier
from agents.store import PlanFile
from controlplane.clock import SystemClock
from controlplane.model.plan import Plan
from tests.agents.appliers import MemoryFile, Recorder, running
from tests.agents.plans import malformed, plan
from tests.agents.timing import eventually


async def test_a_plan_is_applied_and_on_disk_when_offer_returns(tmp_path: Path) -> None:
    """The disk has the plan before the data plane does."""
    order: list[str] = []

    class Sink(Recorder):
        async def take(self, plan: Plan, *, confirmed: bool) -> None:
            order.append(f"disk {PlanFile(tmp_path).load().highest_epoch}")
            await super().take(plan, confirmed=confirmed)

    sink = Sink()
    async with running(Applier(PlanFile(tmp_path), SystemClock(), [sink])) as applier:
        verdict = await applier.offer(plan(7))
    assert (verdict.epoch, verdict.error) == (7, "")
    assert (applier.applied_epoch, applier.highest_epoch) == (7, 7)
    assert sink.taken == [(7, False)]  # nobody has confirmed it yet
    assert order == ["disk 7"]


async def test_only_higher_epochs(tmp_path: Path) -> None:
    """An older or equal plan changes nothing, whoever sends it and however often."""
    sink = Recorder()
    async with running(Applier(PlanFile(tmp_path), SystemClock(), [sink])) as applier:
        await applier.offer(plan(7, 5000))
        for epoch in (7, 6, 1, 0, -5):
            verdict = await applier.offer(plan(epoch, 1000))
            assert verdict.stale
            assert verdict.epoch == 7
            assert "not above 7" in verdict.error
    assert sink.taken == [(7, False)]  # nobody has confirmed it yet
    assert applier.message == plan(7, 5000)


@pytest.mark.parametrize("what", malformed())
async def test_malformed_plans_are_refused(tmp_path: Path, what: str) -> None:
    """Whatever is wrong with a plan, it is refused with a reason and the last good one stays."""
    results: list[str] = []
    applier = Applier(PlanFile(tmp_path), SystemClock(), [], noted=results.append)
    async with running(applier):
        await applier.offer(plan(9))
        with capture_logs() as logs:
            verdict = await applier.offer(malformed()[what])
    assert verdict.epoch == 9
    assert verdict.error
    assert applier.message == plan(9)
    assert results == ["applied", "refused"]
    assert logs[-1]["event"] == "plan_refused"


async def test_without_the_checker_a_bad_plan_would_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: without the checker, weight on a failed region would be applied."""
    monkeypatch.setattr(apply, "check", lambda *_: ())
    async with running(Applier(PlanFile(tmp_path), SystemClock())) as applier:
        verdict = await applier.offer(malformed()["failed region with weight"])
    assert verdict.error == ""


@settings(max_examples=25, deadline=None)
@given(epochs=st.lists(st.integers(-2, 30), min_size=1, max_size=12), seed=st.integers())
def test_epochs_only_rise(epochs: list[int], seed: int) -> None:
    """Property: for any order of plans, good and bad, the applied epoch never goes back, and it is
    the highest good one."""
    rng = random.Random(seed)

    async def run() -> None:
        file = MemoryFile()
        async with running(Applier(file, SystemClock())) as applier:
            best = 0
            for epoch in epochs:
                offered = plan(epoch)
                good = rng.random() < 0.7
                if not good:
                    offered.routes[0].weights[0].weight_bp = 1
                before = applier.applied_epoch
                await applier.offer(offered)
                best = max(best, epoch) if good else best
                assert applier.applied_epoch >= before
                assert applier.applied_epoch == best

    asyncio.run(run())


async def test_confirmations_reach_the_data_plane(tmp_path: Path) -> None:
    """A replica that serves our epoch keeps alive what must not outlive the control plane."""
    async with running(Applier(PlanFile(tmp_path), SystemClock())) as applier:
        await applier.offer(plan(4))
    sink = Recorder()
    again = Applier(PlanFile(tmp_path), SystemClock(), [sink])
    await again.restore()
    async with running(again):
        again.confirm(3)
        again.confirm(0)
        assert sink.taken == [(4, False)]
        again.confirm(4)
        await eventually(lambda: sink.taken[-1] == (4, True), "confirmed")


async def test_waiters_get_the_newest(tmp_path: Path) -> None:
    """A slow local reader sees the newest plan, not every one in between."""
    async with running(Applier(PlanFile(tmp_path), SystemClock())) as applier:
        waiting = asyncio.ensure_future(applier.wait_above(0))
        await asyncio.sleep(0)
        await applier.offer(plan(1))
        assert (await waiting).epoch == 1
        await applier.offer(plan(2))
        await applier.offer(plan(3))
        assert (await applier.wait_above(1)).epoch == 3
