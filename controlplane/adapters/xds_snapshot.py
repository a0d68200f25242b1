"""One immutable snapshot per committed epoch, serialised once and shared by every stream.

Theory. A push to a thousand streams costs what it costs to write bytes, if the bytes are the same
for all. So everything that does not depend on the stream is serialised when the snapshot is built;
the nonce, the only field that does, is appended to the bytes (a protobuf message is the
concatenation of its fields).

Versions. Endpoints carry `<epoch>.<config>`, where config is a digest of the `DataPlane`; the other
types change with the configuration only and carry a digest of their content. A local override of
an epoch carries `.local<revision>` besides, so that it is sent, and so is the return from it. A
type whose version a stream already has is not sent again.

Shapes. Envoy and proxyless gRPC read the same plan in different resources. Each has an *open* set
of endpoints, and a *closed* one for every staleness bound of a channel that fails closed: in it,
the channels with that bound or a smaller one have none. It is served once nobody has confirmed
for so long that the plan is still in force.

Failure modes. A plan with a route that does not sum to 10,000, that gives weight to a region
without endpoints, or that serves no channel of the configuration is refused (InvalidInputError);
the caller keeps publishing the last good snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from controlplane.adapters import xds_clusters as clusters
from controlplane.adapters import xds_resources as shape
from controlplane.adapters.xds_resources import CDS, EDS, LDS, RDS
from controlplane.model.dataplane import ChannelTraffic, DataPlane
from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import FULL_BP, Epoch
from controlplane.model.plan import Plan, Route

BODIES_MAX: Final = 128
"""Distinct subsets of names of one type whose bytes are kept; further ones are built each time."""
LISTENERS_MAX: Final = 64
"""Distinct listener addresses kept; every Envoy of a deployment normally uses the same one."""
_DIGEST_HEX: Final = 12

Routes = Mapping[str, Route]


def _digest(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:_DIGEST_HEX]


@dataclass(frozen=True, slots=True)
class TypeSet:
    """All resources of one type at one version; `packed` maps names to serialised `Any`s."""

    type_url: str
    version: str
    epoch: Epoch
    packed: Mapping[str, bytes]
    digests: Mapping[str, str]
    _bodies: dict[frozenset[str] | None, bytes] = field(default_factory=dict, compare=False)

    @classmethod
    def of(
        cls, type_url: str, epoch: Epoch, messages: Mapping[str, Any], version: str = ""
    ) -> Self:
        """Serialise messages by name; without `version` it is a digest of the content."""
        packed: dict[str, bytes] = {}
        for name in sorted(messages):
            value = messages[name].SerializeToString(deterministic=True)
            packed[name] = any_pb2.Any(type_url=type_url, value=value).SerializeToString()
        digests = {name: _digest([raw]) for name, raw in packed.items()}
        return cls(type_url, version or _digest(packed.values()), epoch, packed, digests)

    def body(self, names: frozenset[str] | None) -> bytes:
        """Return a DiscoveryResponse without nonce: all resources, or the known ones of `names`."""
        kept = self._bodies.get(names)
        if kept is not None:
            return kept
        response = discovery_pb2.DiscoveryResponse(
            version_info=self.version, type_url=self.type_url
        )
        for name, raw in self.packed.items():
            if names is None or name in names:
                response.resources.add().ParseFromString(raw)
        body: bytes = response.SerializeToString()
        if len(self._bodies) < BODIES_MAX:
            self._bodies[names] = body
        return body

    def known(self, names: Collection[str]) -> bool:
        """Whether any of `names` exists."""
        return not self.packed.keys().isdisjoint(names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one kind of client is served. `closed` holds, by bound in ms, the endpoints that replace
    the open ones when nothing was confirmed for longer."""

    types: Mapping[str, TypeSet]
    closed: Mapping[int, TypeSet]
    fail_closed: frozenset[str]

    def get(self, type_url: str, *, confirmed: bool, expired_ms: int = 0) -> TypeSet | None:
        """Return the resources of a type, None for a type that is not served.

        `confirmed` is False for a plan that nobody has vouched for; `expired_ms` is the largest
        bound that has passed since somebody did, 0 when none has.
        """
        if type_url == EDS and self.closed and not (confirmed and not expired_ms):
            return self.closed[expired_ms if confirmed else max(self.closed)]
        return self.types.get(type_url)

    def expired(self, age_ms: int) -> int:
        """Return the largest bound that an age exceeds; 0 when it exceeds none."""
        if not self.closed:
            return 0
        return max((bound_ms for bound_ms in self.closed if bound_ms < age_ms), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that is served of one plan. Build it with `Snapshot.build`."""

    plan: Plan
    dataplane: DataPlane
    config: str
    envoy: Shape
    grpc: Shape

    @property
    def epoch(self) -> Epoch:
        """Epoch of the plan."""
        return self.plan.epoch

    @classmethod
    def build(cls, plan: Plan, dataplane: DataPlane) -> Self:
        """Join a plan and the configuration; raises InvalidInputError naming what does not fit."""
        routes = check_plan(plan, dataplane)
        served = tuple(c for c in dataplane.channels if c.name in routes)
        shed = tuple((c.name, routes[c.name].shed_bp) for c in served)
        alone = frozenset(
            shape.cluster_name(c.name) for c in served if shape.leaves_one(routes[c.name])
        )
        envoy, grpc, config = _configured(dataplane, served, shed, alone)
        closing = frozenset(shape.cluster_name(c.name) for c in served if c.fail_closed)
        opened, closed = _endpoints(plan, dataplane, routes, served, config)
        for_envoy, for_grpc = (
            Shape(types={**types, EDS: opened}, closed=closed, fail_closed=closing)
            for types in (envoy, grpc)
        )
        return cls(plan=plan, dataplane=dataplane, config=config, envoy=for_envoy, grpc=for_grpc)

    def listeners(self, host: str, port: int) -> TypeSet:
        """Return Envoy's listener for the address that one node asked for."""
        served = frozenset(self.envoy.types[CDS].packed)
        channels = tuple(c for c in self.dataplane.channels if shape.cluster_name(c.name) in served)
        return _listeners(host, port, channels)


def check_plan(plan: Plan, dataplane: DataPlane) -> Routes:
    """Refuse what must never reach a data plane; return the routes by channel."""
    routes = {route.channel: route for route in plan.routes}
    if plan.epoch < 1:
        raise InvalidInputError("plan.epoch", f"{plan.epoch} is not an epoch; they start at 1")
    if not any(channel.name in routes for channel in dataplane.channels):
        raise InvalidInputError(
            "plan.routes", "no configured channel has a route; a plan is never empty"
        )
    for channel in dataplane.channels:
        route = routes.get(channel.name)
        if route is None:
            continue
        where = f"plan.routes.{channel.name}"
        total = sum(weight for _, weight in route.weights)
        if total != FULL_BP or any(weight < 0 for _, weight in route.weights):
            raise InvalidInputError(where, f"weights sum to {total} bp, not to {FULL_BP}")
        for region, weight in route.weights:
            if weight and not dataplane.endpoints(region):
                raise InvalidInputError(
                    where, f"{region} has weight {weight} bp and no endpoints are configured for it"
                )
    return {str(name): route for name, route in routes.items()}


def _endpoints(
    plan: Plan,
    dataplane: DataPlane,
    routes: Routes,
    served: tuple[ChannelTraffic, ...],
    config: str,
) -> tuple[TypeSet, Mapping[int, TypeSet]]:
    opened: dict[str, Any] = {}
    empty: dict[str, tuple[int, Any]] = {}
    for channel in served:
        name, bound_ms = shape.cluster_name(channel.name), dataplane.bound_ms(channel)
        route = routes[channel.name]
        opened[name] = shape.assignment(route, dataplane, stale_after_ms=bound_ms)
        if bound_ms:
            empty[name] = bound_ms, shape.assignment(route, dataplane, closed=True)
    version = f"{plan.epoch}.{config}"
    if plan.local is not None:
        version += f".local{plan.local.revision}"
    closed = {
        passed_ms: TypeSet.of(
            EDS,
            plan.epoch,
            {**opened, **{n: cla for n, (ms, cla) in empty.items() if ms <= passed_ms}},
            f"{version}.closed-{passed_ms}",
        )
        for passed_ms in sorted({ms for ms, _ in empty.values()})
    }
    return TypeSet.of(EDS, plan.epoch, opened, version), closed


def version_epoch(version: str) -> Epoch:
    """Epoch that a version of endpoints names; 0 when it names none.

    A version of anything else is a digest, and one of 280 of those has digits only.
    """
    head, dot, _ = version.partition(".")
    return Epoch(int(head)) if dot and head.isascii() and head.isdigit() else Epoch(0)


class _Fixed(NamedTuple):
    """What the configuration alone decides; expensive, and never built in a failover."""

    envoy: Mapping[str, TypeSet]
    grpc: Mapping[str, TypeSet]
    grpc_clusters: Mapping[str, Any]
    digest: str


@lru_cache(maxsize=8)
def _fixed(dataplane: DataPlane, served: tuple[ChannelTraffic, ...]) -> _Fixed:
    name, none = shape.cluster_name, Epoch(0)
    for_envoy: dict[str, Any] = {}
    for channel in served:
        for_envoy |= clusters.envoy_clusters(channel, dataplane)
    envoy = {CDS: TypeSet.of(CDS, none, for_envoy), LDS: TypeSet.of(LDS, none, {})}
    grpc = {
        LDS: TypeSet.of(LDS, none, {name(c.name): shape.grpc_listener(c) for c in served}),
        RDS: TypeSet.of(RDS, none, {name(c.name): shape.grpc_routes(c) for c in served}),
    }
    for_grpc = {name(c.name): clusters.grpc_cluster(c, dataplane) for c in served}
    return _Fixed(envoy, grpc, for_grpc, _digest([repr(dataplane).encode()]))


@lru_cache(maxsize=8)
def _configured(
    dataplane: DataPlane,
    served: tuple[ChannelTraffic, ...],
    shed: tuple[tuple[str, int], ...],
    alone: frozenset[str],
) -> tuple[Mapping[str, TypeSet], Mapping[str, TypeSet], str]:
    """Add to what is fixed what a plan changes seldom: shedding, and which channels have one region
    left (`alone`, by cluster)."""
    none, fixed = Epoch(0), _fixed(dataplane, served)
    routes = shape.envoy_routes(served, shed, alone)
    for_grpc = {
        name: clusters.calm(cluster) if name in alone else cluster
        for name, cluster in fixed.grpc_clusters.items()
    }
    envoy = {**fixed.envoy, RDS: TypeSet.of(RDS, none, {shape.LISTENER: routes})}
    grpc = {**fixed.grpc, CDS: TypeSet.of(CDS, none, for_grpc)}
    return envoy, grpc, fixed.digest


@lru_cache(maxsize=LISTENERS_MAX)
def _listeners(host: str, port: int, channels: tuple[ChannelTraffic, ...]) -> TypeSet:
    listener = shape.envoy_listener(host, port, channels)
    return TypeSet.of(LDS, Epoch(0), {shape.LISTENER: listener})
