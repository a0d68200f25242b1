"""What an agent takes for a plan, and what it does when the disk or the data plane does not."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from agents import apply
from agents.apply import Applier
from agents.store import PlanFile, Saved
from controlplane.clock import SystemClock
from controlplane.dev.servers import scratch_root
from controlplane.model.epochs import EPOCH_JUMP_MAX
from controlplane.model.errors import UnavailableError
from controlplane.model.plan import Plan
from controlplane.v1 import common_pb2
from tests.agents.plans import malformed, plan
from tests.agents.timing import eventually


class Recorder:
    """A sink that notes what it was given, and can refuse."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bool]] = []
        self.refuse = False

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Note the plan."""
        if self.refuse:
            raise OSError("disk of the data plane is full")
        self.taken.append((plan.epoch, confirmed))


@contextlib.asynccontextmanager
async def running(applier: Applier) -> AsyncIterator[Applier]:
    """Run the applier's background work within the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(applier.run())
        try:
            yield applier
        finally:
            task.cancel()


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


@settings(max_examples=25, deadline=None)
@given(epochs=st.lists(st.integers(-2, 30), min_size=1, max_size=12), seed=st.integers())
def test_epochs_only_rise(epochs: list[int], seed: int) -> None:
    """Property: for any order of plans, good and bad, the applied epoch never goes back, and it is
    the highest good one."""
    rng = random.Random(seed)

    async def run() -> None:
        file = _MemoryFile()
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


class _MemoryFile(PlanFile):
    def __init__(self) -> None:
        super().__init__(scratch_root())
        self.saved = Saved()
        self.failing = False
        self.tries = 0

    def load(self) -> Saved:
        return self.saved

    def save(self, saved: Saved) -> None:
        self.tries += 1
        if self.failing:
            raise UnavailableError("No space left on device")
        self.saved = saved


class _HangingFile(_MemoryFile):
    """A disk that hangs until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.writing, self.release = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def save(self, saved: Saved) -> None:
        self._loop.call_soon_threadsafe(self.writing.set)
        asyncio.run_coroutine_threadsafe(self.release.wait(), self._loop).result()
        super().save(saved)


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


async def test_full_disk_does_not_stop_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full disk plans go on into force; it is said once, tried again, and said when well."""
    monkeypatch.setattr(apply, "DISK_RETRY_MS", 10)
    file = _MemoryFile()
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


async def test_flush_at_the_end(tmp_path: Path) -> None:
    """What the disk did not take while running is written once more at the end."""
    applier = Applier(PlanFile(tmp_path), SystemClock())
    async with running(applier):
        await applier.offer(plan(3))
    (tmp_path / "plan").unlink()
    applier._unsaved.set()
    await applier.flush()
    assert PlanFile(tmp_path).load().plan == plan(3)


def over(
    epoch: int, revision: int, left_ms: int, east: int = 0, replica: str = "east-0"
) -> common_pb2.Plan:
    """A local override of a plan as a replica sends it."""
    message = plan(epoch, east)
    message.local.revision, message.local.left_ms = revision, left_ms
    message.local.replica = replica
    return message


class Weights(Recorder):
    """A sink that notes the weight of the first region."""

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Note the weight."""
        if self.refuse:
            raise OSError("the data plane is full")
        self.taken.append((plan.routes[0].weights[0][1], confirmed))


async def test_a_local_override_holds_above_its_epoch_and_never_on_disk(tmp_path: Path) -> None:
    """It reaches the sinks under the same epoch; an older revision, another epoch or a bad one does not."""
    sink = Weights()
    async with running(Applier(PlanFile(tmp_path), SystemClock(), [sink])) as applier:
        await applier.offer(over(7, 1, 60_000))  # without the plan underneath: nothing
        assert sink.taken == []
        await applier.offer(plan(7, 5000))
        verdict = await applier.offer(over(7, 5, 60_000, 1000))
        assert (verdict.epoch, verdict.error) == (7, "")
        for refused in (over(7, 4, 60_000, 2000), over(6, 9, 60_000), over(8, 9, 60_000)):
            await applier.offer(refused)
        assert (await applier.offer(over(7, 9, 10**9, 3000))).error
        assert [weight for weight, _ in sink.taken] == [5000, 1000]
        await applier.flush()
        saved = PlanFile(tmp_path).load().plan
        assert saved is not None
        assert saved == plan(7, 5000)


class Advancing(SystemClock):
    """The machine's clock, put forward by hand."""

    ahead_ms = 0

    def monotonic_ms(self) -> int:
        """Milliseconds of the machine, and what was put forward."""
        return super().monotonic_ms() + self.ahead_ms


