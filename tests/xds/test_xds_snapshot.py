"""Snapshots: the shape holds for every plan, bytes are shared and reproducible."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters.xds_resources import CDS, EDS, RDS
from controlplane.adapters.xds_snapshot import BODIES_MAX, Snapshot, TypeSet, version_epoch
from controlplane.adapters.xds_stream import SotwStream, View
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Endpoint, RegionEndpoints, Retry
from controlplane.model.ids import ChannelName, RegionName
from tests.xds.lab import plan_of

REGIONS = ("east", "north", "south")
PLANE = DataPlane(
    regions=tuple(
        RegionEndpoints(
            region=RegionName(name),
            endpoints=tuple(Endpoint(host="10.0.0.1", port=at * 10 + n) for n in range(2)),
        )
        for at, name in enumerate(REGIONS, 1)
    ),
    channels=(
        ChannelTraffic(name=ChannelName("alipay")),
        ChannelTraffic(name=ChannelName("ledger"), fail_closed=True),
    ),
)


@st.composite
def weights(draw: st.DrawFn) -> dict[str, int]:
    """Draw weights of some regions that sum to 10,000; zeros are frequent."""
    names = draw(st.lists(st.sampled_from(REGIONS), min_size=1, unique=True))
    cuts = sorted(draw(st.lists(st.sampled_from([0, 1, 5000, 9999, 10_000]) | st.integers(0, 10_000),
                                min_size=len(names) - 1, max_size=len(names) - 1)))  # fmt: skip
    edges = [0, *cuts, 10_000]
    return {name: b - a for name, a, b in zip(names, edges[:-1], edges[1:], strict=True)}


def assignments(
    snapshot: Snapshot, *, confirmed: bool = True, expired_ms: int = 0
) -> dict[str, Any]:
    """Return the assignments of a snapshot by name."""
    found = snapshot.envoy.get(EDS, confirmed=confirmed, expired_ms=expired_ms)
    assert found is not None
    return {
        name: endpoint_pb2.ClusterLoadAssignment.FromString(any_pb2.Any.FromString(raw).value)
        for name, raw in found.packed.items()
    }


@settings(deadline=None, max_examples=60)
@given(weights(), weights())
def test_the_shape_holds_for_every_plan(first: dict[str, int], second: dict[str, int]) -> None:
    """Live regions carry their basis points and healthy endpoints; regions at 0 carry no weight and
    draining endpoints; panic is off: for any weights that sum to 10,000."""
    snapshot = Snapshot.build(plan_of(7, {"alipay": first, "ledger": second}), PLANE)
    for name, wanted in (("payments.alipay", first), ("payments.ledger", second)):
        cla = assignments(snapshot)[name]
        assert cla.policy.overprovisioning_factor.value == 100_000
        assert cla.policy.HasField("endpoint_stale_after") == (name == "payments.ledger")
        seen = {}
        for locality in cla.endpoints:
            has = locality.HasField("load_balancing_weight")
            seen[locality.locality.region] = locality.load_balancing_weight.value if has else 0
            assert has == (locality.load_balancing_weight.value > 0)
            health = health_check_pb2.HEALTHY if has else health_check_pb2.DRAINING
            assert {e.health_status for e in locality.lb_endpoints} == {health}
            assert locality.priority == 0
        assert seen == wanted
    for name, raw in snapshot.envoy.types[CDS].packed.items():
        cluster = cluster_pb2.Cluster.FromString(any_pb2.Any.FromString(raw).value)
        assert cluster.common_lb_config.HasField("healthy_panic_threshold")
        assert cluster.common_lb_config.healthy_panic_threshold.value == 0
        if name.startswith("payments."):
            assert cluster.outlier_detection.max_ejection_percent.value == 100
        else:
            assert not cluster.HasField("outlier_detection")
            assert not cluster.health_checks


@settings(deadline=None, max_examples=30)
@given(weights())
def test_same_plan_same_bytes(first: dict[str, int]) -> None:
    """Two replicas that read the same plan serve the same bytes under the same version."""
    made = [Snapshot.build(plan_of(7, {"alipay": first}), PLANE) for _ in range(2)]
    one, other = (snapshot.envoy.types[EDS] for snapshot in made)
    assert one.body(None) == other.body(None)
    assert version_epoch(one.version) == 7


@settings(deadline=None, max_examples=60)
@given(weights(), st.booleans())
def test_nothing_local_takes_the_last_region(wanted: dict[str, int], keyed: bool) -> None:
    """Where a plan leaves a channel one region, Envoy's routes name the cluster that is never empty,
    and gRPC ejects nothing; with more, local reaction is on. A plan changes no cluster of Envoy:
    what is built anew drops its connections."""
    retry = Retry.IDEMPOTENT if keyed else Retry.UNSENT
    plane = replace(PLANE, channels=(ChannelTraffic(name=ChannelName("alipay"), retry=retry),))
    snapshot = Snapshot.build(plan_of(7, {"alipay": wanted}), plane)
    one = sum(weight > 0 for weight in wanted.values()) == 1
    (routes,) = unpacked(snapshot.envoy.types[RDS], route_pb2.RouteConfiguration)
    named = [r.route.cluster for r in routes.virtual_hosts[0].routes if r.HasField("route")]
    assert named == ["always.alipay" if one else "payments.alipay"] * (1 + keyed)
    (cluster,) = unpacked(snapshot.grpc.types[CDS], cluster_pb2.Cluster)
    assert cluster.HasField("outlier_detection") != one
    other = Snapshot.build(plan_of(8, {"alipay": {"east": 9999, "north": 1}}), plane)
    assert snapshot.envoy.types[CDS].version == other.envoy.types[CDS].version


def unpacked(resources: TypeSet, message: Any) -> list[Any]:
    """Return the messages of one type."""
    return [
        message.FromString(any_pb2.Any.FromString(raw).value) for raw in resources.packed.values()
    ]


def test_unconfirmed_closes_only_what_fails_closed() -> None:
    """The closed shape has the other channels unchanged, and another version."""
    snapshot = Snapshot.build(
        plan_of(7, {"alipay": {"east": 10_000}, "ledger": {"east": 10_000}}), PLANE
    )
    opened, closed = assignments(snapshot), assignments(snapshot, confirmed=False)
    assert closed["payments.alipay"] == opened["payments.alipay"]
    assert not closed["payments.ledger"].endpoints
    assert opened["payments.ledger"].endpoints


def test_every_channel_has_its_own_bound() -> None:
    """A channel with a longer bound is served on while one with a shorter is closed already, and
    each tells its own bound to the data planes; without confirmation ever, all are closed."""
    bounds = {"alipay": 0, "ledger": 2000, "payout": 9000, "refund": 2000}
    plane = replace(
        PLANE,
        channels=tuple(
            ChannelTraffic(name=ChannelName(name), fail_closed=bool(ms), stale_after_ms=ms)
            for name, ms in bounds.items()
        ),
    )
    snapshot = Snapshot.build(plan_of(7, {name: {"east": 10_000} for name in bounds}), plane)

    def served(**how: Any) -> set[str]:
        found = assignments(snapshot, **how)
        return {name.partition(".")[2] for name, cla in found.items() if cla.endpoints}

    told = {
        name.partition(".")[2]: cla.policy.endpoint_stale_after.ToMilliseconds()
        for name, cla in assignments(snapshot).items()
    }
    assert told == bounds
    assert [snapshot.envoy.expired(age) for age in (0, 2000, 2001, 9000, 9001)] == [
        0, 0, 2000, 2000, 9000,
    ]  # fmt: skip
    assert served() == set(bounds)
    assert served(expired_ms=2000) == {"alipay", "payout"}
    assert served(expired_ms=9000) == served(confirmed=False) == {"alipay"}
    versions = {closed.version for closed in snapshot.envoy.closed.values()}
    assert len({*versions, snapshot.envoy.types[EDS].version}) == 3


def test_streams_share_bytes_and_differ_in_nonces() -> None:
    """A message is the shared body and the stream's own nonce; caches are bounded."""
    snapshot = Snapshot.build(plan_of(7, {"alipay": {"east": 10_000}}), PLANE)
    view = View(snapshot, confirmed=True)
    found = set()
    for number in range(3):
        stream = SotwStream()
        for _ in range(number):  # the same answer under later nonces
            stream.types.clear()
        stream._counter = number
        request = discovery_pb2.DiscoveryRequest(type_url=EDS, resource_names=["payments.alipay"])
        stream.receive(request)
        (message,) = stream.due(view)
        body = snapshot.envoy.types[EDS].body(frozenset({"payments.alipay"}))
        assert message.payload.startswith(body)
        found.add(discovery_pb2.DiscoveryResponse.FromString(message.payload).nonce)
    assert found == {"1", "2", "3"}
    kept = snapshot.envoy.types[EDS]
    for number in range(2 * BODIES_MAX):
        kept.body(frozenset({f"unknown-{number}"}))
    assert len(kept._bodies) == BODIES_MAX
