"""Who may call what: one table, and everything that is not in it is refused.

Roles come from the certificate's SPIFFE URI: `spiffe://<trust domain>/weir/<role>/...`. `operator`
may do what `viewer` may, `breakglass` what `operator` may. An `agent` may report and say how ready
its region is (for its own region only) and follow the plan; a `replica` exchanges digests and
follows the plan. Data planes (Envoy, gRPC clients, sidecars) carry `dataplane`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class RoleName(StrEnum):
    """Roles of callers."""

    AGENT = "agent"
    REPLICA = "replica"
    DATAPLANE = "dataplane"
    VIEWER = "viewer"
    OPERATOR = "operator"
    BREAKGLASS = "breakglass"


_A, _R, _D = RoleName.AGENT, RoleName.REPLICA, RoleName.DATAPLANE
_READ = frozenset({RoleName.VIEWER, RoleName.OPERATOR, RoleName.BREAKGLASS})
_CHANGE = frozenset({RoleName.OPERATOR, RoleName.BREAKGLASS})
_PLAN = _READ | {_A, _R, _D}
_LOCK = _CHANGE | {_D}
EVERYBODY: Final = frozenset(RoleName)

_ADMIN = "/controlplane.v1.AdminService/"
_LOCKS = "/controlplane.v1.LockService/"
_ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"

RULES: Final[Mapping[str, frozenset[RoleName]]] = {
    "/controlplane.v1.AgentService/Report": frozenset({_A}),
    "/controlplane.v1.PeerService/Exchange": frozenset({_R}),
    "/controlplane.v1.RoutingService/GetPlan": _PLAN,
    "/controlplane.v1.RoutingService/WatchPlan": _PLAN,
    "/controlplane.v1.RoutingService/AckPlan": _PLAN,
    **dict.fromkeys(
        (
            _ADMIN + name
            for name in (
                "GetStatus", "ListRegions", "ListChannels", "ListAgents", "ListEvents",
                "WatchEvents", "ListFailovers", "ExplainRoute", "GetOperation", "WaitOperation",
            )
        ),
        _READ,
    ),
    **dict.fromkeys(
        (
            _ADMIN + name
            for name in (
                "DrainRegion", "UndrainRegion", "StartFailover", "StartFailback", "Freeze",
                "Unfreeze", "SetOverride", "ClearOverride", "StartDrill", "CancelOperation",
            )
        ),
        _CHANGE,
    ),
    _ADMIN + "SetReadiness": _CHANGE | {_A},
    **dict.fromkeys(
        (_LOCKS + name for name in ("Acquire", "Renew", "Release", "Session", "WatchLock")), _LOCK
    ),
    **dict.fromkeys((_LOCKS + name for name in ("GetLock", "ListLocks")), _READ | {_D}),
    _LOCKS + "ForceRelease": _CHANGE,
    _ADS + "StreamAggregatedResources": frozenset({_D, _A, *_CHANGE}),
    _ADS + "DeltaAggregatedResources": frozenset({_D, _A, *_CHANGE}),
    "/grpc.health.v1.Health/Check": EVERYBODY,
    "/grpc.health.v1.Health/Watch": EVERYBODY,
    "/grpc.health.v1.Health/List": EVERYBODY,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _READ,
    **dict.fromkeys(
        (
            "/grpc.channelz.v1.Channelz/" + name
            for name in (
                "GetTopChannels", "GetServers", "GetServer", "GetServerSockets", "GetChannel",
                "GetSubchannel", "GetSocket",
            )
        ),
        _READ,
    ),
}  # fmt: skip
"""Full method name -> roles that may call it."""


def allowed(method: str, roles: frozenset[RoleName]) -> bool:
    """Tell whether any of `roles` may call `method`; a method without a rule is refused."""
    return bool(RULES.get(method, frozenset()) & roles)
