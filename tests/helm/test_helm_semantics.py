"""What the schemas of Kubernetes do not say: the rendered objects fit together."""

from __future__ import annotations

import ast
import json
import re
from decimal import Decimal
from typing import Any

import pytest
import yaml

from controlplane import config
from controlplane.adapters.identity import parse_spiffe
from controlplane.model.permissions import RoleName
from tests.helm.charts import CASES, ROOT, Harness, Json, Release, Workload, matches, merge

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
_SUFFIX = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """Parse a Kubernetes quantity; KeyError or ArithmeticError when it is none."""
    number, suffix = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text)).groups()  # type: ignore[union-attr]
    return Decimal(number) * _SUFFIX[suffix]


def test_names_are_valid_and_unique(release: Release) -> None:
    """Every object has a name of its own that Kubernetes takes, in a namespace that is stated."""
    keys = [(o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]) for o in release.objects]
    assert len(set(keys)) == len(keys)
    assert [name for _, _, name in keys if not DNS_LABEL.fullmatch(name)] == []


def test_each_selector_takes_its_own_pods_and_no_others(release: Release) -> None:
    """Services, disruption budgets, network policies, spread constraints and workloads select the
    pods of exactly one workload, in its namespace."""
    workloads = release.workloads()
    for kind, selector, namespace in _selectors(release):
        taken = {
            w.name for w in workloads if w.namespace == namespace and matches(selector, w.labels)
        }
        assert len(taken) == 1, (kind, selector, taken)


def _selectors(release: Release) -> list[tuple[str, dict[str, str], str]]:
    found = []
    for item in release.objects:
        namespace, spec = item["metadata"]["namespace"], item.get("spec", {})
        if item["kind"] == "Service":
            pod = spec["selector"].get("statefulset.kubernetes.io/pod-name")
            rest = {k: v for k, v in spec["selector"].items() if "pod-name" not in k}
            assert pod is None or pod == item["metadata"]["name"]
            found.append(("Service", rest, namespace))
        elif item["kind"] in ("PodDisruptionBudget", "StatefulSet", "Deployment"):
            found.append((item["kind"], spec["selector"]["matchLabels"], namespace))
        elif item["kind"] == "NetworkPolicy":
            found.append(("NetworkPolicy", spec["podSelector"]["matchLabels"], namespace))
        pod = spec.get("template", {}).get("spec", {})
        found += [
            ("spread", constraint["labelSelector"]["matchLabels"], namespace)
            for constraint in pod.get("topologySpreadConstraints", ())
        ]
    return found


def test_releases_in_one_namespace_do_not_meet(harness: Harness) -> None:
    """Two releases beside each other select only their own pods."""
    east, north = harness.case("east"), harness.case("north")
    for kind, selector, _ in _selectors(east):
        assert not [w.name for w in north.workloads() if matches(selector, w.labels)], kind


def test_service_ports_exist_in_the_pods(release: Release) -> None:
    """Every target port of a Service is a named port of the pods behind it."""
    for service in release.of("Service"):
        selector = {k: v for k, v in service["spec"]["selector"].items() if "pod-name" not in k}
        pods = [w for w in release.workloads() if matches(selector, w.labels)]
        assert pods
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in pods[0].ports(), (service["metadata"]["name"], port)


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


def test_daemons_listen_where_the_pods_say(release: Release) -> None:
    """The ports of the configuration are the container ports, and every address is open to the
    pod's network."""
    parsed = config.parse(release.config_text())
    ports = next(w for w in release.workloads() if w.name == release.name).ports()
    for address, name in (
        (parsed.server.grpc_listen, "grpc"),
        (parsed.server.http_listen, "http"),
    ):
        host, _, port = address.rpartition(":")
        assert int(port) == ports[name]
        assert host in ("0.0.0.0", "[::]")
    agents = [w for w in release.workloads() if "weir-http" in w.ports()]
    for workload in agents:
        assert parsed.agent.http_listen.endswith(f":{workload.ports()['weir-http']}")


def test_replicas_are_the_configured_ones(release: Release) -> None:
    """The pods' names are the region's replica ids, so peers find each other; every name by which
    they are configured is in the certificate."""
    parsed = config.parse(release.config_text())
    assert parsed.cluster.region is not None
    replicas = parsed.regions[parsed.cluster.region].replicas
    name = release.controlplane["metadata"]["name"]
    count = release.controlplane["spec"]["replicas"]
    assert sorted(r.id for r in replicas) == [f"{name}-{n}" for n in range(count)]
    for certificate in release.of("Certificate"):
        if certificate["metadata"]["name"].endswith("-server"):
            hosts = {r.grpc.rpartition(":")[0] for r in replicas}
            known = {*certificate["spec"]["dnsNames"], *certificate["spec"].get("ipAddresses", ())}
            assert hosts <= known
            assert {"server auth", "client auth"} <= set(certificate["spec"]["usages"])


