"""`weir dev --tls`: the whole topology speaks mutual TLS, and nobody gets in without a certificate."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import grpc
import pytest
import trustme

from controlplane.dev.ca import SERVER_NAME
from controlplane.v1 import admin_pb2, admin_pb2_grpc
from tests.support.dev_run import DevRun, eventually, running, weir


def all_applied(run: DevRun) -> bool:
    """Whether agents of all regions and Envoy have applied the plan in force."""
    answer = weir("status", "-o", "json", env={"WEIR_STATE_DIR": str(run.state_dir)})
    if answer.returncode:
        return False
    status = json.loads(answer.stdout)
    return status["subscribers"] >= 4 and not status["laggards"]


def test_everything_speaks_mutual_tls(tmp_path: Path) -> None:
    """Agents, peers, Envoy and the CLI work with their own certificates; plaintext gets no answer;
    an operator's drain is audited under the certificate's name; who has no certificate of this CA is
    refused, logged and counted."""
    with running(tmp_path / "state", "--tls") as run:
        run.until_ready()
        eventually(lambda: all_applied(run), "agents and Envoy follow the plan over TLS")
        env = {"WEIR_STATE_DIR": str(run.state_dir)}
        drained = weir("drain", "south", "--reason", "t", "--yes", "-o", "json", env=env)
        assert drained.returncode == 0, drained.stderr
        assert json.loads(drained.stdout)["by"] == "spiffe://weir.dev/weir/breakglass/local"
        address = run.topology["replicas"][0]["grpc"]
        with grpc.insecure_channel(address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        _the_doctor_finds_everything(env)
        for key in (tmp_path / "state" / "ca").glob("*.key"):
            assert key.stat().st_mode & 0o077 == 0
        for name, credentials in strangers(run.state_dir / "ca" / "ca.pem").items():
            before = refused_handshakes(run)
            with grpc.secure_channel(address, credentials, OPTIONS) as channel:
                stub = admin_pb2_grpc.AdminServiceStub(channel)
                with pytest.raises(grpc.RpcError):
                    stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=60)
            eventually(lambda n=before: refused_handshakes(run) > n, f"counted: {name}")
        assert '"event": "handshake_failed"' in (run.state_dir / "logs" / "east-0.log").read_text()


def _the_doctor_finds_everything(env: dict[str, str]) -> None:
    """Without an option, and with the version of every agent."""
    done = weir("doctor", "-o", "json", env=env)
    rows = {row["check"]: row for row in json.loads(done.stdout)["checks"]}
    assert "3 agents" in rows["versions"]["seen"]
    for check in ("versions", "config", "--cert-file", "certificates", "etcd members", "redis"):
        assert rows[check]["result"] == "ok", rows[check]


OPTIONS = [("grpc.ssl_target_name_override", SERVER_NAME)]


def strangers(ca: Path) -> dict[str, grpc.ChannelCredentials]:
    """Callers that trust this CA and are trusted by nobody."""
    root = ca.read_bytes()
    other = trustme.CA().issue_cert("operator@elsewhere.example")
    chain = b"".join(part.bytes() for part in other.cert_chain_pems)
    return {
        "no certificate": grpc.ssl_channel_credentials(root),
        "another CA's": grpc.ssl_channel_credentials(root, other.private_key_pem.bytes(), chain),
    }


def refused_handshakes(run: DevRun) -> float:
    """Failed handshakes as the first replica counts them."""
    url = f"http://{run.topology['replicas'][0]['http']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    rows = re.findall(r'weir_calls_denied_total\{reason="handshake"\} (\S+)', text)
    return float(rows[0]) if rows else 0.0
