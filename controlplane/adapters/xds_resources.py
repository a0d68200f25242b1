"""xDS resources in the one shape that neither leaks nor is refused.

Theory. A region at weight 0 must receive nothing, whatever else breaks. Envoy has four ways to
send traffic there all the same: it refuses an explicit weight of 0 (the old assignment stays), it
ignores weights when too little is healthy (panic), it takes an unweighted locality when the
weighted ones are gone, and it spills to the next priority. Hence, measured on the real Envoy and
on grpcio:

- live region: `load_balancing_weight` = its basis points, endpoints HEALTHY;
- region at 0: no weight at all, endpoints DRAINING (kept, so that connections stay warm);
- `healthy_panic_threshold` 0, one priority, `overprovisioning_factor` 100,000 (a region with one
  live endpoint keeps its whole share instead of passing it on).

Local reaction. Active health checks and outlier detection count only what did *not answer*
(`split_external_local_origin_errors`): a provider that fails behind every region must not empty
the cluster. Retries happen where the request is known unsent. Where Envoy answers by itself, the
header `x-weir-outcome` tells the client whether the payment can have left (`not_sent`) or not
(`unknown`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    header_mutation_pb2,
)
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from controlplane.model.dataplane import ChannelTraffic, DataPlane, Reaction, Retry
from controlplane.model.ids import FULL_BP
from controlplane.model.plan import Route

_TYPE: Final = "type.googleapis.com/"
CDS: Final = _TYPE + "envoy.config.cluster.v3.Cluster"
EDS: Final = _TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS: Final = _TYPE + "envoy.config.listener.v3.Listener"
RDS: Final = _TYPE + "envoy.config.route.v3.RouteConfiguration"
ORDER: Final = (CDS, EDS, LDS, RDS)
"""Order of publishing: a cluster before its endpoints, both before what routes to it."""

SHORT: Final = {CDS: "cds", EDS: "eds", LDS: "lds", RDS: "rds"}
"""Names of the types for metrics and files."""

LISTENER: Final = "payments"
"""Name of Envoy's listener, and of its route configuration."""
READY_PATH: Final = "/weir/ready"
"""Answered by Envoy's listener itself: only there once listener and routes have arrived."""

OUTCOME_HEADER: Final = "x-weir-outcome"
IDEMPOTENCY_HEADER: Final = "idempotency-key"
OVERPROVISIONING: Final = 100_000
RETRIES: Final = 2
"""A request is tried three times at most: once per region of the smallest useful topology."""
PICKS: Final = 64
"""Picks until a retry has found another region; by weight, so a share of 2 % is found surely."""
RETRY_UNSENT: Final = "connect-failure,refused-stream,reset-before-request"
RETRY_IDEMPOTENT: Final = RETRY_UNSENT + ",reset"
UPSTREAM_IDLE_S: Final = 30
"""Idle upstream connections close before the gateway (keep-alive 75 s) would, in a race."""
UNSENT_FLAGS: Final = ("UH", "UF", "UO", "NR", "NC")
"""Response flags of Envoy's own answers after which nothing can have left."""

Json = dict[str, Any]


def cluster_name(channel: str) -> str:
    """Name of a channel's cluster, assignment, and of the gRPC target `xds:///payments.<channel>`."""
    return f"payments.{channel}"


def _duration(ms: int) -> str:
    return f"{ms / 1000:.3f}s"


def _any(message: type[Any], **fields: Any) -> Json:
    return {"@type": _TYPE + message.DESCRIPTOR.full_name, **fields}


def file_source(path: str, watched: str) -> Json:
    """Config source of one file below a directory whose renames are watched."""
    return {
        "path_config_source": {"path": path, "watched_directory": {"path": watched}},
        "resource_api_version": "V3",
    }


ADS: Final[Json] = {"ads": {}, "resource_api_version": "V3"}
"""Config source of resources that come over the ADS stream."""


def assignment(
    route: Route, dataplane: DataPlane, *, stale_after_ms: int = 0, closed: bool = False
) -> endpoint_pb2.ClusterLoadAssignment:
    """Endpoints of one channel. `closed` gives the empty assignment of a channel that must stop."""
    cla = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster_name(route.channel))
    cla.policy.overprovisioning_factor.value = OVERPROVISIONING
    if stale_after_ms:
        cla.policy.endpoint_stale_after.FromMilliseconds(stale_after_ms)
    if closed:
        return cla
    for region, weight_bp in route.weights:
        locality = cla.endpoints.add()
        locality.locality.region = region
        status = health_check_pb2.DRAINING
        if weight_bp > 0:
            locality.load_balancing_weight.value = weight_bp
            status = health_check_pb2.HEALTHY
        for endpoint in dataplane.endpoints(region):
            entry: endpoint_components_pb2.LbEndpoint = locality.lb_endpoints.add()
            entry.health_status = status
            address = entry.endpoint.address.socket_address
            address.address, address.port_value = endpoint.host, endpoint.port
    return cla


