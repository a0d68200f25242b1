"""Bootstraps are complete, and Envoy itself accepts them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controlplane.cli.bootstrap import app
from controlplane.dev.process import find_binary

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
        [find_binary("envoy"), "--mode", "validate", "-c", str(path)],
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


@pytest.mark.parametrize("servers", [[], ["--xds-server", "replica"]])
def test_missing_or_malformed_replicas_are_a_usage_error(servers: list[str]) -> None:
    """Exit code 2 and the option's name, before anything is printed."""
    result = CliRunner().invoke(app, ["grpc", "--node-id", "app-1", *servers])
    assert result.exit_code == 2
    assert "--xds-server" in result.output
