"""Local changes at one replica without a quorum: the changer and the override it holds, in one process."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from controlplane.adapters import admin_transitions as transitions
from controlplane.adapters.admin_local import LocalChanger
from controlplane.adapters.admin_ports import EffectView, Refusal
from controlplane.decision.local import local_plan
from controlplane.model.errors import InvalidInputError, RefusedError
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Plan, RegionStatus, Route
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.local import LocalOverrides
from controlplane.simulation.demo import demo_topology
from controlplane.v1 import admin_pb2 as pb
from tests.agents.timing import ManualClock

TOPOLOGY = demo_topology()
SOUTH = RegionName("south")


def committed(epoch: int = 7) -> Plan:
    """Everybody well, weights by the configured shares."""
    shares = {region.name: region.share_bp for region in TOPOLOGY.regions}
    routes = []
    for channel in TOPOLOGY.channels:
        weights = {name: shares[name] for name in channel.regions}
        first = max(weights, key=lambda name: weights[name])
        weights[first] += 10_000 - sum(weights.values())
        routes.append(Route(channel=channel.name, weights=tuple(sorted(weights.items()))))
    return Plan(
        epoch=Epoch(epoch),
        routes=tuple(sorted(routes, key=lambda r: r.channel)),
        regions=tuple(sorted((RegionStatus(name=n) for n in shares), key=lambda s: s.name)),
    )


class Records:
    """Keeps what was recorded."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, str, str]] = []

    def note(
        self, kind: str, *, target: str, by: str, reason: str, message: str, op_id: str = ""
    ) -> None:
        """Keep kind, reason and message."""
        del target, by, op_id
        self.kept.append((kind, reason, message))


class Island:
    """One replica that reaches nobody."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.topology = TOPOLOGY
        self.board = PlanBoard(TOPOLOGY)
        self.board.adopt(committed())
        self.records = Records()
        self.sent: list[Plan] = []
        self.refusals: tuple[Refusal, ...] = ()
        self.local = LocalOverrides(
            replica="east-0",
            board=self.board,
            topology=lambda: self.topology,
            coordinated=lambda: False,
            to_data_planes=self.sent.append,
            noted=self.records,
            clock=self.clock,
        )
        self.changer = LocalChanger(
            replica="east-0",
            local=self.local,
            audit=self.records,
            what_if=self.what_if,
            coordinated=lambda: False,
            caller=lambda _: ("olga", frozenset({"breakglass"})),
            clock=self.clock,
        )

    def what_if(self, intents: Intents) -> EffectView:
        """The routes that follow, and the refusals the test asks for."""
        after = local_plan(TOPOLOGY, committed(), intents)
        return EffectView(routes=after.routes, regions=(), refusals=self.refusals)

    async def make(self, kind: str, ttl_s: int = 0, **mutation: Any) -> pb.Operation:
        """Drain or undrain South, or fix the first channel to East."""
        channel = TOPOLOGY.channels[0].name
        fixed = tuple(
            (name, 10_000 if name == "east" else 0) for name in TOPOLOGY.channels[0].regions
        )
        work: dict[str, Any] = {
            "drain": lambda now: transitions.drain(now, SOUTH, "drain"),
            "undrain": lambda now: transitions.undrain(now, SOUTH),
            "override": lambda now: transitions.override(now, channel, fixed),
            "clear": lambda now: transitions.clear(now, channel),
        }
        request = pb.DrainRegionRequest(
            region=kind,
            mutation=pb.Mutation(
                request_id=str(uuid.uuid4()), reason="test", ttl_s=ttl_s, local=True, **mutation
            ),
        )
        context: Any = None
        return await self.changer.make(request, context, work[kind])


@pytest.mark.parametrize("dry", [False, True])
async def test_nobody_overrides_the_single_writer_here(dry: bool) -> None:
    """Only a committed plan can fence the other writer: `breakglass` with --override-rule is refused, in a
    dry run too, and the refusal does not offer the flag; a plain dry run lists it."""
    island = Island()
    island.refusals = (Refusal(rule="single_writer", message="unionpay has one", remedy=""),)
    with pytest.raises(RefusedError) as refused:
        await island.make("drain", override_rules=["single_writer"], validate_only=dry)
    assert refused.value.rule == "single_writer"
    assert "--override-rule" not in str(refused.value)
    if not dry:
        with pytest.raises(RefusedError, match="Nobody can override"):
            await island.make("drain")
    told = await island.make("drain", validate_only=True)
    assert [r.rule for r in told.effect.refusals] == ["single_writer"]
    assert island.sent == []


async def test_other_rules_can_be_overridden_here() -> None:
    """With `breakglass` the other rules give way, as for everybody."""
    island = Island()
    island.refusals = (Refusal(rule="capacity", message="east is full", remedy=""),)
    with pytest.raises(RefusedError, match="--override-rule capacity"):
        await island.make("drain")
    await island.make("drain", override_rules=["capacity"])
    assert len(island.sent) == 1


async def test_an_etag_is_refused_rather_than_ignored() -> None:
    """Nothing in etcd is compared for a local change, so asking for it is an error that names the field."""
    with pytest.raises(InvalidInputError) as refused:
        await Island().make("drain", etag="abc")
    assert refused.value.field == "mutation.etag"


def weights(island: Island) -> tuple[dict[str, int], dict[str, int]]:
    """Weights of the first channel and of another that South serves, as served now."""
    served = island.board.served
    assert served is not None
    first = TOPOLOGY.channels[0].name
    other = next(c.name for c in TOPOLOGY.channels[1:] if SOUTH in c.regions)
    found = {route.channel: {str(n): bp for n, bp in route.weights} for route in served.routes}
    return found[first], found[other]


async def look(island: Island, ahead_s: float) -> None:
    """Move time on and let the override's keeper look once."""
    island.clock.now_ms += int(ahead_s * 1000)
    held = island.local.held
    assert held is not None
    await island.local._expire(held)


