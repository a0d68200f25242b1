"""Bootstraps for Envoy and for proxyless gRPC, with the reconnect settings that work.

Envoy. All replicas are endpoints of one cluster at one priority (two priorities without health
information never failed over). The default reconnect backoff of up to 23 s becomes 0.1 to 1 s, a
hung replica is noticed by HTTP/2 pings and set aside by outlier detection. The admin interface's
`/ready` says LIVE even without a listener: probe `READY_PATH` on the listener instead.

gRPC. Its list of xds_servers does not fail over at run time; one target with all addresses does.

Files. `envoy_files_bootstrap` reads what an agent writes: Envoy starts with no control plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from controlplane.adapters.xds_resources import file_source

XDS_CLUSTER: Final = "weir_xds"
PING_MS: Final = 1000
"""Interval of HTTP/2 pings to the replica, and how long the answer may take."""

Json = dict[str, Any]


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _node(node_id: str, cluster: str, region: str, listener: tuple[str, int] | None) -> Json:
    node: Json = {"id": node_id, "cluster": cluster, "locality": {"region": region}}
    if listener:
        node["metadata"] = {"listener": {"host": listener[0], "port": listener[1]}}
    return node


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.3f}s"


def _admin(host: str, port: int) -> Json:
    return {"address": _address(host, port)}


def envoy_bootstrap(
    *,
    servers: Sequence[str],
    listener_port: int,
    admin_port: int,
    node_id: str,
    region: str = "",
    cluster: str = "weir",
    listener_host: str = "127.0.0.1",
    admin_host: str = "127.0.0.1",
) -> Json:
    """Return the bootstrap of an Envoy that takes everything over ADS.

    `servers` are the replicas (or the agent's relay) as `ip:port`. JSON is valid YAML: write it
    with `json.dump`.
    """
    endpoints = [{"endpoint": {"address": _address(*_split(server))}} for server in servers]
    return {
        "node": _node(node_id, cluster, region, (listener_host, listener_port)),
        "admin": _admin(admin_host, admin_port),
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": XDS_CLUSTER,
                            "retry_policy": {
                                "retry_back_off": {
                                    "base_interval": "0.1s",
                                    "max_interval": "1s",
                                }
                            },
                        }
                    }
                ],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "clusters": [
                {
                    "name": XDS_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "0.5s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3."
                            "HttpProtocolOptions",
                            "explicit_http_config": {
                                "http2_protocol_options": {
                                    "connection_keepalive": {
                                        "interval": _seconds(PING_MS),
                                        "timeout": _seconds(PING_MS),
                                    }
                                }
                            },
                        }
                    },
                    "outlier_detection": {
                        "split_external_local_origin_errors": True,
                        "consecutive_local_origin_failure": 1,
                        "interval": "1s",
                        "base_ejection_time": "3s",
                        "max_ejection_time": "10s",
                        "max_ejection_percent": 67,
                    },
                    "load_assignment": {
                        "cluster_name": XDS_CLUSTER,
                        "endpoints": [{"lb_endpoints": endpoints}],
                    },
                }
            ]
        },
    }


def envoy_files_bootstrap(
    *,
    directory: str,
    admin_port: int,
    node_id: str,
    region: str = "",
    cluster: str = "weir",
    admin_host: str = "127.0.0.1",
) -> Json:
    """Return the bootstrap of an Envoy that reads the files an agent keeps below `directory`."""
    return {
        "node": _node(node_id, cluster, region, None),
        "admin": _admin(admin_host, admin_port),
        "dynamic_resources": {
            "cds_config": file_source(f"{directory}/cds.json", directory),
            "lds_config": file_source(f"{directory}/lds.json", directory),
        },
    }


def grpc_bootstrap(*, servers: Sequence[str], node_id: str, region: str = "") -> Json:
    """Return the bootstrap of proxyless gRPC (file named by GRPC_XDS_BOOTSTRAP)."""
    return {
        "xds_servers": [
            {
                "server_uri": "ipv4:" + ",".join(servers),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": node_id, "locality": {"region": region}},
    }
