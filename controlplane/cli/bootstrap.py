"""`weir bootstrap envoy|grpc`: what a data plane needs to find the control plane.

Prints JSON (Envoy reads it as YAML too). Nothing is asked of a replica, so it works while none
answers.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from controlplane.adapters.xds_bootstrap import (
    TlsPaths,
    envoy_bootstrap,
    envoy_files_bootstrap,
    grpc_bootstrap,
)

app = typer.Typer(name="bootstrap", help="Bootstrap files for data planes.", no_args_is_help=True)

Replicas = Annotated[
    list[str] | None,
    typer.Option(
        "--xds-server", help="ip:port of a replica or relay; repeat for each, or give one DNS name."
    ),
]
NodeId = Annotated[str, typer.Option("--node-id", help="Unique name of this data plane.")]
CaFile = Annotated[str, typer.Option("--tls-ca", help="CA bundle at the data plane.")]
CertFile = Annotated[str, typer.Option("--tls-cert", help="Certificate at the data plane.")]
KeyFile = Annotated[str, typer.Option("--tls-key", help="Private key at the data plane.")]
ServerName = Annotated[
    str, typer.Option("--tls-server-name", help="DNS name in the replicas' certificates.")
]
RegionOption = Annotated[str, typer.Option("--region", help="Region it runs in.")]


def _print(document: dict[str, Any]) -> None:
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _replicas(servers: list[str] | None) -> list[str]:
    if not servers:
        raise typer.BadParameter("name at least one replica", param_hint="--xds-server")
    for server in servers:
        host, _, port = server.rpartition(":")
        if not host or not port.isdigit():
            raise typer.BadParameter(f"{server!r} is not ip:port", param_hint="--xds-server")
    return servers


def _tls(ca: str, cert: str, key: str, name: str) -> TlsPaths | None:
    given = {"--tls-ca": ca, "--tls-cert": cert, "--tls-key": key, "--tls-server-name": name}
    if not any(given.values()):
        return None
    for option, value in given.items():
        if not value:
            raise typer.BadParameter("mutual TLS needs all four options", param_hint=option)
    return TlsPaths(ca_file=ca, cert_file=cert, key_file=key, server_name=name)


@app.command("envoy")
def envoy(
    node_id: NodeId,
    xds_server: Replicas = None,
    region: RegionOption = "",
    listener: Annotated[
        str, typer.Option("--listener", help="Where Envoy takes payments, ip:port.")
    ] = "127.0.0.1:10000",
    admin: Annotated[
        str, typer.Option("--admin", help="Envoy's admin interface, ip:port.")
    ] = "127.0.0.1:9901",
    files: Annotated[
        str, typer.Option("--files", help="Read an agent's xDS files below this directory instead.")
    ] = "",
    tls_ca: CaFile = "",
    tls_cert: CertFile = "",
    tls_key: KeyFile = "",
    tls_server_name: ServerName = "",
) -> None:
    """Print the bootstrap of an Envoy: over ADS, or from an agent's files."""
    admin_host, _, admin_port = admin.rpartition(":")
    if files:
        document = envoy_files_bootstrap(
            directory=files,
            admin_host=admin_host,
            admin_port=int(admin_port),
            node_id=node_id,
            region=region,
        )
    else:
        host, _, port = listener.rpartition(":")
        document = envoy_bootstrap(
            servers=_replicas(xds_server),
            listener_host=host,
            listener_port=int(port),
            admin_host=admin_host,
            admin_port=int(admin_port),
            node_id=node_id,
            region=region,
            tls=_tls(tls_ca, tls_cert, tls_key, tls_server_name),
        )
    _print(document)


@app.command("grpc")
def grpc(
    node_id: NodeId,
    xds_server: Replicas = None,
    region: RegionOption = "",
    tls_ca: CaFile = "",
    tls_cert: CertFile = "",
    tls_key: KeyFile = "",
    tls_server_name: ServerName = "",
) -> None:
    """Print the bootstrap of proxyless gRPC (the file GRPC_XDS_BOOTSTRAP names)."""
    tls = _tls(tls_ca, tls_cert, tls_key, tls_server_name)
    _print(grpc_bootstrap(servers=_replicas(xds_server), node_id=node_id, region=region, tls=tls))
