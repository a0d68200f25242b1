"""Bootstraps are complete, and Envoy itself accepts them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
import trustme
from typer.testing import CliRunner

from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.cli.bootstrap import app
from controlplane.dev.process import find_binary
from tests.xds.lab import Envoy, Lab, eventually, plan

SERVERS = ["--xds-server", "10.0.0.1:7000", "--xds-server", "10.0.1.1:7000"]


def run(*arguments: str) -> str:
    """Run the command; return what it prints."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("source", [SERVERS, ["--files", "/var/lib/weir/xds"]])
def test_envoy_accepts_its_bootstrap(scratch: Path, source: list[str]) -> None:
    """Envoy validates the printed file without a warning about unknown or deprecated fields."""
    if "--files" in source:
        source = ["--files", str(scratch)]
        for name in ("cds.json", "lds.json"):
            (scratch / name).write_text('{"resources": []}')
    path = scratch / "bootstrap.json"
    path.write_text(run("envoy", "--node-id", "edge-1", "--region", "east", *source))
    done = subprocess.run(
        [find_binary("envoy"), "--mode", "validate", "--disable-hot-restart", "-c", str(path)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr


def test_envoy_reconnects_quickly_and_knows_every_replica() -> None:
    """The reconnect settings that were measured to work are in the file."""
    found = json.loads(run("envoy", "--node-id", "edge-1", *SERVERS))
    (service,) = found["dynamic_resources"]["ads_config"]["grpc_services"]
    assert service["envoy_grpc"]["retry_policy"]["retry_back_off"]["max_interval"] == "1s"
    (cluster,) = found["static_resources"]["clusters"]
    (locality,) = cluster["load_assignment"]["endpoints"]
    assert len(locality["lb_endpoints"]) == 2
    assert "priority" not in locality


def test_grpc_names_every_replica_in_one_target() -> None:
    """A list of xds_servers does not fail over at run time; one target does."""
    found = json.loads(run("grpc", "--node-id", "app-1", *SERVERS))
    (server,) = found["xds_servers"]
    assert server["server_uri"] == "ipv4:10.0.0.1:7000,10.0.1.1:7000"


def test_one_dns_name_for_all_replicas() -> None:
    """In Kubernetes replicas are one headless name: Envoy resolves it to all, gRPC too."""
    name = ["--xds-server", "weir-replicas:7000"]
    (cluster,) = json.loads(run("envoy", "--node-id", "edge-1", *name))["static_resources"][
        "clusters"
    ]
    assert cluster["type"] == "STRICT_DNS"
    (server,) = json.loads(run("grpc", "--node-id", "app-1", *name))["xds_servers"]
    assert server["server_uri"] == "dns:///weir-replicas:7000"


def test_mutual_tls_needs_all_its_files() -> None:
    """Half of mutual TLS would be plaintext by accident: a usage error."""
    result = CliRunner().invoke(
        app, ["grpc", "--node-id", "app-1", *SERVERS, "--tls-ca", "/tls/ca.pem"]
    )
    assert result.exit_code == 2
    assert "--tls-cert" in result.output


async def test_envoy_over_mutual_tls(lab: Lab, http: aiohttp.ClientSession, scratch: Path) -> None:
    """With the printed TLS settings Envoy takes the plan from a server that demands certificates,
    and from none that shows another name."""
    ca = trustme.CA()
    files = {"ca": scratch / "ca.pem", "cert": scratch / "cert.pem", "key": scratch / "key.pem"}
    ca.cert_pem.write_to_path(files["ca"])
    own = ca.issue_cert("edge.weir.test")
    own.cert_chain_pems[0].write_to_path(files["cert"])
    own.private_key_pem.write_to_path(files["key"])
    served = ca.issue_cert("replica.weir.test")
    key, chain = served.private_key_pem.bytes(), served.cert_chain_pems[0].bytes()
    credentials = grpc.ssl_server_credentials(
        [(key, chain)], ca.cert_pem.bytes(), require_client_auth=True
    )
    server = grpc.aio.server(options=ADS_SERVER_OPTIONS)
    lab.ads.register(server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    lab.ads.publish(Snapshot.build(plan(1, {"north": 10_000}), lab.dataplane()))
    try:
        envoys = {}
        for name in ("replica.weir.test", "impostor.weir.test"):
            envoy = Envoy(f"envoy-{name}", scratch)
            options = ["--xds-server", f"127.0.0.1:{port}", "--tls-server-name", name]
            options += [part for k, path in files.items() for part in (f"--tls-{k}", str(path))]
            addresses = ["--listener", f"127.0.0.1:{envoy.port}", "--admin"]
            printed = run(
                "envoy", "--node-id", name, *options, *addresses, f"127.0.0.1:{envoy.admin}"
            )
            envoy.start("", json.loads(printed))
            lab.envoys.append(envoy)
            envoys[name] = envoy
        await envoys["replica.weir.test"].ready(http)
        assert (await envoys["replica.weir.test"].pay(http))[:2] == (200, "north")

        async def refused() -> bool:
            try:
                stats = await envoys["impostor.weir.test"].stats(http, "ssl.fail_verify_san")
            except aiohttp.ClientError:  # its admin interface is not there yet
                return False
            return sum(stats.values()) > 0

        await eventually(refused, "the impostor's certificate refused")
        assert [s.name for s in lab.ads.subscribers()] == ["replica.weir.test"]
    finally:
        await server.stop(None)


@pytest.mark.parametrize("servers", [[], ["--xds-server", "replica"]])
def test_missing_or_malformed_replicas_are_a_usage_error(servers: list[str]) -> None:
    """Exit code 2 and the option's name, before anything is printed."""
    result = CliRunner().invoke(app, ["grpc", "--node-id", "app-1", *servers])
    assert result.exit_code == 2
    assert "--xds-server" in result.output
