"""Who refuses a plan is named, with the reason, by every replica; and nobody's name harms anyone."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.wire_evidence import decode_digest, encode_digest
from controlplane.adapters.xds_stream import Peer
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import Digest, Subscriber, plain_text
from controlplane.model.ids import Epoch, RegionName, ReplicaId
from controlplane.runtime.book import silent_subscribers
from controlplane.runtime.refusals import EVENTS_PER_TICK, Refusals
from controlplane.runtime.subscribers import SubscriberRegistry
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import routing_pb2, routing_pb2_grpc
from tests.operate.lab import Lab
from tests.operate.test_cli import weir


def travels(*subscribers: Subscriber) -> Digest:
    """Return a replica's digest as its peers read it; InvalidInputError when they refuse it."""
    digest = Digest(
        replica=ReplicaId("east-0"), region=RegionName("east"), boot=1, seq=1,
        subscribers=subscribers,
    )  # fmt: skip
    return decode_digest(encode_digest(digest))


@given(st.text(max_size=200), st.text(max_size=200), st.text(max_size=400))
def test_whoever_is_let_in_cannot_silence_the_replica(name: str, region: str, error: str) -> None:
    """A peer takes a digest whole or not at all, so every name that a replica lets in must travel:
    one odd Envoy or watcher would otherwise look like the loss of a region."""
    registry = SubscriberRegistry(10)
    for let_in in (
        lambda: registry.open("watch", name, region, 0),
        lambda: Peer.of(base_pb2.Node(id=name, locality=base_pb2.Locality(region=region))),
    ):
        try:
            let_in()
        except InvalidInputError:
            continue
        told = Subscriber(name=name, kind="envoy", region=region, error=plain_text(error))
        assert travels(told).subscribers == (told,)
    registry.refuse(name, error, 0)
    assert travels(*registry.snapshot(0)).subscribers == registry.snapshot(0)


def test_a_refusal_is_told_once_and_a_storm_is_a_number() -> None:
    """The same refusal is no news at the next tick; another reason is; hundreds are counted."""
    refusals = Refusals()
    bad = [Subscriber(name=f"e{i}", kind="envoy", error="eds: no") for i in range(200)]
    told = refusals.new(bad)
    assert len(told) == EVENTS_PER_TICK + 1
    assert told[-1].message.startswith(f"{200 - EVENTS_PER_TICK} more")
    assert refusals.new(bad) == []
    other = Subscriber(name="e0", kind="envoy", error="cds: no")
    assert [event.message for event in refusals.new([other])] == ["e0 refuses cds: no"]
    assert refusals.new([]) == []
    assert len(refusals.new([other])) == 1


def test_silent_is_who_was_behind_and_is_live_nowhere() -> None:
    """Not who had applied the plan, and not who went to another replica; those of a replica that died
    are named for a minute, one that hangs with its stream open for as long as it does."""

    def told(*entries: tuple[int, int, dict[str, tuple[int, int]]]) -> dict[str, int]:
        digests = [
            (
                Digest(
                    replica=ReplicaId(f"r-{number}"), region=RegionName("east"), boot=1, seq=1,
                    subscribers=tuple(
                        Subscriber(name=name, kind="envoy", applied_epoch=Epoch(epoch), age_ms=age)
                        for name, (epoch, age) in subscribers.items()
                    ),
                ),
                age_ms,
            )
            for number, age_ms, subscribers in entries
        ]  # fmt: skip
        return {s.name: s.age_ms for s in silent_subscribers(digests, Epoch(5))}

    assert told((1, 0, {"done": (5, 9000), "hung": (4, 90_000), "slow": (4, 3000)})) == {
        "hung": 90_000
    }
    assert told((1, 0, {"moved": (4, 9000)}), (2, 100, {"moved": (5, 0)})) == {}
    assert told((1, 9000, {"orphan": (4, 0)})) == {"orphan": 9000}
    assert told((1, 61_000, {"orphan": (4, 0)})) == {}


async def test_a_refusal_at_one_replica_is_seen_at_every_other(lab: Lab) -> None:
    """A sidecar that refuses the plan at south's replica is an alarm, a laggard and an event at
    east's; once it has applied a plan it is none of them."""
    async with lab.channel("south") as south, lab.admin("east") as east:
        stub = routing_pb2_grpc.RoutingServiceStub(south)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.WatchPlan(
                routing_pb2.WatchPlanRequest(subscriber="app", region="so\nuth")
            ):
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        watching = stub.WatchPlan(routing_pb2.WatchPlanRequest(subscriber="app", region="south"))
        plan = await watching.read()
        await stub.AckPlan(
            routing_pb2.AckPlanRequest(subscriber="app", epoch=plan.epoch, error="no\nroute")
        )
        await _until(east, lambda status: "app refuses no route" in status.alarms)
        status = await east.GetStatus(pb.GetStatusRequest())
        assert [(s.subscriber, s.error) for s in status.laggards if s.error] == [
            ("app", "no route")
        ]
        found = await east.ListEvents(pb.ListEventsRequest(page_size=100))
        while not any(e.kind == "xds_nack" and "app" in e.message for e in found.events):
            await asyncio.sleep(0.05)
            found = await east.ListEvents(pb.ListEventsRequest(page_size=100))
        await stub.AckPlan(routing_pb2.AckPlanRequest(subscriber="app", epoch=plan.epoch))
        await _until(east, lambda status: not status.alarms)
        watching.cancel()
    assert Epoch(plan.epoch) > 0


async def test_who_hangs_is_named_at_every_replica_and_never_counted_as_having_applied(
    lab: Lab,
) -> None:
    """A sidecar that takes the plan at south's replica and says nothing is a laggard at east's, and
    after five seconds silent there, with its epoch; a word from it, and it is neither."""
    async with lab.channel("south") as south, lab.admin("east") as east:
        stub = routing_pb2_grpc.RoutingServiceStub(south)
        watching = stub.WatchPlan(routing_pb2.WatchPlanRequest(subscriber="hung", region="south"))
        plan = await watching.read()

        def named(found: Any) -> list[tuple[str, int]]:
            return [(s.subscriber, s.applied_epoch) for s in found if s.subscriber == "hung"]

        await _until(east, lambda status: named(status.laggards) == [("hung", 0)])
        await _until(east, lambda status: named(status.silent) == [("hung", 0)])
        assert not named((await east.GetStatus(pb.GetStatusRequest())).laggards)
        shown = (await weir(lab, "status")).stdout
        assert "not heard of, and behind when last seen: " in shown
        assert re.search(r"hung \(at 0, silent for \d+\.\d s\)", shown)
        assert "behind when last heard of: hung" in (await weir(lab, "doctor")).stdout
        await stub.AckPlan(routing_pb2.AckPlanRequest(subscriber="hung", epoch=plan.epoch))
        await _until(east, lambda s: not named(s.silent) and not named(s.laggards))
        watching.cancel()


async def _until(stub: Any, condition: Any) -> None:
    """Ask for the status until it is as wanted; the test's own limit ends the wait."""
    while not condition(await stub.GetStatus(pb.GetStatusRequest())):
        await asyncio.sleep(0.05)
