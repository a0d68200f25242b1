"""What operators change: once, explained, refused by rules with numbers."""

from __future__ import annotations

import asyncio
import itertools
import uuid

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from controlplane.adapters.operation_records import TAKEN_OVER
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import common_pb2
from tests.operate.lab import REGIONS, Lab, mutation


def weight(plan: common_pb2.Plan, channel: str, region: str) -> int:
    """Weight of a region in a plan on the wire."""
    routes = {r.channel: {w.region: w.weight_bp for w in r.weights} for r in plan.routes}
    return routes[channel][region]


def details(error: grpc.aio.AioRpcError, kind: type) -> list:
    """Details of one kind in an error."""
    found = []
    for packed in rpc_status.from_call(error).details:
        item = kind()
        if packed.Unpack(item):
            found.append(item)
    return found


async def wait(stub, operation: pb.Operation) -> pb.Operation:
    """Wait for an operation, for long enough on any machine."""
    return await stub.WaitOperation(pb.WaitOperationRequest(id=operation.id, timeout_ms=60_000))


async def test_a_drain_is_carried_out_and_told_by_every_replica(lab: Lab) -> None:
    """A drain accepted by one replica is in the plan of all, and any of them tells its progress."""
    async with lab.admin("south") as south, lab.admin("east") as east:
        asked = await south.DrainRegion(pb.DrainRegionRequest(region="east", mutation=mutation()))
        done = await wait(east, asked)
        assert done.done
        assert done.stage == "completed"
        status = await east.GetStatus(pb.GetStatusRequest())
        assert weight(status.plan, "alipay", "east") == 0
        assert done.commit_ms >= -1


async def test_validation_changes_nothing_and_shows_the_weights_that_follow(lab: Lab) -> None:
    """`validate_only` answers with the plan the change really leads to, and leaves no trace."""
    async with lab.admin() as stub:
        before = await stub.GetStatus(pb.GetStatusRequest())
        seen = await stub.DrainRegion(
            pb.DrainRegionRequest(region="east", mutation=mutation(validate_only=True))
        )
        after = await stub.GetStatus(pb.GetStatusRequest())
        assert after.plan_epoch == before.plan_epoch
        done = await wait(
            stub,
            await stub.DrainRegion(pb.DrainRegionRequest(region="east", mutation=mutation())),
        )
        real = (await stub.GetStatus(pb.GetStatusRequest())).plan
        told = {r.channel: {w.region: w.weight_bp for w in r.weights} for r in seen.effect.routes}
        got = {r.channel: {w.region: w.weight_bp for w in r.weights} for r in real.routes}
        assert done.done
        assert told == got


