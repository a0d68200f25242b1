"""The chart renders and every object is valid, in every version of Kubernetes that it claims."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate import utils
from referencing import Registry, Resource

from tests.helm.charts import (
    CASES,
    CHART,
    DEFAULT_VERSION,
    OLDER,
    ROOT,
    VERSIONS,
    Harness,
    HelmRefusedError,
    Json,
    Release,
    merge,
)

CRDS = Path(__file__).with_name("crds")
RELEASE_MAX_BYTES = 1_000_000
"""Helm keeps a release in a Secret, which holds 1 MiB."""


SCHEMAS = "kubernetes-json-schema/v{}.0-local-strict/{}.json"


@functools.cache
def _definitions(version: str) -> Any:
    path = SCHEMAS.format(version, "_definitions")
    return Resource.from_contents(utils.schema_contents(path, version)) @ Registry()


@functools.cache
def _validator(version: str, api: str, kind: str) -> jsonschema.Draft202012Validator:
    crd = CRDS / f"{kind.lower()}.json"
    if crd.exists():
        return jsonschema.Draft202012Validator(json.loads(crd.read_text()))
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = utils.schema_contents(SCHEMAS.format(version, f"{kind.lower()}-{group}"), version)
    registry = Resource.from_contents(schema) @ _definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


_seen: set[tuple[str, str]] = set()


def faults(item: Json, version: str) -> list[str]:
    """Return what the strict schema of this version refuses; unknown keys are refused too."""
    digest = hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()
    if (version, digest) in _seen:
        return []
    validator = _validator(version, item["apiVersion"], item["kind"])
    found = [
        f"{item['kind']}/{item['metadata']['name']}: {error.json_path}: {error.message[:200]}"
        for error in validator.iter_errors(item)
    ]
    if not found:
        _seen.add((version, digest))
    return found


@pytest.mark.parametrize("version", [*OLDER, *VERSIONS])
def test_everything_is_valid_in_every_version(harness: Harness, version: str) -> None:
    """Strict schemas of the API server and of the custom resources accept every object with
    everything switched on, with the sidecar as `auto` chooses it for this version."""
    assert [
        fault
        for item in harness.case("everything", version).objects
        for fault in faults(item, version)
    ] == []


def test_every_case_is_valid(release: Release) -> None:
    """The same for every case, the classic sidecar among them, in one version."""
    assert [fault for item in release.objects for fault in faults(item, DEFAULT_VERSION)] == []


def test_the_validator_refuses_what_is_wrong(harness: Harness) -> None:
    """Mutation of the check itself: a misspelt key, a wrong type and a key that a custom resource
    does not know are each found."""
    pod = harness.case("east").controlplane
    for path, value in (("replicaz", 1), ("replicas", "two")):
        broken = {**pod, "spec": {**pod["spec"], path: value}}
        assert faults(broken, "1.33")
    monitor = harness.case("east").one("ServiceMonitor")
    broken = {**monitor, "spec": {**monitor["spec"], "endpointz": []}}
    assert faults(broken, "1.33")


@pytest.mark.parametrize("case", CASES)
def test_helm_lints_it(harness: Harness, case: str) -> None:
    """`helm lint` finds nothing worse than a missing icon."""
    release, values = CASES[case]
    named = {**values, "fullnameOverride": release}  # lint renders under a name of its own
    result = harness.helm.ask({"do": "lint", "values": named})
    assert [m for m in result["messages"] if m["severity"] > 1] == []
    assert result["errors"] == []


def test_rendering_is_repeatable(harness: Harness) -> None:
    """The same values give the same bytes: an upgrade without a change restarts nothing."""
    name, values = CASES["everything"]
    assert harness.helm.render(values, name=name).files == harness.case("everything").files


def test_release_fits_into_its_secret(harness: Harness) -> None:
    """Chart and manifest together stay below what one Secret holds."""
    rendered = sum(len(text) for text in harness.case("everything").files.values())
    packaged = harness.helm.ask({"do": "package"})
    assert packaged["bytes"] + rendered / 4 < RELEASE_MAX_BYTES  # Helm compresses; 4 is cautious


def test_package_holds_what_is_rendered(harness: Harness) -> None:
    """The packaged chart has the alert rules and dashboards, and no stray file."""
    files = harness.helm.ask({"do": "package"})["files"]
    wanted = [str(path.relative_to(CHART)) for path in (CHART / "files").rglob("*.*")]
    assert set(wanted) <= set(files)
    assert not [name for name in files if name.endswith((".orig", ".tgz", ".tmp"))]


def _schema_leaves(schema: Json, node: Json, path: tuple[str, ...]) -> Iterator[tuple[Any, Json]]:
    node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
    if "properties" in node:
        for key, value in node["properties"].items():
            yield from _schema_leaves(schema, value, (*path, key))
    else:
        yield path, node


def _other(path: tuple[str, ...], node: Json, now: Any) -> list[Any]:
    """Values that the schema allows here and that differ from the present one."""
    samples: dict[str, list[Any]] = {
        "sidecar.namespaces": [["elsewhere"]],
        "imagePullSecrets": [[{"name": "other"}]],
        "listenAddress": ["127.0.0.1"],
        "controlPlane.persistence.size": ["7Gi"],
        "image.digest": ["sha256:" + "1" * 64],
        "gateway.image.digest": ["sha256:" + "1" * 64],
        "sidecar.xdsListener": ["127.0.0.1:12345"],
        "sidecar.planListener": ["127.0.0.1:12345"],
        "nameOverride": ["other"],
        "controlPlane.replicas": [2],
        "tls.certManager.clients": [[{"name": "other", "role": "viewer"}]],
    }
    if ".".join(path) in samples:
        return samples[".".join(path)]
    if "enum" in node:
        return [value for value in node["enum"] if value != now]
    by_type: dict[str, list[Any]] = {
        "one of": ["33%"],
        "boolean": [not now],
        "integer": [now + 1 if isinstance(now, int) else 1025],
        "array": [[{"name": "WEIR_LOG__LEVEL", "value": "error"}], ["other.example.com"]],
        "object": [{"cpu": "77m"}, {"other": "value"}],
        "string": ["other", "77h"],
    }
    return by_type[node.get("type", "one of")]


def test_every_value_changes_something(harness: Harness) -> None:
    """No value is dead: each key of the schema, given another value, changes what is rendered in
    one of the cases (or is refused by a check that read it)."""
    schema = yaml.safe_load((ROOT / "deploy/helm/values.schema.src.yaml").read_text())
    bases = ["everything", "east", "minimal"]
    dead = []
    for path, node in _schema_leaves(schema, schema, ()):
        if path[0] in ("global", "config", "region"):
            continue
        if not any(_changes(harness, base, path, node) for base in bases):
            dead.append(".".join(path))
    assert dead == []


_LIGHT: Json = {
    "monitoring": {"dashboards": {"enabled": False}, "prometheusRule": {"enabled": False}}
}
"""Rules and dashboards are most of what is rendered, and only their own values change them."""


@functools.cache
def _defaults() -> Json:
    defaults: Json = yaml.safe_load((CHART / "values.yaml").read_text())
    return defaults


def _changes(harness: Harness, base: str, path: tuple[str, ...], node: Json) -> bool:
    name, values = CASES[base]
    if path[0] != "monitoring":
        values = merge(values, _LIGHT)
    before = harness.helm.render(values, name=name).files
    now: Any = merge(_defaults(), values)
    for key in path:
        now = now.get(key) if isinstance(now, dict) else None
    for other in _other(path, node, now):
        over: Any = other
        for key in reversed(path):
            over = {key: over}
        try:
            if harness.helm.render(merge(values, over), name=name).files != before:
                return True
        except HelmRefusedError as refusal:
            if "values don't meet the specifications" not in str(refusal):
                return True
    return False


def test_values_and_schema_name_the_same_keys() -> None:
    """Every default stands in the schema and every key of the schema has a default, so Helm can
    refuse all others."""
    schema = yaml.safe_load((ROOT / "deploy/helm/values.schema.src.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(node: Json, given: Any, path: str) -> list[str]:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if "properties" not in node:
            return []
        assert node["additionalProperties"] is False, path
        known, have = set(node["properties"]), set(given)
        optional = {"global", "requests", "limits"}
        wrong = [f"{path}.{key}" for key in (known ^ have) - optional]
        for key in known & have:
            wrong += compare(node["properties"][key], given[key], f"{path}.{key}")
        return wrong

    assert compare(schema, values, "") == []


@pytest.mark.parametrize(("version", "native"), [("1.28", False), ("1.29", True), ("1.37", True)])
def test_sidecar_is_native_from_1_29_on(harness: Harness, version: str, native: bool) -> None:
    """`auto` takes an init container that restarts always where the API has it by default."""
    gateway = harness.case("east", version).one("Deployment", "weir-east-gateway")
    spec = gateway["spec"]["template"]["spec"]
    found = [
        item["name"] for item in spec["initContainers"] if item.get("restartPolicy") == "Always"
    ]
    assert found == (["weir-agent"] if native else [])
    assert ("weir-agent" in [item["name"] for item in spec["containers"]]) is not native


def test_notes_name_the_next_steps(release: Release) -> None:
    """The notes tell how to test, look and operate, and that etcd and Redis are the user's."""
    assert "helm test" in release.notes
    assert "weir status" in release.notes
    assert "this chart installs none" in release.notes
    plaintext = "weir-tls" not in json.dumps(release.controlplane) and not release.of("Certificate")
    assert ("WARNING: TLS is off" in release.notes) is plaintext
