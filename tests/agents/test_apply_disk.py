"""What an agent does with a plan when the disk or the data plane does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agents import apply
from agents.apply import Applier
from agents.store import PlanFile, Saved
from controlplane.clock import SystemClock
from controlplane.model.epochs import EPOCH_JUMP_MAX
from tests.agents.appliers import MemoryFile, Recorder, running
from tests.agents.plans import malformed, plan
from tests.agents.timing import eventually


class _HangingFile(MemoryFile):
    """A disk that hangs until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.release = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def save(self, saved: Saved) -> None:
        self._loop.call_soon_threadsafe(self.writing.set)
        asyncio.run_coroutine_threadsafe(self.release.wait(), self._loop).result()
        super().save(saved)


async def test_full_disk_does_not_stop_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk plans go on into force; it is said once, tried again, and said when well."""
    monkeypatch.setattr(apply, "DISK_RETRY_MS", 10)
    file = MemoryFile()
    file.failing = True
    with capture_logs() as logs:
        async with running(Applier(file, SystemClock())) as applier:
            for epoch in (1, 2, 3):
                assert (await applier.offer(plan(epoch))).error == ""
            assert applier.applied_epoch == 3
            tries = file.tries
            await eventually(lambda: file.tries > tries + 2, "tried again")
            assert not applier.disk_well
            file.failing = False
            await eventually(lambda: applier.disk_well, "disk well")
    assert file.saved.plan == plan(3)
    events = [log["event"] for log in logs]
    assert events.count("plan_not_saved") == 1
    assert events.count("plan_saved_again") == 1


async def test_a_confirmation_does_not_overtake_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica that confirms a plan while it is being written: the data plane still gets it after
    the disk has it, so that kill -9 in between cannot bring an older plan back."""
    monkeypatch.setattr(apply, "DISK_WAIT_MS", 60_000)
    monkeypatch.setattr(apply, "SINK_RETRY_MS", 10)
    file, sink = _HangingFile(), Recorder()
    async with (
        running(Applier(file, SystemClock(), [sink])) as applier,
        asyncio.TaskGroup() as group,
    ):
        offer = group.create_task(applier.offer(plan(5)))
        await file.writing.wait()
        applier.confirm(5)
        hungry = applier._hungry
        await eventually(lambda: not hungry.is_set(), "the confirmation was dealt with")
        assert (sink.taken, applier.applied_epoch) == ([], 0)
        file.release.set()
        assert (await offer).epoch == 5
    assert file.saved.plan == plan(5)
    assert sink.taken == [(5, True)]  # and the confirmation is not lost


async def test_an_offer_cut_off_at_the_disk_is_still_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The link that brought a plan dies while the plan is being written, and the disk hangs: nobody
    offers that epoch again, and the data plane gets it all the same."""
    monkeypatch.setattr(apply, "SINK_RETRY_MS", 10)
    file, sink = _HangingFile(), Recorder()
    async with running(Applier(file, SystemClock(), [sink])) as applier:
        async with asyncio.TaskGroup() as group:
            offer = group.create_task(applier.offer(plan(5)))
            await file.writing.wait()
            offer.cancel()
        await eventually(lambda: applier.applied_epoch == 5, "applied without its offer")
        file.release.set()
    assert sink.taken == [(5, False)]


async def test_slow_disk_does_not_hold_up_a_plan() -> None:
    """A disk that hangs costs a bounded wait, not the failover."""
    file = _HangingFile()
    with capture_logs() as logs:
        async with running(Applier(file, SystemClock())) as applier:
            verdict = await applier.offer(plan(5))
            assert (verdict.epoch, verdict.error) == (5, "")
            assert file.saved == Saved()
            file.release.set()
            await eventually(lambda: file.saved.plan == plan(5), "saved at last")
    assert "disk_slow" in [log["event"] for log in logs]


async def test_a_data_plane_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the data plane has taken a plan the older epoch is what we say we apply."""
    monkeypatch.setattr(apply, "SINK_RETRY_MS", 10)
    sink = Recorder()
    async with running(Applier(PlanFile(tmp_path), SystemClock(), [sink])) as applier:
        await applier.offer(plan(1))
        sink.refuse = True
        with capture_logs() as logs:
            verdict = await applier.offer(plan(2))
            assert (verdict.epoch, verdict.error) == (1, "the local data plane did not take it")
            assert (applier.applied_epoch, applier.accepted_epoch) == (1, 2)
        assert [log["event"] for log in logs] == ["plan_not_taken"]
        sink.refuse = False
        await eventually(lambda: applier.applied_epoch == 2, "taken at last")


async def test_flush_at_the_end(tmp_path: Path) -> None:
    """What the disk did not take while running is written once more at the end."""
    applier = Applier(PlanFile(tmp_path), SystemClock())
    async with running(applier):
        await applier.offer(plan(3))
    (tmp_path / "plan").unlink()
    applier._unsaved.set()
    await applier.flush()
    assert PlanFile(tmp_path).load().plan == plan(3)


async def test_restart_from_disk_without_any_replica(tmp_path: Path) -> None:
    """A cold start during an outage: the plan is there, given to the data plane as unconfirmed."""
    async with running(Applier(PlanFile(tmp_path), SystemClock())) as applier:
        await applier.offer(plan(7))
    sink = Recorder()
    again = Applier(PlanFile(tmp_path), SystemClock(), [sink])
    await again.restore()
    assert again.message == plan(7)
    assert again.applied_epoch == 7
    assert sink.taken == [(7, False)]


async def test_a_plan_on_disk_that_breaks_a_rule_is_left_out(tmp_path: Path) -> None:
    """A file with a valid checksum and a bad plan (an older version's) does not come into force."""
    PlanFile(tmp_path).save(Saved(plan=malformed()["sum"], highest_epoch=10))
    applier = Applier(PlanFile(tmp_path), SystemClock())
    with capture_logs() as logs:
        await applier.restore()
    assert applier.message is None
    assert applier.highest_epoch == 10
    assert logs[-1]["event"] == "plan_on_disk_refused"


async def test_refused_epochs_are_remembered(tmp_path: Path) -> None:
    """The highest epoch ever seen is reported and survives a restart, also when refused; a number
    beyond belief is not remembered."""
    async with running(Applier(PlanFile(tmp_path), SystemClock())) as applier:
        await applier.offer(plan(9))
        bad = malformed()["sum"]
        bad.epoch = 40
        await applier.offer(bad)
        await applier.offer(plan(40 + EPOCH_JUMP_MAX + 1))
        await eventually(lambda: PlanFile(tmp_path).load().highest_epoch == 40, "saved")
    again = Applier(PlanFile(tmp_path), SystemClock())
    await again.restore()
    assert (again.highest_epoch, again.accepted_epoch) == (40, 9)
