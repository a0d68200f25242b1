"""What each case renders, counted: the other tests look at every object of a kind, and an object that
is missing would please them all."""

from __future__ import annotations

from collections import Counter

from tests.helm.charts import Harness, Release

_REGION = {
    "Certificate": 4, "ConfigMap": 9, "Deployment": 2, "NetworkPolicy": 3, "Pod": 1,
    "PodDisruptionBudget": 3, "PodMonitor": 1, "PrometheusRule": 2, "Service": 5, "ServiceAccount": 1,
    "ServiceMonitor": 1, "StatefulSet": 1,
}  # fmt: skip
_EVERYTHING = {**_REGION, "Certificate": 0, "ConfigMap": 12, "Service": 4}
_WITHOUT_GATEWAY = {"Deployment": 1, "NetworkPolicy": 2, "PodDisruptionBudget": 2}
KINDS = {
    "east": _REGION,
    "north": _REGION,
    "south": {**_REGION, **_WITHOUT_GATEWAY, "Certificate": 3, "ConfigMap": 7, "Service": 3},
    "minimal": {
        **_WITHOUT_GATEWAY, "ConfigMap": 1, "Pod": 1, "Service": 2, "ServiceAccount": 1,
        "StatefulSet": 1,
    },
    "everything": _EVERYTHING,
    "classic": _EVERYTHING,
    "bare": {"ConfigMap": 1, "Service": 2, "StatefulSet": 1},
}  # fmt: skip
"""Case -> kind -> number of objects."""

REPLICA, AGENT, TEST = ("", ("weir",)), ("-agent", ("agent",)), ("-test", ("config", "ready"))
GATEWAY = ("-gateway", ("bootstrap", "weir-agent", "envoy"))
FOREIGN = ("foreign", ("weir-agent", "migrate", "app"))
WORKLOADS = {
    "east": [REPLICA, AGENT, TEST, GATEWAY, FOREIGN],
    "north": [REPLICA, AGENT, TEST, GATEWAY, FOREIGN],
    "south": [REPLICA, AGENT, TEST],
    "minimal": [REPLICA, AGENT, TEST],
    "everything": [REPLICA, AGENT, TEST, GATEWAY, FOREIGN, FOREIGN, FOREIGN],
    "classic": [
        REPLICA, AGENT, TEST, GATEWAY, *[("foreign", ("migrate", "weir-agent", "app"))] * 3,
    ],
    "bare": [REPLICA],
}  # fmt: skip
"""Case -> its pods: the name without that of the release, and the containers in their order."""

PROBES = {
    "weir": {"startupProbe", "livenessProbe", "readinessProbe"},
    "agent": {"startupProbe", "livenessProbe", "readinessProbe"},
    "weir-agent": {"startupProbe", "livenessProbe"},
    "envoy": {"readinessProbe"},
}
"""Container -> what the kubelet asks it."""


def test_each_case_holds_what_it_is_looked_at_for(release: Release) -> None:
    """Every kind, in its number, and no other kind."""
    found = Counter(item["kind"] for item in release.objects)
    assert found == Counter(KINDS[release.case])


def test_each_case_has_its_pods_and_containers(release: Release) -> None:
    """Every workload with its containers in their order; those that run on have their probes."""
    found = [
        (w.name.removeprefix(release.name), tuple(c["name"] for c in w.containers))
        for w in release.workloads()
    ]
    assert Counter(found) == Counter(WORKLOADS[release.case])
    for workload in release.workloads():
        for container in workload.ours:
            asked = {key for key in container if key.endswith("Probe")}
            assert asked == PROBES.get(container["name"], set()), container["name"]


def test_what_only_some_cases_have_is_there(harness: Harness) -> None:
    """What tests look at only where it is found: egress, lists of peers, claims, certificates of each
    use, daemons with a configuration."""
    for case in KINDS:
        release = harness.case(case)
        policies = release.of("NetworkPolicy")
        every = case in {"everything", "classic"}
        assert all(bool(p["spec"].get("egress")) is every for p in policies)
        assert all(p["spec"]["ingress"] for p in policies)
        claims = release.controlplane["spec"].get("volumeClaimTemplates", ())
        assert len(claims) == (case != "bare")
        uses = {
            c["metadata"]["name"].removeprefix(f"{release.name}-")
            for c in release.of("Certificate")
        }
        tls = {"server", "agent", "client-oncall"} if case in {"east", "north", "south"} else set()
        assert uses == tls
        configured = {
            c["name"]
            for w in release.workloads()
            for c in w.ours
            if "--config" in c.get("args", ())
        }
        held = {name for _, names in WORKLOADS[case] for name in names}
        assert configured == held & {"weir", "agent", "weir-agent"}