async def test_every_intent_keeps_its_own_end() -> None:
    """A drain for 30 min outlives an override for 10 s that came later, and is not armed anew by it; the
    rest is laid with a new revision, and subscribers may keep it no longer than its first end, and a bit."""
    island = Island()
    plain = weights(island)[1]
    await island.make("drain", 1_800)
    await island.make("override", 10)
    assert weights(island)[0]["east"] == 10_000
    assert weights(island)[1]["south"] == 0
    assert island.sent[-1].local is not None
    assert 10_000 <= island.sent[-1].local.left_ms <= 15_000

    await look(island, 9)
    assert len(island.sent) == 2
    await look(island, 1)
    assert weights(island)[0]["south"] == weights(island)[1]["south"] == 0
    assert weights(island)[0]["east"] < 10_000
    last = island.sent[-1].local
    assert last is not None
    assert last.left_ms == 1_790_000
    assert last.revision > (island.sent[-2].local or last).revision
    assert island.records.kept[-1][1].startswith("override ")

    await look(island, 1_790)
    assert island.local.held is None
    assert weights(island)[1] == plain
    assert island.sent[-1].local is not None
    assert island.sent[-1].local.left_ms == 0


async def test_the_last_one_taken_back_ends_the_override_at_once() -> None:
    """Undoing one of two leaves the other as long as it had; undoing the last leaves nothing held."""
    island = Island()
    await island.make("drain", 60)
    await island.make("override", 600)
    await island.make("undrain", 900)
    held = island.local.held
    assert held is not None
    assert held.until_ms - island.clock.now_ms == 600_000
    assert weights(island)[1]["south"] > 0
    await island.make("clear")
    assert island.local.held is None
    assert island.sent[-1].local is not None
    assert island.sent[-1].local.left_ms == 0
    assert island.records.kept[-2][0] == "local_override_ended"


async def test_asking_again_renews_that_intent_only() -> None:
    """The same request under another id holds on from now instead of being "already so" until it ends."""
    island = Island()
    await island.make("drain", 60)
    await island.make("override", 600)
    island.clock.now_ms += 50_000
    done = await island.make("drain", 60)
    assert not done.effect.unchanged
    assert done.HasField("expires_at")
    await look(island, 59)
    assert weights(island)[1]["south"] == 0
    await look(island, 1)
    assert weights(island)[1]["south"] > 0
    held = island.local.held
    assert held is not None
    assert held.until_ms - island.clock.now_ms == 490_000
    assert (await island.make("undrain")).effect.unchanged  # nothing to take back


async def test_a_rest_that_is_not_allowed_by_itself_ends_too() -> None:
    """When one intent ends and the others would now move a single writer (a reload has made it one), the
    whole override ends rather than be laid anew."""
    island = Island()
    before = weights(island)
    await island.make("drain", 600)
    await island.make("override", 10)
    channels = tuple(replace(channel, single_writer=True) for channel in TOPOLOGY.channels)
    island.topology = replace(TOPOLOGY, channels=channels)
    await look(island, 10)
    assert island.local.held is None
    assert weights(island) == before


async def test_what_a_partial_expiry_leaves_is_judged_by_capacity() -> None:
    """A drain was asked for while an override kept the others light. When that ends, what is left would put
    more on a region than it carries: all ends, and the record has the numbers; unless whoever asked for the
    drain had overridden just that rule."""
    for rules, ends in (((), True), (("capacity",), False)):
        island = Island()
        before = weights(island)
        await island.make("override", 10)
        await island.make("drain", 600, override_rules=rules)
        small = tuple(
            replace(r, capacity_tps=1 + r.capacity_tps // (1 if r.name == SOUTH else 1_000))
            for r in TOPOLOGY.regions
        )
        island.topology = replace(TOPOLOGY, regions=small)
        await look(island, 10)
        assert (island.local.held is None) == ends
        assert (weights(island) == before) == ends
        said = [message for kind, _, message in island.records.kept if kind.endswith("ended")]
        assert ("would be at" in said[-1]) == ends


async def test_every_intent_is_told_with_its_own_end() -> None:
    """The alarm has one time for each, with its unit: a drain of ten minutes and an override of ten seconds
    do not look like one thing that has ten minutes left."""
    island = Island()
    await island.make("drain", 600)
    await island.make("override", 10)
    held = island.local.held
    assert held is not None
    channel = TOPOLOGY.channels[0].name
    assert held.told(island.clock.now_ms) == (
        "drain south: test (by olga, ends in 10 min); "
        f"override {channel}: test (by olga, ends in 10 s)"
    )
    assert held.told(island.clock.now_ms + 500_000).startswith(
        "drain south: test (by olga, ends in 100 s)"
    )
