"""What is rendered runs: the pods' commands, arguments, environment, configuration and probes, as
local processes against a real etcd and a real Envoy."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.dev.process import free_ports
from controlplane.dev.servers import EtcdCluster, scratch_root, wait_until
from tests.helm.charts import MINIMAL, Harness, Json, Release, merge
from tests.helm.issuer import Issuer
from tests.helm.kubelet import LocalPod, pod_of


class _Gateway(BaseHTTPRequestHandler):
    """A region's payment gateway: healthy, and a payment takes until `release` is set."""

    protocol_version = "HTTP/1.1"
    arrived = threading.Event()
    release = threading.Event()

    def do_GET(self) -> None:
        self._answer({"ok": True})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.arrived.set()
        assert self.release.wait(60)
        self._answer({"region": "east", "status": "SUCCEEDED"})

    def _answer(self, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass
class Region:
    """A region's pods on this machine."""

    release: Release
    root: Path
    pods: list[LocalPod]
    issuer: Issuer = field(default_factory=Issuer)

    def pod(self, workload: str, ordinal: int = 0) -> LocalPod:
        """Make a pod that ends with the test."""
        made = pod_of(self.release, workload, self.root, self.issuer, ordinal)
        self.pods.append(made)
        return made


CERT_MANAGER: Json = {
    "tls": {
        "mode": "certManager",
        "certManager": {
            "issuerRef": {"name": "payments-ca"},
            "clients": [{"name": "oncall", "role": "viewer"}],
        },
    },
}


@pytest.fixture
def tls_values() -> Json:
    """Return the values of TLS: mutual, with certificates as the chart asks for them, unless a test
    says otherwise."""
    return CERT_MANAGER


FRESH_MS = 3000
"""A peer's digest younger than this means that the link to it works."""

PLAINTEXT = pytest.mark.parametrize("tls_values", [{}], ids=["plaintext"])


@pytest.fixture
def region(
    harness: Harness, tmp_path_factory: pytest.TempPathFactory, tls_values: Json
) -> Iterator[Region]:
    """Render the chart for loopback, with a real etcd and a payment gateway."""
    grpc, web, agent, listener, admin = free_ports(5)
    backend = ThreadingHTTPServer(("127.0.0.1", 0), _Gateway)
    backend.daemon_threads = True
    thread = threading.Thread(target=backend.serve_forever)
    thread.start()
    root = tmp_path_factory.mktemp("pods")
    etcd = EtcdCluster(scratch_root() / f"weir-{root.parent.name}-{root.name}", size=1)
    try:
        etcd.start()
        values = merge(
            MINIMAL,
            {
                "controlPlane": {"replicas": 2},
                "ports": {"grpc": grpc, "http": web, "agent": agent},
                "gateway": {
                    "enabled": True,
                    "drainSeconds": 2,
                    "ports": {"listener": listener, "admin": admin},
                },
                "config": {
                    "server": {"grace_s": 2},
                    "regions": {
                        "east": {
                            "replicas": [
                                {"id": f"weir-east-{n}", "grpc": f"127.0.0.{n + 1}:{grpc}"}
                                for n in range(2)
                            ],
                            "endpoints": [f"127.0.0.1:{backend.server_port}"],
                        }
                    },
                    "channels": {
                        "alipay": {
                            "probe": {"target": f"127.0.0.1:{backend.server_port}"},
                            "timeout_ms": 60000,
                        }
                    },
                    "coordination": {"endpoints": etcd.endpoints},
                },
            },
        )
        made = Region(harness.helm.render(merge(values, tls_values)), root, [])
        try:
            yield made
        finally:
            for pod in made.pods:
                pod.close()
    finally:
        etcd.stop()
        backend.shutdown()
        thread.join()
        backend.server_close()


def status(region: Region, server: str, files: Path | None) -> int:
    """Return the exit code of `weir status` with a certificate's files, or without one."""
    options = [
        word
        for flag, name in (("ca", "ca.crt"), ("cert", "tls.crt"), ("key", "tls.key"))
        for word in (f"--{flag}-file", f"{files}/{name}")
    ]
    weir = Path(sys.executable).with_name("weir")
    words = [str(weir), "status", "--server", server, *(options if files else [])]
    return subprocess.run(words, capture_output=True, check=False, cwd=region.root).returncode


def test_replica_and_agent_run_as_rendered(region: Region) -> None:
    """With the certificates that the chart asks for: the replica starts, passes its probes, makes a
    plan; the agent takes it and becomes ready; `helm test` passes; a viewer reads the status, which
    the replica's own certificate may not, nor anybody without one; both daemons end in time with
    exit code 0 and write only to their volumes."""
    replica = region.pod("weir-east")
    replica.start("weir")
    replica.wait_for("weir", "readinessProbe")
    assert replica.told("weir", "livenessProbe") == 200

    agent = region.pod("weir-east-agent")
    agent.start("agent")
    agent.wait_for("agent", "readinessProbe")
    assert agent.told("agent", "livenessProbe") == 200

    test = region.pod("weir-east-test")
    checked = test.run("config")
    assert checked.returncode == 0, checked.stderr
    service = "http://weir-east.weir.svc:"
    args = test.container("ready")["args"]
    args[:] = [word.replace(service, "http://127.0.0.1:") for word in args]
    answered = test.run("ready")
    assert answered.returncode == 0, answered.stderr

    wanted = region.release.one("Certificate", "weir-east-client-oncall")
    oncall = region.root / "oncall"
    oncall.mkdir()
    for key, data in region.issuer.secret(wanted).items():
        (oncall / key).write_bytes(data)
    server = replica.environment(replica.container("weir"))["WEIR_SERVER"]
    assert status(region, server, oncall) == 0
    assert status(region, server, Path(replica.local("/etc/weir-tls"))) != 0
    assert status(region, server, None) != 0

    for pod, name in ((agent, "agent"), (replica, "weir")):
        code, took_s = pod.end(name)
        assert code == 0, (pod.root / f"{name}.log").read_text()
        assert took_s < pod.workload.spec["terminationGracePeriodSeconds"]
        assert pod.strays() == []
    saved = list(Path(replica.local("/var/lib/weir")).iterdir())
    assert saved, "the last good plan is on the state volume"


def test_a_rolling_restart_hands_over_leadership(region: Region) -> None:
    """The two replicas of the rendered release find each other by their configured addresses and
    certificates; when the kubelet ends the leader, the other leads and stays ready, and the first
    one comes back as its peer."""
    pods = [region.pod("weir-east", ordinal) for ordinal in range(2)]
    web = pods[0].workload.ports()["http"]

    def status(pod: LocalPod) -> Json:
        answer = pod.get(web, "/api/status")
        found: Json = json.loads(answer[1]) if answer and answer[0] == 200 else {}
        return found

    def leader() -> str:
        """Return the leader once both replicas are live and say the same."""
        seen = [status(pod) for pod in pods]
        live = [
            s
            for s in seen
            if len([r for r in s.get("replicas", ()) if 0 <= r["digest_age_ms"] < FRESH_MS]) == 2
        ]
        names = {s["leader"] for s in live}
        return names.pop() if len(live) == 2 and len(names) == 1 else ""

    for pod in pods:
        pod.start("weir")
    for pod in pods:
        pod.wait_for("weir", "readinessProbe")
    wait_until(lambda: leader() != "", "both replicas to agree", 60)
    first = next(pod for pod in pods if pod.name == leader())
    other = next(pod for pod in pods if pod is not first)

    assert first.end("weir")[0] == 0
    wait_until(lambda: status(other).get("leader") == other.name, "the other to lead", 60)
    assert other.told("weir", "readinessProbe") == 200
    first.start("weir")
    first.wait_for("weir", "readinessProbe")
    wait_until(lambda: leader() == other.name, "the first one to come back", 60)


@PLAINTEXT
def test_replica_is_alive_without_etcd_but_not_ready(
    region: Region, harness: Harness, tmp_path: Path
) -> None:
    """With no etcd at all a new replica stays alive, so the kubelet does not restart it in vain,
    and is not ready, so no client is sent to it."""
    config = yaml.safe_load(region.release.config_text())
    dead = free_ports(1)[0]
    pod = region.pod("weir-east")
    config["coordination"]["endpoints"] = [f"127.0.0.1:{dead}"]
    path = Path(pod.local("/etc/weir")) / "weir.yaml"
    path.write_text(pod.local(yaml.safe_dump(config)))
    pod.start("weir")
    assert pod.told("weir", "livenessProbe") == 200
    assert pod.told("weir", "readinessProbe") == 503


@PLAINTEXT
def test_gateway_starts_after_its_plan_and_drains_before_it_ends(region: Region) -> None:
    """The bootstrap is generated, Envoy starts once the agent has a plan, takes a payment, and a
    payment in flight survives the end of the pod: the preStop hook drains first."""
    replica = region.pod("weir-east")
    replica.start("weir")
    pod = region.pod("weir-east-gateway")
    made = pod.run("bootstrap")
    assert made.returncode == 0, made.stderr
    assert json.loads((Path(pod.local("/run/weir/bootstrap")) / "envoy.json").read_text())
    pod.start("weir-agent")
    pod.start("envoy")
    pod.wait_for("envoy", "readinessProbe")

    _Gateway.arrived.clear()
    _Gateway.release.clear()
    listener = pod.workload.ports()["listener"]
    paying = http.client.HTTPConnection("127.0.0.1", listener, timeout=60)
    paying.request(
        "POST", "/v1/channels/alipay/payments", b'{"amount": 100, "currency": "CNY"}',
        {"Idempotency-Key": "one", "Content-Type": "application/json"},
    )  # fmt: skip
    assert _Gateway.arrived.wait(60)
    hook = pod.pre_stop("envoy")
    assert hook.stdout is not None
    assert "200 OK" in hook.stdout.readline()
    _Gateway.release.set()
    answer = paying.getresponse()
    assert json.loads(answer.read())["status"] == "SUCCEEDED"
    assert answer.getheader("connection") == "close"
    paying.close()
    hook.communicate(timeout=60)
    assert hook.returncode == 0
    code, _ = pod.end("envoy")
    assert code == 0
    assert pod.told("weir-agent", "livenessProbe") == 200, "a native sidecar outlives Envoy"
    assert pod.end("weir-agent")[0] == 0
    assert pod.strays() == []
    assert pod.get(listener, "/weir/ready") is None
