"""Local overrides at an agent: above one epoch, for a time, and never on its disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agents import apply
from agents.apply import Applier
from agents.store import PlanFile
from controlplane.clock import SystemClock
from controlplane.model.plan import Plan
from controlplane.v1 import common_pb2
from tests.agents.appliers import Recorder, running
from tests.agents.plans import plan
from tests.agents.timing import eventually


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
