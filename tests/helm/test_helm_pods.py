"""What the rendered pods are allowed, ask for and promise."""

from __future__ import annotations

import ast
import json
import re
from decimal import Decimal

from controlplane import config
from tests.helm.charts import ROOT, Harness, Release, Workload

_SUFFIX = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """Parse a Kubernetes quantity; KeyError or ArithmeticError when it is none."""
    number, suffix = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text)).groups()  # type: ignore[union-attr]
    return Decimal(number) * _SUFFIX[suffix]


def test_probes_ask_ports_of_their_own_container(release: Release) -> None:
    """Each probe asks a port its container declares, at a path the daemon serves."""
    for workload in release.workloads():
        for container in workload.ours:
            ports = {port["name"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
                probe = container.get(kind)
                if probe:
                    assert probe["httpGet"]["port"] in ports, (workload.name, kind)
                    assert probe["httpGet"]["path"] in ("/livez", "/readyz", "/weir/ready")


def test_pods_meet_the_restricted_standard(release: Release) -> None:
    """Pod Security Standard `restricted`, a read-only root and no token of the Kubernetes API; the
    same for our containers in a foreign pod."""
    for workload in release.workloads():
        for container in workload.ours:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] > 0
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not [p for p in container.get("ports", ()) if "hostPort" in p]
        for volume in workload.spec.get("volumes", ()):
            assert not volume.keys() & {"hostPath", "nfs"}
        if workload.name != "foreign":
            assert workload.spec["automountServiceAccountToken"] is False
            assert workload.spec["enableServiceLinks"] is False
        assert not workload.spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}


def test_there_is_no_right_to_the_kubernetes_api(release: Release) -> None:
    """Least privilege: no role is rendered."""
    assert not release.of("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


def test_no_module_needs_the_kubernetes_api() -> None:
    """The reason for it: no module of the daemons imports a client of Kubernetes or reads its
    token."""
    for folder in ("controlplane", "agents"):
        modules = list((ROOT / folder).rglob("*.py"))
        assert modules, folder
        for path in modules:
            source = path.read_text()
            assert "kubernetes.io/serviceaccount" not in source
            for node in ast.walk(ast.parse(source)):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                roots = {name.split(".")[0] for name in names}
                assert not roots & {"kubernetes", "kr8s", "lightkube"}, path


def test_no_secret_travels_in_the_environment(release: Release) -> None:
    """Secrets are files: no variable is taken from one, and no argument names one."""
    for workload in release.workloads():
        for container in workload.containers:
            assert not container.get("envFrom")
            assert "secretKeyRef" not in json.dumps(container.get("env", []))


def test_resources_are_stated_and_consistent(release: Release) -> None:
    """Quantities parse, a request never exceeds its limit, and no CPU limit throttles a replica."""
    for workload in release.workloads():
        for container in workload.ours:
            resources = container.get("resources", {})
            requests, limits = resources.get("requests", {}), resources.get("limits", {})
            assert requests.keys() >= {"cpu", "memory"}, (workload.name, container["name"])
            assert "memory" in limits
            for key, value in requests.items():
                assert quantity(value) > 0
                assert quantity(value) <= quantity(limits.get(key, value)), (workload.name, key)
            memory = [quantity(v) for k, v in limits.items() if k == "memory"]
            assert all(value >= 32 * 2**20 for value in memory)
    for claim in release.controlplane["spec"].get("volumeClaimTemplates", ()):
        assert quantity(claim["spec"]["resources"]["requests"]["storage"]) >= 2**20


def test_default_replica_has_no_cpu_limit(harness: Harness) -> None:
    """A throttled leader misses ticks and is deposed, so the default sets a request only."""
    container = harness.case("minimal").controlplane["spec"]["template"]["spec"]["containers"][0]
    assert "cpu" in container["resources"]["requests"]
    assert "cpu" not in container["resources"]["limits"]


def test_a_sidecar_cannot_take_its_pod_out_of_service(release: Release) -> None:
    """Static stability: a pod with the agent beside it stays ready, and in a foreign pod starts,
    while no replica answers: the sidecar has no readiness probe, and liveness never asks for
    more than the process itself."""
    for workload in release.workloads():
        for container in workload.ours:
            if container["name"] != "weir-agent":
                continue
            assert "readinessProbe" not in container
            assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
            if workload.name == "foreign":
                assert container["startupProbe"]["httpGet"]["path"] == "/livez"


def test_the_patch_leaves_a_foreign_pod_as_it_was(harness: Harness) -> None:
    """The sidecar patch adds containers, volumes, labels and annotations; what the pod had stays."""
    for case in ("everything", "classic"):
        pods = [w for w in harness.case(case).workloads() if w.name == "foreign"]
        assert {w.namespace for w in pods} == {"weir", "payments", "wallet"}
        for pod in pods:
            assert pod.labels["app"] == "foreign"
            names = [c["name"] for c in pod.spec["containers"]]
            assert names == (["app"] if case == "everything" else ["weir-agent", "app"])
            assert [c["name"] for c in pod.spec["initContainers"]][-1] == "migrate"
            assert pod.spec.keys() <= {"containers", "initContainers", "volumes"}


def test_pods_have_time_to_end_in_order(release: Release) -> None:
    """The kubelet waits longer than the daemon drains, and than Envoy drains."""
    parsed = config.parse(release.config_text())
    spec = release.controlplane["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > parsed.server.grace_s
    for workload in release.workloads():
        for container in workload.containers:
            if container["name"] == "envoy":
                drain = int(container["args"][container["args"].index("--drain-time-s") + 1])
                assert workload.spec["terminationGracePeriodSeconds"] > drain
                assert f"sleep {drain}" in container["lifecycle"]["preStop"]["exec"]["command"][-1]


def _workload(release: Release, name: str) -> Workload:
    return next(w for w in release.workloads() if w.name == name)


def test_every_pod_of_the_chart_runs_the_same_image(harness: Harness) -> None:
    """One image serves replicas, agents, the bootstrap and the test; a digest goes before a tag."""
    release = harness.case("everything")
    images = {c["image"] for w in release.workloads() for c in w.ours if c["name"] != "envoy"}
    assert images == {"registry.example.com/weir@sha256:" + "0" * 64}
    envoy = _workload(release, "weir-east-gateway").spec["containers"][0]["image"]
    assert envoy.startswith("envoyproxy/envoy:v")