@pytest.mark.parametrize("how", ["ended", "expired", "confirmed", "newer"])
async def test_a_local_override_ends(tmp_path: Path, how: str) -> None:
    """Its end, its time, a quorum's confirmation or a newer plan give back the committed weights."""
    sink, clock = Weights(), Advancing()
    async with running(Applier(PlanFile(tmp_path), clock, [sink])) as applier:
        await applier.offer(plan(7, 5000))
        await applier.offer(over(7, 5, 1_800_000, 1000))
        assert sink.taken[-1][0] == 1000
        if how == "ended":
            await applier.offer(over(7, 6, 0, 5000))
        elif how == "confirmed":
            applier.confirm(7)
        elif how == "newer":
            await applier.offer(plan(8, 5000))
        else:
            clock.ahead_ms = 1_800_000
        await eventually(lambda: sink.taken[-1][0] == 5000, "the committed weights")


async def test_neither_an_override_nor_its_end_nor_another_try_confirms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A confirmation counts once: what must not outlive the control plane is not renewed by an override
    that a replica lays without a quorum, by its end, its expiry, or a sink that is tried again."""
    monkeypatch.setattr(apply, "SINK_RETRY_MS", 10)
    sink, clock = Weights(), Advancing()
    async with running(Applier(PlanFile(tmp_path), clock, [sink])) as applier:
        await applier.offer(plan(7, 5000))
        applier.confirm(7)
        await eventually(lambda: sink.taken[-1] == (5000, True), "confirmed")
        sink.taken.clear()
        await applier.offer(over(7, 5, 60_000, 1000))
        await applier.offer(over(7, 6, 0, 5000))
        await applier.offer(over(7, 7, 60_000, 1000))
        clock.ahead_ms = 60_000
        await eventually(lambda: len(sink.taken) == 4, "expired")
        assert sink.taken == [(1000, False), (5000, False), (1000, False), (5000, False)]
        sink.refuse = True
        applier.confirm(7)
        with capture_logs() as logs:
            await eventually(lambda: bool(logs), "refused")
        sink.refuse = False
        await applier.offer(over(7, 8, 60_000, 2000))
        assert sink.taken[-1] == (2000, False)
        await applier.offer(plan(8, 4000))
        assert (4000, True) in sink.taken  # as it was: a newer plan at an agent that knows one


async def test_the_end_of_an_override_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data plane that does not take the end of an override gets it when it is well again."""
    monkeypatch.setattr(apply, "SINK_RETRY_MS", 10)
    sink = Weights()
    async with running(Applier(PlanFile(tmp_path), SystemClock(), [sink])) as applier:
        await applier.offer(plan(7, 5000))
        await applier.offer(over(7, 5, 60_000, 1000))
        sink.refuse = True
        await applier.offer(over(7, 6, 0, 5000))
        assert sink.taken[-1][0] == 1000
        sink.refuse = False
        await eventually(lambda: sink.taken[-1][0] == 5000, "the committed weights")


async def test_revisions_of_two_replicas_are_not_compared(tmp_path: Path) -> None:
    """Each replica numbers its own overrides: the one that is followed now is heard, whatever its
    number, and its end takes away no other's."""
    sink = Weights()
    async with running(Applier(PlanFile(tmp_path), SystemClock(), [sink])) as applier:
        await applier.offer(plan(7, 5000))
        await applier.offer(over(7, 900, 60_000, 1000))
        await applier.offer(over(7, 950, 0, 5000, "north-0"))
        assert sink.taken[-1][0] == 1000
        await applier.offer(over(7, 20, 60_000, 2000, "north-0"))
        assert sink.taken[-1][0] == 2000
        await applier.offer(over(7, 19, 60_000, 3000, "north-0"))
        assert sink.taken[-1][0] == 2000
        await applier.offer(over(7, 21, 0, 5000, "north-0"))
        assert sink.taken[-1][0] == 5000