def test_certificates_say_who_is_who(release: Release) -> None:
    """Each certificate's URI is read by the servers as the role and region it is made for, and only
    the replicas' may serve."""
    for certificate in release.of("Certificate"):
        (uri,) = certificate["spec"]["uris"]
        name = certificate["metadata"]["name"]
        identity = parse_spiffe(uri)
        assert identity is not None, uri
        (role,) = identity.roles
        regional = {"server": RoleName.REPLICA, "agent": RoleName.AGENT}
        kind = name.removeprefix(f"{release.name}-")
        if kind in regional:
            assert role is regional[kind]
            assert identity.region == config.parse(release.config_text()).cluster.region
        else:
            assert role is RoleName.OPERATOR
            assert identity.region is None
        assert ("server auth" in certificate["spec"]["usages"]) is (kind == "server")


def test_configuration_passes_the_daemons_own_check(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ConfigMap passes `controlplane.config` under each container's environment, and the
    process then knows its own name and region."""
    for workload in release.workloads():
        for container in workload.ours:
            if "--config" not in container.get("args", ()):
                continue
            with monkeypatch.context() as patch:
                for key, value in environment(container, pod=f"{workload.name}-0").items():
                    patch.setenv(key, value)
                parsed = config.parse(release.config_text())
            assert parsed.cluster.id == f"{workload.name}-0"
            assert parsed.cluster.region in parsed.regions


def environment(container: Json, pod: str) -> dict[str, str]:
    """Return a container's environment as the kubelet would set it, with the variables that a
    Service named weir adds where links are on."""
    found = {"WEIR_PORT": "tcp://10.0.0.1:7700", "WEIR_EAST_SERVICE_HOST": "10.0.0.1"}
    for entry in container.get("env", ()):
        if "valueFrom" in entry:
            assert entry["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            found[entry["name"]] = pod
        else:
            found[entry["name"]] = entry["value"]
    return found


def test_every_file_of_the_configuration_is_mounted(release: Release) -> None:
    """TLS, passwords, state and xDS paths lie on volumes of the container that uses them; the
    passwords reach the replicas only."""
    parsed = config.parse(release.config_text())
    server = [parsed.coordination.password_file, parsed.locks.password_file]
    both = [parsed.tls.ca_file, parsed.tls.cert_file, parsed.tls.key_file]
    for workload in release.workloads():
        for container in workload.ours:
            if "--config" not in container.get("args", ()):
                continue
            mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
            replica = container["args"][0] == "controlplane"
            files = [*both, *(server if replica else [])]
            for path in filter(None, files):
                assert mounts[str(path.parent)]["readOnly"] is True
            state = parsed.server.state_dir if replica else parsed.agent.state_dir
            assert not mounts[str(state)].get("readOnly")
            assert replica or not [m for m in mounts if "etcd" in m or "redis" in m]
            assert container["args"][-1].rpartition("/")[0] in mounts


def test_volumes_and_mounts_agree(release: Release) -> None:
    """Every mount has its volume, every volume is mounted, and what it names is rendered by the
    chart or given by the user."""
    for workload in release.workloads():
        volumes = {v["name"]: v for v in workload.spec.get("volumes", ())}
        if workload.name == release.controlplane["metadata"]["name"]:
            for claim in release.controlplane["spec"].get("volumeClaimTemplates", ()):
                volumes[claim["metadata"]["name"]] = claim
        used = {m["name"] for c in workload.containers for m in c.get("volumeMounts", ())}
        assert used == volumes.keys() - {"app-data"}, workload.name
        for volume in volumes.values():
            if "configMap" in volume:
                release.one("ConfigMap", volume["configMap"]["name"], workload.namespace)
            if "secret" in volume and release.of("Certificate"):
                made = {
                    c["spec"]["secretName"]
                    for c in release.of("Certificate")
                    if c["metadata"]["namespace"] == workload.namespace
                }
                given = {"weir-etcd", "weir-redis"}
                assert volume["secret"]["secretName"] in made | given


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
        for path in (ROOT / folder).rglob("*.py"):
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


def test_network_policies_open_what_is_served(release: Release) -> None:
    """Where policies are on, every port a Service or monitor uses is open, and no other."""
    for policy in release.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        pod = next(w for w in release.workloads() if matches(selector, w.labels))
        opened = {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]}
        assert opened == set(pod.ports().values()), policy["metadata"]["name"]
        if policy["spec"].get("egress"):
            dns, own, *others = policy["spec"]["egress"]
            assert {"protocol": "UDP", "port": 53} in dns["ports"]
            replicas = own["to"][0]["podSelector"]["matchLabels"]
            assert matches(replicas, release.controlplane["spec"]["template"]["metadata"]["labels"])
            container = release.controlplane["spec"]["template"]["spec"]["containers"][0]
            grpc = next(p["containerPort"] for p in container["ports"] if p["name"] == "grpc")
            assert [p["port"] for p in own["ports"]] == [grpc]
            assert others, "what the user listed comes after"


def test_network_policies_admit_only_who_is_named(release: Release) -> None:
    """Each list of peers guards its own port and no other; an empty one leaves the port open."""
    named = {"grpc": "ipBlock", "listener": "pays", "http": "namespaceSelector"}
    restricted = "wallet" in str(release.files)  # the case that sets every list
    for policy in release.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        pod = next(w for w in release.workloads() if matches(selector, w.labels))
        name = {number: port for port, number in pod.ports().items()}
        for rule in policy["spec"]["ingress"]:
            (port,) = (name[p["port"]].removeprefix("weir-") for p in rule["ports"])
            if restricted or port == "http":
                assert named[port] in str(rule["from"]), port
            else:
                assert "from" not in rule, port


def test_monitors_find_their_targets(release: Release) -> None:
    """The ServiceMonitor takes one Service only (each replica is scraped once), and the PodMonitor
    every agent, sidecars included."""
    for monitor in release.of("ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        services = [s for s in release.of("Service") if matches(selector, s["metadata"]["labels"])]
        assert [s["metadata"]["name"] for s in services] == [
            release.controlplane["metadata"]["name"]
        ]
        ports = {p["name"] for p in services[0]["spec"]["ports"]}
        assert {e["port"] for e in monitor["spec"]["endpoints"]} <= ports
    for monitor in release.of("PodMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        for workload in release.workloads():
            runs_agent = "weir-http" in workload.ports()
            assert matches(selector, workload.labels) is runs_agent, workload.name
            if runs_agent:
                assert workload.namespace in monitor["spec"]["namespaceSelector"]["matchNames"]


def test_rules_and_dashboards_arrive_unchanged(harness: Harness) -> None:
    """Rules and dashboards pass Helm's templating byte for byte: their own `{{ }}` survives."""
    release = harness.case("everything")
    rules = [r["spec"]["groups"] for r in release.of("PrometheusRule")]
    wanted = [
        document["groups"]
        for path in sorted((ROOT / "deploy/prometheus").glob("*.y*ml"))
        if "groups" in (document := yaml.safe_load(path.read_text()))
    ]
    assert rules == wanted
    assert "{{" in json.dumps(rules)
    boards = {
        key: value
        for item in release.of("ConfigMap")
        for key, value in item["data"].items()
        if key.endswith(".json")
    }
    sources = {p.name: p.read_text() for p in (ROOT / "deploy/grafana").rglob("*.json")}
    assert boards.keys() == sources.keys()
    for name, text in boards.items():
        assert json.loads(text) == json.loads(sources[name])


def test_alerts_link_to_where_the_runbooks_are_served(harness: Harness) -> None:
    """With an address of the pages every alert of the release has a link that a pager can open."""
    name, values = CASES["east"]
    rules = {"prometheusRule": {"runbookUrl": "https://wiki.example.com/weir/"}}
    release = harness.helm.render(merge(values, {"monitoring": rules}), name=name)
    links = [
        rule["annotations"]["runbook_url"]
        for item in release.of("PrometheusRule")
        for group in item["spec"]["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert links
    assert all(re.fullmatch(r"https://wiki\.example\.com/weir/\w+\.md", link) for link in links)


def test_a_changed_configuration_restarts_the_pods(harness: Harness) -> None:
    """Every pod that reads the configuration carries its checksum, so a change rolls out."""
    name, values = CASES["east"]
    changed: Any = json.loads(json.dumps(values))
    changed["config"]["regions"]["south"]["capacity_tps"] = 3001
    before, after = harness.case("east"), harness.helm.render(changed, name=name)

    def sums(release: Release) -> dict[str, str]:
        return {
            w.name: next(
                v for k, v in w.template["metadata"]["annotations"].items() if "checksum" in k
            )
            for w in release.workloads()
            if w.name != f"{name}-test"
        }

    assert sums(before).keys() == sums(after).keys()
    assert not [k for k, v in sums(before).items() if sums(after)[k] == v]


def test_selectors_never_change(harness: Harness) -> None:
    """What Kubernetes refuses to change in an upgrade does not depend on versions or settings."""
    one, other = harness.case("minimal"), harness.case("everything")
    assert one.controlplane["spec"]["selector"] == other.controlplane["spec"]["selector"]
    assert one.controlplane["spec"]["serviceName"] == other.controlplane["spec"]["serviceName"]
    assert "version" not in json.dumps(one.controlplane["spec"]["selector"])


def _workload(release: Release, name: str) -> Workload:
    return next(w for w in release.workloads() if w.name == name)


def test_every_pod_of_the_chart_runs_the_same_image(harness: Harness) -> None:
    """One image serves replicas, agents, the bootstrap and the test; a digest goes before a tag."""
    release = harness.case("everything")
    images = {c["image"] for w in release.workloads() for c in w.ours if c["name"] != "envoy"}
    assert images == {"registry.example.com/weir@sha256:" + "0" * 64}
    envoy = _workload(release, "weir-east-gateway").spec["containers"][0]["image"]
    assert envoy.startswith("envoyproxy/envoy:v")
