"""What stands by an operator's word: renewed with another end, told with who, why and until when."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

import grpc
import pytest

from controlplane.adapters.wire import unix_ms
from controlplane.model.intents import Intents
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import common_pb2
from tests.operate.lab import Lab, mutation
from tests.operate.test_changes import wait
from tests.operate.test_cli import weir

OPERATE = Path(__file__).parents[2] / "docs/operate.md"
WEIGHTS = [common_pb2.RegionWeight(region="north", weight_bp=10_000)]


def orders_of(status: pb.GetStatusResponse) -> dict[str, pb.Order]:
    """What stands, by kind."""
    return {order.kind: order for order in status.orders}


def weights(status: pb.GetStatusResponse) -> list:
    """What every region gets of every channel."""
    return [(r.channel, w.region, w.weight_bp) for r in status.plan.routes for w in r.weights]


async def until(stub, condition) -> pb.GetStatusResponse:
    """Ask for the status until it is as wanted; the test's own limit ends the wait."""
    while not condition(status := await stub.GetStatus(pb.GetStatusRequest())):
        await asyncio.sleep(0.05)
    return status


def asked(kind: str, **fields) -> tuple[str, object]:
    """A method and its request."""
    change = mutation(**fields)
    return {
        "drain": ("DrainRegion", pb.DrainRegionRequest(region="south", mutation=change)),
        "failover": ("StartFailover", pb.StartFailoverRequest(from_region="south", mutation=change)),
        "freeze": ("Freeze", pb.FreezeRequest(mutation=change)),
        "override": (
            "SetOverride",
            pb.SetOverrideRequest(channel="unionpay", weights=WEIGHTS, mutation=change),
        ),
    }[kind]  # fmt: skip


async def make(stub, kind: str, **fields) -> pb.Operation:
    """Ask for a change."""
    method, request = asked(kind, **fields)
    return await getattr(stub, method)(request)


@pytest.mark.parametrize("kind", ["drain", "failover", "freeze", "override"])
async def test_said_again_with_another_end_it_takes_that_end(lab: Lab, kind: str) -> None:
    """Longer or sooner, as an operation and an event of its own, and nothing moves; the same request
    again is the same operation."""
    async with lab.admin() as stub, lab.admin("north") as north:
        await wait(stub, await make(stub, kind, ttl_s=600))
        before = await until(stub, lambda s: kind in orders_of(s))
        for ttl_s in (7_200, 300):
            dry = await make(north, kind, ttl_s=ttl_s, validate_only=True)
            assert "holds until" in dry.message
            assert dry.effect.unchanged
            why = f"for {ttl_s} s"
            method, request = asked(kind, ttl_s=ttl_s, reason=why)
            done = await getattr(north, method)(request)
            assert (done.stage, done.done, done.effect.unchanged) == ("completed", True, True)
            assert "instead of" in done.message
            ends_ms = unix_ms(done.expires_at)
            assert ends_ms - unix_ms(done.created_at) == ttl_s * 1000
            same = await getattr(stub, method)(request)
            assert (same.id, unix_ms(same.expires_at)) == (done.id, ends_ms)
            after = await until(stub, lambda s, why=why: orders_of(s)[kind].reason == why)
            shown_ms = unix_ms(orders_of(after)[kind].expires_at)
            assert shown_ms - unix_ms(orders_of(after)[kind].created_at) == ttl_s * 1000
            assert weights(after) == weights(before)
        events: list[pb.Event] = []
        while len(events) < 2:
            found = await stub.ListEvents(pb.ListEventsRequest(page_size=100))
            events = [e for e in found.events if e.kind == "order_renewed"]
            await asyncio.sleep(0.05)
        assert len(events) == 2
        assert all(f"{kind}" in e.message and "instead of" in e.message for e in events)
        key = lab.replicas["east"].store.keys.intent(
            {"failover": "drain"}.get(kind, kind),
            {"freeze": "all", "override": "unionpay"}.get(kind, "south"),
        )
        kv = await lab.replicas["east"].kv.get(key)
        assert kv is not None
        # etcd ends it at the new time, not only its text
        left_s = await lab.replicas["east"].kv.keepalive(kv.lease)
        assert 0 < left_s <= 300


async def test_another_reason_is_taken_and_nothing_said_anew_changes_nothing(lab: Lab) -> None:
    """A reason brings no earlier end; the same words without an end are "already so"."""
    async with lab.admin() as stub:
        await wait(stub, await make(stub, "freeze", ttl_s=100_000, reason="INC-1"))
        again = await make(stub, "freeze", reason="INC-1")
        assert "already so" in again.message
        assert not again.HasField("expires_at")
        other = await make(stub, "freeze", reason="INC-2")
        assert "(INC-1)" in other.message
        assert unix_ms(other.expires_at) - unix_ms(other.created_at) > 90_000_000
        status = await until(stub, lambda s: orders_of(s)["freeze"].reason == "INC-2")
        assert status.frozen


