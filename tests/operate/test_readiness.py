"""How ready a region is: bounds of its own, and a lag that somebody tells."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2

from controlplane.adapters import admin_transitions as transitions
from controlplane.adapters.etcd_intents import parse_intents
from controlplane.adapters.etcd_keys import Keys
from controlplane.config import ConfigError, parse
from controlplane.model.ids import RegionName
from controlplane.model.intents import NO_INTENTS, Readiness
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc
from tests.operate.lab import Lab, mutation
from tests.operate.test_changes import details

FILE = {
    "regions": {
        "east": {"role": "primary", "share_bp": 6000, "capacity_tps": 10},
        "north": {"role": "standby", "share_bp": 4000, "capacity_tps": 10},
    },
    "channels": {"alipay": {"regions": ["east", "north"]}},
    "coordination": {"endpoints": ["127.0.0.1:3"]},
    "policy": {"ready_lag_max_ms": 5_000, "ready_headroom_bp": 500, "ready_drill_max_age_h": 9},
}
NORTH = RegionName("north")


def configured(**north: object) -> str:
    """The file with more keys for North."""
    regions = {**FILE["regions"], "north": {**FILE["regions"]["north"], **north}}
    return yaml.safe_dump({**FILE, "regions": regions})


def test_a_region_has_bounds_of_its_own_under_the_same_keys() -> None:
    """What a region names holds for it, 0 included; what it leaves out is the policy's."""
    topology = parse(
        configured(ready_lag_max_ms=900, ready_drill_max_age_h=0, ready_queue="wal")
    ).topology()
    east, north = (topology.ready(region) for region in topology.regions)
    assert (east.queue, east.lag_max_ms, east.headroom_bp, east.drill_max_age_h) == (
        "replication", 5_000, 500, 9,
    )  # fmt: skip
    assert (north.queue, north.lag_max_ms, north.headroom_bp, north.drill_max_age_h) == (
        "wal", 900, 500, 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"ready_lag_max_ms": -1}, {"ready_headroom_bp": 10_001}, {"ready_lag_ms": 1}]
)
def test_a_bound_that_makes_no_sense_is_refused(wrong: dict[str, int]) -> None:
    """Out of range or unknown: the file is refused with the key."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        parse(configured(**wrong))


def test_what_is_told_is_written_and_read_back() -> None:
    """Telling anew replaces, clearing deletes, clearing nothing is no change; a record without an
    end is left out rather than believed for ever."""
    first = transitions.readiness(NO_INTENTS, NORTH, 250, 7)
    assert first.puts == (("readiness", "north", {"lag_ms": 250}),)
    again = transitions.readiness(first.after, NORTH, 0, 9)
    assert again.after.readiness == (Readiness(region=NORTH, lag_ms=0, until_ms=9),)
    cleared = transitions.readiness(again.after, NORTH, None, 0)
    assert cleared.after == NO_INTENTS
    assert cleared.deletes == (("readiness", "north"),)
    nothing = transitions.readiness(NO_INTENTS, NORTH, None, 0)
    assert nothing.puts == nothing.deletes == ()

    keys = Keys("c")
    found = parse_intents(
        keys,
        {
            keys.intent(
                "readiness", "north"
            ): b'{"lag_ms":4,"expires_at":"2026-01-01T00:00:00.250Z"}',
            keys.intent("readiness", "south"): b'{"lag_ms":4}',
        },
    )
    assert found.readiness == (Readiness(region=NORTH, lag_ms=4, until_ms=1_767_225_600_250),)


def reload(lab: Lab, tmp_path: Path, **north: object) -> None:
    """Give North bounds of its own at every replica, by SIGHUP's way."""
    for name, replica in lab.replicas.items():
        data = replica.config.model_dump(mode="json", exclude_unset=True)
        data["regions"]["north"] |= north
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        replica.reload(path)
        assert replica.topology.ready(replica.topology.region(NORTH)).lag_max_ms


def drain(**fields: object) -> pb.DrainRegionRequest:
    """East's payments go to North, whose lag then counts."""
    return pb.DrainRegionRequest(region="east", mutation=mutation(**fields))


def says(lag_ms: int | None, **fields: object) -> pb.SetReadinessRequest:
    """Say North's lag."""
    return pb.SetReadinessRequest(
        region="north", replication_lag_ms=lag_ms, mutation=mutation(**fields)
    )


async def refused_rules(stub: admin_pb2_grpc.AdminServiceAsyncStub) -> list[str]:
    """What would refuse that East is drained."""
    seen = await stub.DrainRegion(drain(validate_only=True))
    return [f"{r.rule} {r.message}" for r in seen.effect.refusals]