def envoy_cluster(
    channel: ChannelTraffic, dataplane: DataPlane, eds_source: Json = ADS
) -> cluster_pb2.Cluster:
    """One channel's cluster for Envoy, with local fast reaction."""
    thresholds = {
        "max_connections": dataplane.max_requests,
        "max_pending_requests": dataplane.max_requests,
        "max_requests": dataplane.max_requests,
        # retries of unsent requests reach nobody twice; for idempotent ones this bounds the load
        "retry_budget": {"budget_percent": {"value": 25.0}, "min_retry_concurrency": 32},
    }
    body = {
        **_cluster_base(channel, eds_source),
        "health_checks": [_health_check(dataplane.reaction)],
        "outlier_detection": _outliers(dataplane.reaction),
        "ignore_health_on_host_removal": True,
        "circuit_breakers": {"thresholds": [thresholds]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _any(
                http_protocol_options_pb2.HttpProtocolOptions,
                explicit_http_config={"http_protocol_options": {}},
                common_http_protocol_options={"idle_timeout": f"{UPSTREAM_IDLE_S}s"},
            )
        },
    }
    return json_format.ParseDict(body, cluster_pb2.Cluster())


def grpc_cluster(channel: ChannelTraffic, dataplane: DataPlane) -> cluster_pb2.Cluster:
    """One channel's cluster for proxyless gRPC, which knows failure percentage as its only quick
    reaction."""
    reaction = dataplane.reaction
    body = {
        **_cluster_base(channel, ADS),
        "outlier_detection": {
            "interval": _duration(reaction.check_interval_ms + reaction.check_timeout_ms),
            "base_ejection_time": _duration(reaction.return_after_ms),
            "max_ejection_time": _duration(max(reaction.ejection_max_ms, reaction.return_after_ms)),
            # one region always stays: gRPC cannot tell a provider's failure from a region's
            "max_ejection_percent": 67,
            "enforcing_success_rate": 0,
            "enforcing_consecutive_5xx": 0,
            "failure_percentage_threshold": 80,
            "enforcing_failure_percentage": 100,
            "failure_percentage_minimum_hosts": 1,
            "failure_percentage_request_volume": reaction.eject_after_failures,
        },
    }
    return json_format.ParseDict(body, cluster_pb2.Cluster())


def _cluster_base(channel: ChannelTraffic, eds_source: Json) -> Json:
    return {
        "name": cluster_name(channel.name),
        "type": "EDS",
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": _duration(channel.connect_timeout_ms),
        "eds_cluster_config": {"eds_config": eds_source},
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0.0},
            # Envoy's default keeps a second change of weights or health from its workers for 1 s
            "update_merge_window": "0s",
            "locality_weighted_lb_config": {},
        },
    }


def _health_check(reaction: Reaction) -> Json:
    interval = _duration(reaction.check_interval_ms)
    return {
        "timeout": _duration(reaction.check_timeout_ms),
        "interval": interval,
        # the default, 60 s, would leave a failure unnoticed until there is traffic
        "no_traffic_interval": interval,
        "no_traffic_healthy_interval": interval,
        "unhealthy_threshold": reaction.check_fall,
        "healthy_threshold": reaction.check_rise,
        "http_health_check": {"path": reaction.check_path},
    }


def _outliers(reaction: Reaction) -> Json:
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": reaction.eject_after_failures,
        "enforcing_consecutive_local_origin_failure": 100,
        # answers are judged by the leader: a provider down everywhere must not empty the cluster
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "enforcing_failure_percentage_local_origin": 0,
        "interval": _duration(reaction.check_interval_ms),
        "base_ejection_time": _duration(reaction.ejection_ms),
        "max_ejection_time": _duration(reaction.ejection_max_ms),
        # the default of 10 % never ejects one of three hosts
        "max_ejection_percent": 100,
    }


def envoy_routes(
    channels: Iterable[ChannelTraffic], shed_bp: Iterable[tuple[str, int]]
) -> route_pb2.RouteConfiguration:
    """Return the routes of Envoy's listener: shed first, then the channel's cluster, then 404."""
    shed = dict(shed_bp)
    routes: list[Json] = [
        {"match": {"path": READY_PATH}, "direct_response": {"status": 200}, "name": "ready"}
    ]
    for channel in channels:
        if shed.get(channel.name, 0):
            routes.append(_shed_route(channel, shed[channel.name]))
        if channel.retry is Retry.IDEMPOTENT:
            routes.append(_channel_route(channel, keyed=True))
        routes.append(_channel_route(channel, keyed=False))
    routes.append(
        {
            "match": {"prefix": "/"},
            "direct_response": {"status": 404, "body": {"inline_string": '{"error":"no route"}'}},
            "name": "none",
        }
    )
    body = {
        "name": LISTENER,
        "virtual_hosts": [{"name": LISTENER, "domains": ["*"], "routes": routes}],
    }
    return json_format.ParseDict(body, route_pb2.RouteConfiguration())


