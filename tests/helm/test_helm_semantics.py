"""What the schemas of Kubernetes do not say: the rendered objects fit together."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from controlplane import config
from controlplane.adapters.identity import parse_spiffe
from controlplane.model.permissions import RoleName
from tests.helm.charts import CASES, Harness, Json, Release, matches

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")


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
