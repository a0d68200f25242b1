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

Clusters, and what a data plane does by itself, are in `xds_clusters`. Retries happen where the
request is known unsent. Where Envoy answers by itself, the header `x-weir-outcome` tells the client
whether the payment can have left (`unknown`) or not (`not_sent`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any, Final

from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import (
    header_mutation_pb2,
)
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from google.protobuf import json_format

from controlplane.model.dataplane import ChannelTraffic, DataPlane, Retry
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
CHANNELS_KEPT: Final = 4096
"""Channels whose routes are kept; more are built at every change of routes."""
UNSENT_FLAGS: Final = ("UH", "UF", "UO", "NR", "NC")
"""Response flags of Envoy's own answers after which nothing can have left."""

Json = dict[str, Any]


def cluster_name(channel: str) -> str:
    """Name of a channel's cluster, assignment, and of the gRPC target `xds:///payments.<channel>`."""
    return f"payments.{channel}"


def unchecked_name(channel: str) -> str:
    """Name of Envoy's cluster with a channel's endpoints that judges none of them."""
    return f"unchecked.{channel}"


def always_name(channel: str) -> str:
    """Name of Envoy's cluster that is never empty while the plan leaves the channel a region."""
    return f"always.{channel}"


def duration(ms: int) -> str:
    """Return a time as JSON of protobuf writes it."""
    return f"{ms / 1000:.3f}s"


def typed(message: type[Any], **fields: Any) -> Json:
    """Return an `Any` as JSON of protobuf writes it."""
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


def leaves_one(route: Route) -> bool:
    """Whether a channel has one region left, which nothing but a plan may take from it."""
    return sum(weight_bp > 0 for _, weight_bp in route.weights) == 1


def envoy_routes(
    channels: Iterable[ChannelTraffic],
    shed_bp: Iterable[tuple[str, int]],
    alone: Collection[str] = (),
) -> route_pb2.RouteConfiguration:
    """Return the routes of Envoy's listener: shed first, then the channel's cluster, then 404.

    `alone` has the `cluster_name`s of the channels with one region left. A failover changes it, so
    what is expensive is kept by channel.
    """
    shed = dict(shed_bp)
    made = route_pb2.RouteConfiguration(name=LISTENER)
    host = made.virtual_hosts.add(name=LISTENER, domains=["*"])
    ready = {"match": {"path": READY_PATH}, "direct_response": {"status": 200}, "name": "ready"}
    host.routes.append(_route(ready))
    for channel in channels:
        if shed.get(channel.name, 0):
            host.routes.append(_shed_route(channel, shed[channel.name]))
        for route in _channel_routes(channel):
            host.routes.append(route)
            if route.route.cluster in alone:
                host.routes[-1].route.cluster = always_name(channel.name)
    host.routes.append(_refusal("none", {"prefix": "/"}, 404, "no route"))
    return made


def _route(body: Json) -> route_components_pb2.Route:
    return json_format.ParseDict(body, route_components_pb2.Route())


def _refusal(
    name: str, match: Json, status: int, error: str, **headers: str
) -> route_components_pb2.Route:
    """Return a route by which Envoy itself says no, and that nothing was sent."""
    added = {OUTCOME_HEADER: "not_sent", **headers}
    body = {
        "name": name,
        "match": match,
        "direct_response": {"status": status, "body": {"inline_string": f'{{"error":"{error}"}}'}},
        "response_headers_to_add": [
            {"header": {"key": key.replace("_", "-"), "value": value}}
            for key, value in added.items()
        ],
    }
    return _route(body)


def _shed_route(channel: ChannelTraffic, shed_bp: int) -> route_components_pb2.Route:
    share = {"numerator": min(shed_bp, FULL_BP), "denominator": "TEN_THOUSAND"}
    match = {"prefix": channel.prefix, "runtime_fraction": {"default_value": share}}
    return _refusal(f"{channel.name}-shed", match, 503, "shed", retry_after="1")


@lru_cache(maxsize=CHANNELS_KEPT)
def _channel_routes(channel: ChannelTraffic) -> tuple[route_components_pb2.Route, ...]:
    """Routes to a channel's cluster; shared, so they must not be changed."""
    keyed = (True, False) if channel.retry is Retry.IDEMPOTENT else (False,)
    return tuple(_route(_channel_route(channel, keyed=with_key)) for with_key in keyed)


def _channel_route(channel: ChannelTraffic, *, keyed: bool) -> Json:
    match: Json = {"prefix": channel.prefix}
    if keyed:
        match["headers"] = [{"name": IDEMPOTENCY_HEADER, "present_match": True}]
    return {
        "name": channel.name + ("-keyed" if keyed else ""),
        "match": match,
        "route": {
            "cluster": cluster_name(channel.name),
            "timeout": duration(channel.total_timeout_ms),
            "retry_policy": {
                "retry_on": RETRY_IDEMPOTENT if keyed else RETRY_UNSENT,
                "num_retries": RETRIES,
                "per_try_timeout": duration(channel.per_try_timeout_ms or channel.total_timeout_ms),
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": typed(previous_hosts_pb2.PreviousHostsPredicate),
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
    manager = typed(
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
        "typed_config": typed(
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
    return {"name": "envoy.filters.http.router", "typed_config": typed(router_pb2.Router)}


def grpc_listener(channel: ChannelTraffic) -> listener_pb2.Listener:
    """Return the API listener that `xds:///payments.<channel>` asks for."""
    name = cluster_name(channel.name)
    manager = typed(
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
        "max_stream_duration": {"max_stream_duration": duration(channel.total_timeout_ms)},
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
