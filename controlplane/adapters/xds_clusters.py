"""The clusters of a channel: what a data plane does by itself, and what it must not.

Theory. Local reaction (active checks, outlier detection) takes a region out within a second, long
before the plan can. It moves payments only while the plan leaves them another region. Where it
leaves one, taking that away refuses payments and saves none, and two late answers of a busy machine
are enough for it. Hence:

- Envoy has three clusters a channel. `payments.<channel>` reacts; `unchecked.<channel>` has the
  same endpoints and judges none of them; `always.<channel>` is the first while it has a healthy
  endpoint, else the second. Routes name `always` where the plan leaves one region, else `payments`.
- gRPC's one cluster has no outlier detection where the plan leaves one region.

What a switch costs: one push of routes (Envoy) or clusters (gRPC). No cluster of Envoy is rebuilt,
no connection closed: `always` sends through the connections of `payments`.

Local reaction counts only what did *not answer* (`split_external_local_origin_errors`): a provider
that fails behind every region must not empty the cluster.
"""

from __future__ import annotations

from typing import Final

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.clusters.aggregate.v3 import cluster_pb2 as aggregate_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import json_format

from controlplane.adapters.xds_resources import (
    ADS,
    Json,
    always_name,
    cluster_name,
    duration,
    typed,
    unchecked_name,
)
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Reaction

UPSTREAM_IDLE_S: Final = 30
"""Idle upstream connections close before the gateway (keep-alive 75 s) would, in a race."""
GRPC_EJECTED_PERCENT: Final = 50
"""gRPC ejects while fewer than this are ejected, and one in any case: of three or two regions with
one endpoint each one stays, since gRPC cannot tell a provider's failure from a region's."""


def envoy_clusters(
    channel: ChannelTraffic, dataplane: DataPlane, eds_source: Json = ADS
) -> dict[str, cluster_pb2.Cluster]:
    """One channel's clusters for Envoy, by name."""
    thresholds = {
        "max_connections": dataplane.max_requests,
        "max_pending_requests": dataplane.max_requests,
        "max_requests": dataplane.max_requests,
        # retries of unsent requests reach nobody twice; for idempotent ones this bounds the load
        "retry_budget": {"budget_percent": {"value": 25.0}, "min_retry_concurrency": 32},
    }
    common = {
        "connect_timeout": duration(channel.connect_timeout_ms),
        "circuit_breakers": {"thresholds": [thresholds]},
    }
    eds: Json = {"eds_config": eds_source}
    members = {
        **common,
        **_endpoints(eds),
        "ignore_health_on_host_removal": True,
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                http_protocol_options_pb2.HttpProtocolOptions,
                explicit_http_config={"http_protocol_options": {}},
                common_http_protocol_options={"idle_timeout": f"{UPSTREAM_IDLE_S}s"},
            )
        },
    }
    reacting, unchecked = cluster_name(channel.name), unchecked_name(channel.name)
    bodies: dict[str, Json] = {
        reacting: {
            **members,
            "health_checks": [health_check(dataplane.reaction)],
            "outlier_detection": _outliers(dataplane.reaction),
        },
        unchecked: {**members, "eds_cluster_config": {**eds, "service_name": reacting}},
        always_name(channel.name): {
            **common,
            "lb_policy": "CLUSTER_PROVIDED",
            "common_lb_config": {"healthy_panic_threshold": {"value": 0.0}},
            "cluster_type": {
                "name": "envoy.clusters.aggregate",
                "typed_config": typed(aggregate_pb2.ClusterConfig, clusters=[reacting, unchecked]),
            },
        },
    }
    return {
        name: json_format.ParseDict({"name": name, **body}, cluster_pb2.Cluster())
        for name, body in bodies.items()
    }


def grpc_cluster(channel: ChannelTraffic, dataplane: DataPlane) -> cluster_pb2.Cluster:
    """One channel's cluster for proxyless gRPC, which knows failure percentage as its only quick
    reaction."""
    body = {
        "name": cluster_name(channel.name),
        "connect_timeout": duration(channel.connect_timeout_ms),
        **_endpoints({"eds_config": ADS}),
        "outlier_detection": _failure_percentage(dataplane.reaction),
    }
    return json_format.ParseDict(body, cluster_pb2.Cluster())


def calm(cluster: cluster_pb2.Cluster) -> cluster_pb2.Cluster:
    """Return a cluster of gRPC as it is when one region is left: it takes nothing out."""
    made = cluster_pb2.Cluster()
    made.CopyFrom(cluster)
    made.ClearField("outlier_detection")
    return made


def _failure_percentage(reaction: Reaction) -> Json:
    return {
        "interval": duration(reaction.check_interval_ms + reaction.check_timeout_ms),
        "base_ejection_time": duration(reaction.return_after_ms),
        "max_ejection_time": duration(max(reaction.ejection_max_ms, reaction.return_after_ms)),
        "max_ejection_percent": GRPC_EJECTED_PERCENT,
        "enforcing_success_rate": 0,
        "enforcing_consecutive_5xx": 0,
        "failure_percentage_threshold": 80,
        "enforcing_failure_percentage": 100,
        "failure_percentage_minimum_hosts": 1,
        "failure_percentage_request_volume": reaction.eject_after_failures,
    }


def _endpoints(eds: Json) -> Json:
    """How a cluster finds and weighs its endpoints."""
    return {
        "type": "EDS",
        "lb_policy": "ROUND_ROBIN",
        "eds_cluster_config": eds,
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0.0},
            # Envoy's default keeps a second change of weights or health from its workers for 1 s
            "update_merge_window": "0s",
            "locality_weighted_lb_config": {},
        },
    }


def health_check(reaction: Reaction) -> Json:
    """Active checks of every endpoint."""
    interval = duration(reaction.check_interval_ms)
    return {
        "timeout": duration(reaction.check_timeout_ms),
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
        "interval": duration(reaction.check_interval_ms),
        "base_ejection_time": duration(reaction.ejection_ms),
        "max_ejection_time": duration(reaction.ejection_max_ms),
        # the default of 10 % never ejects one of three hosts
        "max_ejection_percent": 100,
    }