def _shed_route(channel: ChannelTraffic, shed_bp: int) -> Json:
    return {
        "name": f"{channel.name}-shed",
        "match": {
            "prefix": channel.prefix,
            "runtime_fraction": {
                "default_value": {"numerator": min(shed_bp, FULL_BP), "denominator": "TEN_THOUSAND"}
            },
        },
        "direct_response": {"status": 503, "body": {"inline_string": '{"error":"shed"}'}},
        "response_headers_to_add": [
            {"header": {"key": OUTCOME_HEADER, "value": "not_sent"}},
            {"header": {"key": "retry-after", "value": "1"}},
        ],
    }


def _channel_route(channel: ChannelTraffic, *, keyed: bool) -> Json:
    match: Json = {"prefix": channel.prefix}
    if keyed:
        match["headers"] = [{"name": IDEMPOTENCY_HEADER, "present_match": True}]
    return {
        "name": channel.name + ("-keyed" if keyed else ""),
        "match": match,
        "route": {
            "cluster": cluster_name(channel.name),
            "timeout": _duration(channel.total_timeout_ms),
            "retry_policy": {
                "retry_on": RETRY_IDEMPOTENT if keyed else RETRY_UNSENT,
                "num_retries": RETRIES,
                "per_try_timeout": _duration(
                    channel.per_try_timeout_ms or channel.total_timeout_ms
                ),
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": _any(previous_hosts_pb2.PreviousHostsPredicate),
                    }
                ],
                "host_selection_retry_max_attempts": PICKS,
                "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.050s"},
            },
        },
    }


def envoy_listener(
    host: str, port: int, channels: Iterable[ChannelTraffic], route_source: Json = ADS
) -> listener_pb2.Listener:
    """Return Envoy's listener for payments."""
    manager = _any(
        http_connection_manager_pb2.HttpConnectionManager,
        stat_prefix=LISTENER,
        rds={"route_config_name": LISTENER, "config_source": route_source},
        http_filters=[_router()],
        use_remote_address=True,
        early_header_mutation_extensions=[_no_orders()],
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        stream_idle_timeout="60s",
        local_reply_config=_local_replies(channels),
    )
    body = {
        "name": LISTENER,
        "address": {"socket_address": {"address": host, "port_value": port}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return json_format.ParseDict(body, listener_pb2.Listener())


def _no_orders() -> Json:
    """Take Envoy's own headers from requests: with `x-envoy-retry-on` any client could have its
    payments replayed."""
    matched = {"key_matcher": {"prefix": "x-envoy-"}}
    return {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": _any(
            header_mutation_pb2.HeaderMutation, mutations=[{"remove_on_match": matched}]
        ),
    }


def _local_replies(channels: Iterable[ChannelTraffic]) -> Json:
    """Say in a header whether a payment that Envoy answered by itself can have left.

    On a channel with idempotent retries an earlier attempt may have left: always unknown there.
    """
    unsent: list[Json] = [{"response_flag_filter": {"flags": list(UNSENT_FLAGS)}}]
    unsent += [
        {
            "header_filter": {
                "header": {
                    "name": ":path",
                    "string_match": {"prefix": channel.prefix},
                    "invert_match": True,
                }
            }
        }
        for channel in channels
        if channel.retry is Retry.IDEMPOTENT
    ]
    mappers: list[Json] = []
    for outcome, condition in (
        ("not_sent", {"and_filter": {"filters": unsent}} if len(unsent) > 1 else unsent[0]),
        ("unknown", {"response_flag_filter": {}}),
    ):
        header = {"header": {"key": OUTCOME_HEADER, "value": outcome}}
        mappers.append({"filter": condition, "headers_to_add": [header]})
    return {"mappers": mappers}


def _router() -> Json:
    return {"name": "envoy.filters.http.router", "typed_config": _any(router_pb2.Router)}


def grpc_listener(channel: ChannelTraffic) -> listener_pb2.Listener:
    """Return the API listener that `xds:///payments.<channel>` asks for."""
    name = cluster_name(channel.name)
    manager = _any(
        http_connection_manager_pb2.HttpConnectionManager,
        rds={"route_config_name": name, "config_source": ADS},
        http_filters=[_router()],
    )
    body = {"name": name, "api_listener": {"api_listener": manager}}
    return json_format.ParseDict(body, listener_pb2.Listener())


def grpc_routes(channel: ChannelTraffic) -> route_pb2.RouteConfiguration:
    """Return the routes of one gRPC target. gRPC repeats unsent calls by itself, so a retry policy
    is given only where idempotency keys are honoured."""
    name = cluster_name(channel.name)
    action: Json = {
        "cluster": name,
        "max_stream_duration": {"max_stream_duration": _duration(channel.total_timeout_ms)},
    }
    if channel.retry is Retry.IDEMPOTENT:
        action["retry_policy"] = {"retry_on": "unavailable", "num_retries": RETRIES}
    body = {
        "name": name,
        "virtual_hosts": [
            {
                "name": name,
                "domains": ["*"],
                "routes": [{"match": {"prefix": ""}, "route": action}],
            }
        ],
    }
    return json_format.ParseDict(body, route_pb2.RouteConfiguration())
