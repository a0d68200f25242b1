"""Bootstraps for Envoy and for proxyless gRPC, with the reconnect settings that work.

Envoy. All replicas are endpoints of one cluster at one priority (two priorities without health
information never failed over). The default reconnect backoff of up to 23 s becomes 0.1 to 1 s, a
hung replica is noticed by HTTP/2 pings and set aside by outlier detection. The admin interface's
`/ready` says LIVE even without a listener: probe `READY_PATH` on the listener instead.

gRPC. Its list of xds_servers does not fail over at run time; one target with all addresses does.

Replicas are named by `ip:port`, or by one DNS name that resolves to all of them. With mutual TLS
Envoy follows renewed files; both then check the replica's certificate against `server_name`.

Files. `envoy_files_bootstrap` reads what an agent writes: Envoy starts with no control plane.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from controlplane.adapters.xds_resources import file_source

XDS_CLUSTER: Final = "weir_xds"
PING_MS: Final = 500
"""Interval of HTTP/2 pings to the replica, and how long the answer may take: a hung replica is left
after twice this, and set aside by outlier detection."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsPaths:
    """Files of mutual TLS at the data plane, and the DNS name in the replicas' certificates."""

    ca_file: str
    cert_file: str
    key_file: str
    server_name: str


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _split(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _is_ip(server: str) -> bool:
    try:
        ipaddress.ip_address(_split(server)[0])
    except ValueError:
        return False
    return True


def _upstream_tls(tls: TlsPaths) -> Json:
    watched = {"path": str(PurePosixPath(tls.cert_file).parent)}
    name = {"san_type": "DNS", "matcher": {"exact": tls.server_name}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
            "UpstreamTlsContext",
            "sni": tls.server_name,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": tls.cert_file},
                        "private_key": {"filename": tls.key_file},
                        "watched_directory": watched,
                    }
                ],
                "validation_context": {
                    "trusted_ca": {"filename": tls.ca_file},
                    "match_typed_subject_alt_names": [name],
                },
            },
        },
    }


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
    tls: TlsPaths | None = None,
) -> Json:
    """Return the bootstrap of an Envoy that takes everything over ADS.

    `servers` are the replicas (or the agent's relay) as `ip:port`, or one DNS name for all. JSON is
    valid YAML: write it with `json.dump`.
    """
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
        "static_resources": {"clusters": [_xds_cluster(servers, tls)]},
    }


def _xds_cluster(servers: Sequence[str], tls: TlsPaths | None) -> Json:
    """Return the cluster of all replicas."""
    endpoints = [{"endpoint": {"address": _address(*_split(server))}} for server in servers]
    keepalive = {"interval": _seconds(PING_MS), "timeout": _seconds(PING_MS)}
    return {
        "name": XDS_CLUSTER,
        "type": "STATIC" if all(_is_ip(server) for server in servers) else "STRICT_DNS",
        "connect_timeout": "0.5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3."
                "HttpProtocolOptions",
                "explicit_http_config": {
                    "http2_protocol_options": {"connection_keepalive": keepalive}
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
        **({"transport_socket": _upstream_tls(tls)} if tls else {}),
        "load_assignment": {
            "cluster_name": XDS_CLUSTER,
            "endpoints": [{"lb_endpoints": endpoints}],
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


def grpc_bootstrap(
    *, servers: Sequence[str], node_id: str, region: str = "", tls: TlsPaths | None = None
) -> Json:
    """Return the bootstrap of proxyless gRPC (file named by GRPC_XDS_BOOTSTRAP)."""
    creds: Json = {"type": "insecure"}
    if tls:
        creds = {
            "type": "tls",
            "config": {
                "ca_certificate_file": tls.ca_file,
                "certificate_file": tls.cert_file,
                "private_key_file": tls.key_file,
                "refresh_interval": "60s",
            },
        }
    by_ip = all(_is_ip(server) for server in servers)
    return {
        "xds_servers": [
            {
                "server_uri": ("ipv4:" + ",".join(servers)) if by_ip else f"dns:///{servers[0]}",
                "channel_creds": [creds],
                "server_features": ["xds_v3"],
            }
        ],
        "node": {"id": node_id, "locality": {"region": region}},
    }