async def test_rules_refuse_with_name_numbers_and_a_way_around(lab: Lab) -> None:
    """Draining the last region that serves a channel is refused by name; nothing changes."""
    async with lab.admin() as stub:
        await wait(
            stub, await stub.DrainRegion(pb.DrainRegionRequest(region="east", mutation=mutation()))
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.DrainRegion(pb.DrainRegionRequest(region="north", mutation=mutation()))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        (failure,) = details(refused.value, error_details_pb2.PreconditionFailure)
        assert failure.violations[0].subject == "channel_served"
        assert "unionpay" in failure.violations[0].description
        (info,) = details(refused.value, error_details_pb2.ErrorInfo)
        assert info.domain == "weir"
        regions = (await stub.ListRegions(pb.ListRegionsRequest())).regions
        assert {r.name: r.drained for r in regions} == {
            "east": True,
            "north": False,
            "south": False,
        }
        # somebody who may break glass can, knowingly
        forced = await stub.DrainRegion(
            pb.DrainRegionRequest(
                region="north",
                mutation=mutation(override_rules=["channel_served", "capacity", "min_regions"]),
            )
        )
        assert forced.kind == "drain"


async def test_an_override_must_expire_sum_up_and_stay_in_its_channel(lab: Lab) -> None:
    """Overrides without a time, with a wrong sum or a region that does not serve are refused."""

    def asked(weights: dict[str, int], **fields: object) -> pb.SetOverrideRequest:
        return pb.SetOverrideRequest(
            channel="unionpay",
            weights=[common_pb2.RegionWeight(region=r, weight_bp=w) for r, w in weights.items()],
            mutation=mutation(**fields),
        )

    async with lab.admin() as stub:
        for request, field in (
            (asked({"east": 10_000}), "mutation.ttl_s"),
            (asked({"east": 9_000}, ttl_s=60), "weights"),
            (asked({"east": 5_000, "south": 5_000}, ttl_s=60), "weights.region"),
            (asked({"east": 12_000, "north": -2_000}, ttl_s=60), "weights.weight_bp"),
            (asked({"east": 10_000}, ttl_s=60, reason=" "), "mutation.reason"),
            (asked({"east": 10_000}, ttl_s=60, request_id="7"), "mutation.request_id"),
            (asked({"east": 10_000}, ttl_s=10**9), "mutation.ttl_s"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.SetOverride(request)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            (bad,) = details(refused.value, error_details_pb2.BadRequest)
            assert bad.field_violations[0].field == field

        async def north() -> int:
            return weight((await stub.GetStatus(pb.GetStatusRequest())).plan, "unionpay", "north")

        usual = await north()
        done = await wait(
            stub, await stub.SetOverride(asked({"east": 4_000, "north": 6_000}, ttl_s=600))
        )
        assert done.done
        assert await north() == 6_000 != usual
        # another one takes its place for 2 s and ends by itself
        await stub.SetOverride(asked({"east": 2_000, "north": 8_000}, ttl_s=2))
        async with asyncio.timeout(100):
            while await north() != usual:
                await asyncio.sleep(0.1)


async def test_one_request_id_has_one_effect_at_three_replicas_and_two_leaders(lab: Lab) -> None:
    """A hundred copies of one request are under way at three replicas when the leader is stopped; who
    gets no answer asks the next replica. One operation, one answer."""
    request = pb.DrainRegionRequest(region="south", mutation=mutation(request_id=str(uuid.uuid4())))
    led = lab.leader()
    assert led is not None
    living = [name for name in REGIONS if name != led]

    async with lab.admin("east") as a, lab.admin("north") as b, lab.admin("south") as c:
        stubs = dict(zip(REGIONS, (a, b, c), strict=True))

        async def ask(number: int) -> pb.Operation:
            asked = [REGIONS[number % 3], *living]
            for region in itertools.cycle(asked):
                try:
                    return await stubs[region].DrainRegion(request, timeout=90)
                except grpc.aio.AioRpcError as error:
                    # CANCELLED: it had come in when the replica stopped, and was not begun
                    if error.code().name not in {"UNAVAILABLE", "CANCELLED"}:
                        raise
                    await asyncio.sleep(0.1)
            raise AssertionError

        asking = [asyncio.ensure_future(ask(number)) for number in range(100)]
        _, under_way = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert under_way
        await lab.stop(led)
        answers = await asyncio.gather(*asking)
        answers += await asyncio.gather(*(ask(living.index(name)) for name in living))
        assert len({operation.id for operation in answers}) == 1
        done = await wait(stubs[living[0]], answers[-1])
        assert done.done
        kvs = await lab.replicas[living[0]].store._intents.operations()
        assert len(kvs) == 1


async def test_an_id_used_for_another_request_is_refused(lab: Lab) -> None:
    """The same request_id with another content, or with the same content for another method, is a
    mistake of the caller, not a repeat: nobody may believe that it was done."""
    told = mutation()
    async with lab.admin() as stub:
        await stub.Freeze(pb.FreezeRequest(mutation=told))
        for call in (
            stub.DrainRegion(pb.DrainRegionRequest(region="south", mutation=told)),
            stub.Unfreeze(pb.UnfreezeRequest(mutation=told)),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "draw a new UUID" in str(refused.value.details())


async def test_asking_again_for_what_holds_changes_nothing(lab: Lab) -> None:
    """A second drain of a drained region succeeds, says so, and no new plan follows."""
    async with lab.admin() as stub:
        await wait(
            stub, await stub.DrainRegion(pb.DrainRegionRequest(region="south", mutation=mutation()))
        )
        before = (await stub.GetStatus(pb.GetStatusRequest())).plan_epoch
        again = await stub.DrainRegion(pb.DrainRegionRequest(region="south", mutation=mutation()))
        assert again.done
        assert again.effect.unchanged
        assert (await stub.GetStatus(pb.GetStatusRequest())).plan_epoch == before


async def test_two_operators_cannot_drain_the_last_regions_together(lab: Lab) -> None:
    """Drains that race are decided one after the other: together they may not break a rule."""
    async with lab.admin("east") as a, lab.admin("north") as b, lab.admin("south") as c:
        answers = await asyncio.gather(
            *(
                stub.DrainRegion(
                    pb.DrainRegionRequest(region=name, mutation=mutation()), timeout=90
                )
                for stub, name in zip((a, b, c), REGIONS, strict=True)
            ),
            return_exceptions=True,
        )
        refused = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        assert refused
        assert all(e.code() is grpc.StatusCode.FAILED_PRECONDITION for e in refused)
        drained = [
            r.name for r in (await a.ListRegions(pb.ListRegionsRequest())).regions if r.drained
        ]
        assert not {"east", "north"} <= set(drained)


async def test_an_etag_notices_that_something_happened_in_between(lab: Lab) -> None:
    """A change decided on an old state is refused when the caller asked for that."""
    async with lab.admin() as stub:
        seen = await stub.Freeze(pb.FreezeRequest(mutation=mutation(validate_only=True)))
        await stub.DrainRegion(pb.DrainRegionRequest(region="south", mutation=mutation()))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Freeze(pb.FreezeRequest(mutation=mutation(etag=seen.etag)))
        assert details(refused.value, error_details_pb2.ErrorInfo)[0].metadata["rule"] == "etag"


async def test_a_drill_leaves_holds_and_returns(lab: Lab) -> None:
    """A drill takes the region out, times it, brings it back and says how long it took."""
    async with lab.admin() as stub:
        drill = await stub.StartDrill(
            pb.StartDrillRequest(region="south", hold_s=5, mutation=mutation())
        )
        stages = []
        async with asyncio.timeout(100):
            while not drill.done:
                drill = await stub.GetOperation(pb.GetOperationRequest(id=drill.id))
                if drill.stage not in stages:
                    stages.append(drill.stage)
                await asyncio.sleep(0.05)
        assert drill.stage == "completed", drill.message
        assert "holding" in stages
        assert 0 <= drill.converge_ms < 30_000
        plan = (await stub.GetStatus(pb.GetStatusRequest())).plan
        assert weight(plan, "alipay", "south") > 0


async def test_a_cancelled_drain_is_undone(lab: Lab) -> None:
    """CancelOperation asks for the opposite; the region is in service again."""
    async with lab.admin() as stub:
        drain = await stub.DrainRegion(pb.DrainRegionRequest(region="south", mutation=mutation()))
        await wait(stub, drain)
        undo = await stub.CancelOperation(
            pb.CancelOperationRequest(id=drain.id, mutation=mutation())
        )
        assert undo.kind == "undrain"
        async with asyncio.timeout(100):
            while any(r.drained for r in (await stub.ListRegions(pb.ListRegionsRequest())).regions):
                await asyncio.sleep(0.05)


async def test_an_order_can_be_taken_back_at_once_and_a_drill_does_not_end_one(lab: Lab) -> None:
    """A failover by order is undone by a failback without waiting, and a drill of a region that is out is
    refused: it would bring it back."""
    async with lab.admin() as stub:
        asked = await stub.StartFailover(
            pb.StartFailoverRequest(from_region="south", mutation=mutation())
        )
        assert (await wait(stub, asked)).stage == "completed"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartDrill(pb.StartDrillRequest(region="south", mutation=mutation()))
        assert "south is out already" in str(refused.value.details())
        back = await stub.StartFailback(
            pb.StartFailbackRequest(region="south", mutation=mutation())
        )
        assert not back.effect.refusals


async def test_who_wants_a_region_out_during_its_drill_gets_that(lab: Lab) -> None:
    """The drill's end brings nothing back that an operator has asked for meanwhile, gradually or at once; the
    drill says so."""
    async with lab.admin() as stub:
        drill = await stub.StartDrill(
            pb.StartDrillRequest(region="south", hold_s=1, mutation=mutation())
        )
        asked = await stub.DrainRegion(pb.DrainRegionRequest(region="south", mutation=mutation()))
        assert not asked.effect.unchanged
        drill = await wait(stub, drill)
        assert (drill.stage, drill.message) == ("failed", TAKEN_OVER)
        regions = {r.name: r for r in (await stub.ListRegions(pb.ListRegionsRequest())).regions}
        assert regions["south"].drained
        stored = (await lab.replicas["east"].store.intents()).drains
        assert [(d.region, d.drill) for d in stored] == [("south", False)]


async def test_no_drill_while_automatic_change_is_frozen(lab: Lab) -> None:
    """Its region could not return by itself: refused, with the reason of the freeze."""
    async with lab.admin() as stub:
        await stub.Freeze(pb.FreezeRequest(mutation=mutation(reason="night of sales")))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartDrill(pb.StartDrillRequest(region="south", mutation=mutation()))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "night of sales" in str(refused.value.details())
        assert (await lab.replicas["east"].store.intents()).drains == ()
