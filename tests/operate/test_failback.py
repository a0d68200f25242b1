"""Returns by command: of one outage, by a ramp that is followed to its end, and aborted."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from controlplane.adapters import admin_transitions as transitions
from controlplane.model.errors import RefusedError
from controlplane.model.ids import RegionName
from controlplane.model.intents import NO_INTENTS, Failback, Intents
from controlplane.model.plan import Phase, Plan, RegionStatus, Route, Standing
from controlplane.runtime.progress import progress
from controlplane.v1 import admin_pb2 as pb
from tests.operate.lab import Lab, mutation

EAST = RegionName("east")
FAILED = Standing(phase=Phase.FAILED, since_ms=7)


def failback(now: Intents, stands: Standing, *, past_gates: bool = False) -> transitions.Change:
    """What a failback of East would write."""
    return transitions.failback(now, EAST, stands, past_gates=past_gates)


def test_a_failback_names_the_outage_it_ends() -> None:
    """Given again for the same outage it changes nothing; for the next one it is another."""
    first = failback(NO_INTENTS, FAILED)
    assert first.after.failback == (Failback(region=EAST, since_ms=7),)
    assert failback(first.after, FAILED).puts == ()
    later = failback(first.after, Standing(phase=Phase.FAILED, since_ms=8))
    assert later.after.failback == (Failback(region=EAST, since_ms=8),)
    assert later.puts


@pytest.mark.parametrize(
    ("phase", "said"), [(Phase.HEALTHY, "neither failed nor drained"), (Phase.RECOVERING, "ramp")]
)
def test_there_is_nothing_to_fail_back_to_a_region_that_is_there(phase: Phase, said: str) -> None:
    """It succeeds, writes nothing that could hold later, and says why."""
    change = failback(NO_INTENTS, Standing(phase=phase, since_ms=7))
    assert (change.puts, change.deletes, change.after) == ((), (), NO_INTENTS)
    assert said in change.note


def test_a_suspect_region_is_not_failed_back() -> None:
    """Success would be a promise that nobody keeps."""
    with pytest.raises(RefusedError, match="suspect"):
        failback(NO_INTENTS, Standing(phase=Phase.SUSPECT, since_ms=7))


def test_gates_are_overridden_by_name() -> None:
    """Those that are closed now, and only when the rule was overridden."""
    gates = Intents(closed_gates=("audit",))
    assert failback(gates, FAILED).after.failback[0].gates == ()
    assert failback(gates, FAILED, past_gates=True).after.failback[0].gates == ("audit",)


def test_a_failback_that_is_over_cannot_be_cancelled_any_more() -> None:
    """Cancelled on its way it drains the region; once it is over nothing is written."""
    assert transitions.abort(NO_INTENTS, EAST, over=False).after.drains[0].region == EAST
    late = transitions.abort(NO_INTENTS, EAST, over=True)
    assert (late.puts, late.deletes, late.after) == ((), (), NO_INTENTS)


def test_a_return_during_which_the_region_fails_again_is_over() -> None:
    """The operation of the first outage does not wait for the end of the second."""
    status = RegionStatus(name=EAST, phase=Phase.FAILED, since_ms=900, cause="no report")
    route = Route(channel="alipay", weights=((EAST, 0), (RegionName("north"), 10_000)))
    plan = Plan(
        epoch=3, routes=(route,), regions=(status,), decided_at_ms=1000, committed_at_ms=61_000
    )
    now = progress("failback", "east", {}, 60_000, plan, plan.epoch)
    assert (now.stage, now.done) == ("failed", True)
    assert "failed again (no report)" in now.message
    before = progress("failback", "east", {}, 60_950, plan, plan.epoch)
    assert (before.stage, before.done) == ("converged", False)


async def wait_for(stub, operation: pb.Operation, stages: list[str]) -> pb.Operation:
    """Follow an operation to its end, noting what it says."""
    async with asyncio.timeout(100):
        while not operation.done:
            operation = await stub.GetOperation(pb.GetOperationRequest(id=operation.id))
            stages.append(operation.message)
            await asyncio.sleep(0.02)
    return operation


async def drained(stub, region: str) -> None:
    """Drain a region and wait until it is."""
    asked = await stub.DrainRegion(pb.DrainRegionRequest(region=region, mutation=mutation()))
    assert (await wait_for(stub, asked, [])).stage == "completed"


def share(plan, region: str) -> int:
    """A region's weight in the first channel."""
    return next(w.weight_bp for w in plan.routes[0].weights if w.region == region)


async def test_a_failback_is_followed_to_the_end_of_its_ramp(lab: Lab) -> None:
    """It says that the ramp goes on, and is completed when the whole share is there. Asked for
    again, or cancelled then, it changes nothing."""
    async with lab.admin() as stub:
        await drained(stub, "east")
        said: list[str] = []
        back = await stub.StartFailback(pb.StartFailbackRequest(region="east", mutation=mutation()))
        done = await wait_for(stub, back, said)
        assert done.stage == "completed"
        assert any("returns by ramp, now with up to" in text for text in said)
        status = await stub.GetStatus(pb.GetStatusRequest())
        assert share(status.plan, "east") == 7000
        again = await stub.StartFailback(
            pb.StartFailbackRequest(region="east", mutation=mutation())
        )
        assert again.done
        assert again.effect.unchanged
        assert "neither failed nor drained" in again.message
        late = await stub.CancelOperation(
            pb.CancelOperationRequest(id=back.id, mutation=mutation())
        )
        assert late.effect.unchanged
        assert "is over" in late.message
        regions = await stub.ListRegions(pb.ListRegionsRequest())
        assert not any(region.drained for region in regions.regions)


async def test_a_ramp_is_aborted_by_cancelling_its_failback(lab: Lab) -> None:
    """The region is at 0 again, drained, and stays so until somebody says otherwise."""
    async with lab.admin() as stub:
        await drained(stub, "east")
        back = await stub.StartFailback(pb.StartFailbackRequest(region="east", mutation=mutation()))
        async with asyncio.timeout(100):
            while share((await stub.GetStatus(pb.GetStatusRequest())).plan, "east") == 0:
                await asyncio.sleep(0.02)
        abort = await stub.CancelOperation(
            pb.CancelOperationRequest(id=back.id, mutation=mutation())
        )
        assert (abort.kind, abort.effect.unchanged) == ("drain", False)
        assert (await wait_for(stub, abort, [])).stage == "completed"
        assert share((await stub.GetStatus(pb.GetStatusRequest())).plan, "east") == 0


async def test_a_closed_gate_refuses_a_failback_unless_it_is_overridden(lab: Lab) -> None:
    """The refusal names rule and gate; breakglass overrides it for this return."""
    async with lab.admin() as stub:
        out = await stub.StartFailover(
            pb.StartFailoverRequest(from_region="south", mutation=mutation())
        )
        assert (await wait_for(stub, out, [])).stage == "completed"
        intents = lab.replicas["east"].admin_intents
        gate = await intents.intent_put("gate", "audit", reason="t", by="t", ttl_s=600)
        await intents.apply("gate-of-a-test", [gate], b"")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartFailback(pb.StartFailbackRequest(region="south", mutation=mutation()))
        assert "closed: audit" in str(refused.value.details())
        back = await stub.StartFailback(
            pb.StartFailbackRequest(region="south", mutation=mutation(override_rules=["gate"]))
        )
        assert (await wait_for(stub, back, [])).stage == "completed"