async def test_what_was_set_past_a_rule_is_not_prolonged_without_it(lab: Lab) -> None:
    """Else one breakglass of a minute would become a week of anybody's."""
    async with lab.admin() as stub:
        out = pb.DrainRegionRequest(region="east", mutation=mutation(ttl_s=900))
        await wait(stub, await stub.DrainRegion(out))
        east = [common_pb2.RegionWeight(region="east", weight_bp=10_000)]
        past = ["override_out"]

        async def fix(ttl_s: int, rules: list[str]) -> pb.Operation:
            return await stub.SetOverride(
                pb.SetOverrideRequest(
                    channel="unionpay", weights=east,
                    mutation=mutation(ttl_s=ttl_s, override_rules=rules),
                )
            )  # fmt: skip

        await fix(600, past)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fix(900, [])
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "past rule override_out" in str(refused.value.details())
        assert (await fix(60, [])).stage == "completed"
        assert (await fix(900, past)).stage == "completed"


async def test_status_tells_every_order_with_who_why_and_until_when(lab: Lab) -> None:
    """At every replica, in tables of 80 columns and in JSON; an end takes the order away."""
    async with lab.admin() as stub, lab.admin("south") as south:
        for kind in ("drain", "freeze", "override"):
            await wait(stub, await make(stub, kind, ttl_s=3_600, reason=f"INC-42 {kind}"))
        status = await until(south, lambda s: len(s.orders) == 3)
        assert {o.target for o in status.orders} == {"south", "", "unionpay"}
        for kind, order in orders_of(status).items():
            assert order.by
            assert order.reason == f"INC-42 {kind}"
            assert unix_ms(order.expires_at) - unix_ms(order.created_at) == 3_600_000
            assert not order.local
        text = (await weir(lab, "status")).stdout
        line = next(one for one in text.splitlines() if one.startswith("drain south"))
        assert re.search(r"\d\d:\d\dZ \(in \d\d min\)  \S.*  INC-42 drain$", line), line
        table = text[text.index("ORDER") : text.index("applied by")].splitlines()
        assert len(table) == 5  # a head, three orders, an empty line
        assert max(map(len, table)) <= 80
        data = json.loads((await weir(lab, "status", "-o", "json")).stdout)
        assert {order["kind"] for order in data["orders"]} == {"drain", "freeze", "override"}
        await stub.Unfreeze(pb.UnfreezeRequest(mutation=mutation()))
        await until(south, lambda s: "freeze" not in orders_of(s))


def documented(verb: str) -> str:
    """The shell of docs/operate.md, section Gates, that begins with an etcdctl command."""
    section = OPERATE.read_text().split("### Gates\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return next(block for block in blocks if block.startswith(f"etcdctl {verb} "))


async def shell(lab: Lab, endpoints: list[str], script: str) -> None:
    """Run a documented command as whoever reads it would."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CLUSTER": lab.replicas["east"].me.cluster,
        "ETCDCTL_ENDPOINTS": ",".join(endpoints),
    }
    await asyncio.to_thread(
        subprocess.run, ["bash", "-ec", script], env=env, check=True, capture_output=True, timeout=60
    )  # fmt: skip


async def test_the_documented_commands_close_and_open_a_gate(
    lab: Lab, operate_etcd: list[str]
) -> None:
    """Written word for word by an external job: failback is refused with who closed it, since when and
    what is open yet, and with the way to open it; opened, it is let through."""
    back = pb.StartFailbackRequest(region="south", mutation=mutation())
    async with lab.admin() as stub:
        await wait(stub, await make(stub, "failover"))
        await shell(lab, operate_etcd, documented("put"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartFailback(back)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert re.search(
            r"closed: reconciliation by reconciliation-job since 20\S+Z: 82 payments of east unclear\. "
            r"Whoever closed it opens it: docs/operate\.md, section Gates\.",
            str(refused.value.details()),
        )
        gate = orders_of(await until(stub, lambda s: "gate" in orders_of(s)))["gate"]
        assert (gate.target, gate.by) == ("reconciliation", "reconciliation-job")
        assert gate.HasField("created_at")
        assert not gate.HasField("expires_at")
        assert "reconciliation-job" in (await weir(lab, "status")).stdout
        await shell(lab, operate_etcd, documented("del"))
        assert (await wait(stub, await stub.StartFailback(back))).stage == "completed"


async def test_a_gate_that_was_written_badly_is_closed(lab: Lab, operate_etcd: list[str]) -> None:
    """A slip of the pen must not let a region back."""
    async with lab.admin() as stub:
        await wait(stub, await make(stub, "failover"))
        script = documented("put").split(" \\\n")[0] + " closed"
        await shell(lab, operate_etcd, script)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StartFailback(
                pb.StartFailbackRequest(
                    region="south", mutation=pb.Mutation(request_id=str(uuid.uuid4()), reason="t")
                )
            )
        assert "closed: reconciliation (its key does not say" in str(refused.value.details())


async def test_an_order_that_ends_while_it_is_renewed_begins_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease may run out between looking and writing: then it is a new drain, judged by the rules,
    and no "nothing moves"."""
    intents = lab.replicas["east"].admin_intents
    read, ended = intents.read, []

    async def ends_meanwhile() -> Intents:
        now = await read()
        if not ended:
            ended.append(await lab.replicas["east"].kv.txn((), [drain]))
        return now

    async with lab.admin() as stub:
        await wait(stub, await make(stub, "drain", ttl_s=600))
        drain = intents.intent_delete("drain", "south")
        monkeypatch.setattr(intents, "read", ends_meanwhile)
        done = await make(stub, "drain", ttl_s=7_200)
        assert ended
        assert not done.effect.unchanged
        assert "already so" not in done.message
