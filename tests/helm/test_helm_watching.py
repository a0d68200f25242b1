"""Who may reach the rendered pods, and who watches them."""

from __future__ import annotations

import json
import re

import yaml

from tests.helm.charts import CASES, ROOT, Harness, Release, matches, merge


def test_network_policies_open_what_is_served(release: Release) -> None:
    """Where policies are on, every port a Service or monitor uses is open, and no other."""
    for policy in release.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        pod = next(w for w in release.workloads() if matches(selector, w.labels))
        opened = {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]}
        assert opened == set(pod.ports().values()), policy["metadata"]["name"]
        listed = release.case in {"everything", "classic"}  # the cases that list where to
        # without its type a rule is ignored, and without a rule its type allows nothing
        assert policy["spec"]["policyTypes"] == ["Ingress", *(["Egress"] if listed else [])]
        if listed:
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
    restricted = release.case in {"everything", "classic"}  # the cases that set every list
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