async def told_of_north(stub: admin_pb2_grpc.AdminServiceAsyncStub) -> int | None:
    """North's lag as a replica shows it."""
    answer = await stub.ListRegions(pb.ListRegionsRequest())
    (north,) = (r for r in answer.regions if r.name == "north")
    return north.replication_lag_ms if north.HasField("replication_lag_ms") else None


async def test_a_lag_that_is_told_is_judged_shown_and_expires(lab: Lab, tmp_path: Path) -> None:
    """Unknown, too much, enough, then unknown again when it has expired: the rule follows, at another
    replica than the one that was told; every replica shows it; no plan and no etag changes."""
    reload(lab, tmp_path, ready_lag_max_ms=2_000)
    async with lab.admin("east") as east, lab.admin("south") as south:
        assert any("lag of north is not known" in line for line in await refused_rules(south))
        before = await east.Freeze(pb.FreezeRequest(mutation=mutation(validate_only=True)))
        done = await east.SetReadiness(says(60_000))
        assert (done.kind, done.target, done.stage, done.done) == (
            "readiness", "north", "completed", True,
        )  # fmt: skip
        assert done.HasField("expires_at")
        assert any("north lags 60 s behind" in line for line in await refused_rules(south))
        async with asyncio.timeout(60):
            while await told_of_north(south) != 60_000:
                await asyncio.sleep(0.05)
        after = await east.Freeze(pb.FreezeRequest(mutation=mutation(validate_only=True)))
        assert after.etag == before.etag

        seen = await east.SetReadiness(says(1_000, validate_only=True))
        assert seen.validate_only
        assert any("north lags 60 s behind" in line for line in await refused_rules(south))
        request = says(1_000, ttl_s=600)
        first, again = await east.SetReadiness(request), await south.SetReadiness(request)
        assert first.id == again.id
        assert await refused_rules(south) == []
        await east.SetReadiness(says(1_000, ttl_s=2))  # the same, for no longer than that
        async with asyncio.timeout(100):
            while not await refused_rules(south):
                await asyncio.sleep(0.1)

        await east.SetReadiness(says(1_000))
        undone = await east.SetReadiness(says(None))
        assert not undone.effect.unchanged
        assert await refused_rules(south)
        assert (await east.SetReadiness(says(None))).effect.unchanged


async def test_an_agent_tells_of_its_own_region_only(tls_lab: Lab) -> None:
    """North's agent may tell North's lag, and nothing of East; it may not override a rule."""
    assert tls_lab.ca is not None
    who = tls_lab.ca.issue("agent", "north", "north-agent-9")
    async with tls_lab.admin("east", who) as stub:
        done = await stub.SetReadiness(says(5))
        assert done.by == "spiffe://weir.dev/weir/agent/north/north-agent-9"
        request = says(5)
        request.region = "east"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SetReadiness(request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "speaks for north" in str(refused.value.details())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SetReadiness(says(5, override_rules=["capacity"]))
        assert "breakglass" in str(refused.value.details())


@pytest.mark.parametrize(
    ("lag_ms", "ttl_s", "field"),
    [(-1, 0, "replication_lag_ms"), (2**62, 0, "replication_lag_ms"), (1, 90_000, "mutation.ttl_s")],
)  # fmt: skip
async def test_nonsense_is_refused_by_its_field(
    lab: Lab, lag_ms: int, ttl_s: int, field: str
) -> None:
    """A negative or endless lag, or one that shall count for more than a day, changes nothing."""
    async with lab.admin() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SetReadiness(says(lag_ms, ttl_s=ttl_s))
        (bad,) = details(refused.value, error_details_pb2.BadRequest)
        assert bad.field_violations[0].field == field
        assert (await lab.replicas["east"].store.intents()).readiness == ()


async def test_a_lag_told_before_etcd_went_counts_until_its_end(lab: Lab) -> None:
    """Without etcd nobody expires what was told: a replica leaves it out itself once it is over."""
    replica = lab.replicas["east"]
    now_ms = replica.clock.wall_ms()
    told = [Readiness(region=NORTH, lag_ms=9, until_ms=now_ms + ahead) for ahead in (-1, 600_000)]
    views = replace(replica.views, intents=lambda: replace(NO_INTENTS, readiness=(told.pop(0),)))
    north = replica.topology.region(NORTH)
    assert views.lag_ms(north) is None
    assert views.lag_ms(north) == 9
