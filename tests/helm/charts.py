"""What the chart's tests share: rendering, the cases, and reading rendered objects."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/weir"
EXAMPLES = ROOT / "deploy/helm/examples"
RENDERER = Path(__file__).with_name("renderer.py")

Json = dict[str, Any]
VERSIONS = tuple(f"1.{minor}" for minor in range(29, 38))
"""Kubernetes versions in which everything must be valid."""
OLDER = ("1.25", "1.28")
"""The oldest version the chart takes, and the last one before native sidecars."""
DEFAULT_VERSION = "1.33"


class HelmRefusedError(Exception):
    """Helm refused the values or a template failed."""


class Helm:
    """Helm's own engine, behind a pipe."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(RENDERER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Helm logs every refusal there once more
            text=True,
        )

    def ask(self, request: Json) -> Any:
        """Send one request to the renderer; HelmRefusedError carries Helm's message."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"chart": str(CHART), **request}) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise HelmRefusedError(reply["error"])
        return reply["ok"]

    def close(self) -> None:
        """End the renderer."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def render(
        self,
        values: Json,
        *,
        name: str = "weir-east",
        namespace: str = "weir",
        version: str = DEFAULT_VERSION,
    ) -> Release:
        """Render a release with these values for a version of Kubernetes."""
        out = self.ask(
            {
                "do": "render",
                "values": values,
                "name": name,
                "namespace": namespace,
                "kube_version": f"v{version}.0",
            }
        )
        return Release(name=name, namespace=namespace, files=out)


@dataclass
class Release:
    """The rendered objects of one release."""

    name: str
    namespace: str
    files: dict[str, str] = field(repr=False)
    case: str = ""
    """Its name among CASES, when it is one of them."""

    @cached_property
    def objects(self) -> list[Json]:
        """Every rendered object."""
        return [
            document
            for path, text in sorted(self.files.items())
            if not path.endswith(".txt")
            for document in yaml.safe_load_all(text)
            if document
        ]

    @property
    def notes(self) -> str:
        """What Helm prints after an install."""
        return next(text for path, text in self.files.items() if path.endswith("NOTES.txt"))

    def of(self, *kinds: str) -> list[Json]:
        """Return the objects of these kinds."""
        return [item for item in self.objects if item["kind"] in kinds]

    def one(self, kind: str, name: str = "", namespace: str = "") -> Json:
        """Return the only object of a kind, or of a kind and name."""
        found = [
            item
            for item in self.of(kind)
            if name in ("", item["metadata"]["name"])
            and namespace in ("", item["metadata"]["namespace"])
        ]
        assert len(found) == 1, [item["metadata"] for item in found]
        return found[0]

    def workloads(self) -> list[Workload]:
        """Everything that makes pods, a foreign Deployment with the sidecar patch included."""
        found = [
            Workload(
                item["metadata"]["name"], item["metadata"]["namespace"], item["spec"]["template"]
            )
            for item in self.of("StatefulSet", "Deployment")
        ]
        found += [
            Workload(item["metadata"]["name"], item["metadata"]["namespace"], item)
            for item in self.of("Pod")
        ]
        for item in self.of("ConfigMap"):
            if "patch.yaml" in item["data"]:
                patched = merge_patch(
                    foreign_deployment(), yaml.safe_load(item["data"]["patch.yaml"])
                )
                found.append(
                    Workload("foreign", item["metadata"]["namespace"], patched["spec"]["template"])
                )
        return found

    def config_text(self) -> str:
        """Return the daemons' configuration as the ConfigMap holds it."""
        text: str = self.one("ConfigMap", self.controlplane["metadata"]["name"], self.namespace)[
            "data"
        ]["weir.yaml"]
        return text

    @property
    def controlplane(self) -> Json:
        """The StatefulSet of the replicas."""
        return self.one("StatefulSet")


@dataclass
class Workload:
    """One pod template."""

    name: str
    namespace: str
    template: Json = field(repr=False)

    @property
    def labels(self) -> dict[str, str]:
        """Labels of its pods."""
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def spec(self) -> Json:
        """Spec of its pods."""
        spec: Json = self.template["spec"]
        return spec

    @property
    def containers(self) -> list[Json]:
        """All containers, init containers first."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def ours(self) -> list[Json]:
        """Its containers, without the foreign ones."""
        return [item for item in self.containers if not item["image"].startswith("app:")]

    def ports(self) -> dict[str, int]:
        """Map the names of its container ports to their numbers."""
        return {
            port["name"]: port["containerPort"]
            for item in self.containers
            for port in item.get("ports", ())
        }


def foreign_deployment() -> Json:
    """Return a user's Deployment, as the sidecar patch meets it."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "foreign", "namespace": "payments"},
        "spec": {
            "selector": {"matchLabels": {"app": "foreign"}},
            "template": {
                "metadata": {"labels": {"app": "foreign"}},
                "spec": {
                    "initContainers": [{"name": "migrate", "image": "app:1"}],
                    "containers": [{"name": "app", "image": "app:1"}],
                    "volumes": [{"name": "app-data", "emptyDir": {}}],
                },
            },
        },
    }


_KEYED = {"containers", "initContainers", "volumes"}


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply a strategic merge patch: lists of named things merge by `name`, new ones go first,
    as the API server does it for a patch without `$setElementOrder`."""
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return patch
    merged = dict(target)
    for key, value in patch.items():
        if key in _KEYED and key in target:
            names = {item["name"]: item for item in value}
            kept = [merge_patch(item, names.pop(item["name"], item)) for item in target[key]]
            merged[key] = [*names.values(), *kept]
        else:
            merged[key] = merge_patch(target.get(key), value)
    return merged


def merge(base: Json, over: Json) -> Json:
    """Lay one values file over another, as Helm does with several -f."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def example(region: str) -> Json:
    """Values of one of the three example releases."""
    shared = yaml.safe_load((EXAMPLES / "shared.yaml").read_text())
    return merge(shared, yaml.safe_load((EXAMPLES / f"{region}.yaml").read_text()))


MINIMAL: Json = {
    "region": "east",
    "tls": {"mode": "none"},
    "controlPlane": {"replicas": 1},
    "config": {
        "server": {"allow_plaintext": True},
        "regions": {
            "east": {
                "role": "primary",
                "share_bp": 10000,
                "capacity_tps": 1000000,
                "replicas": [{"id": "weir-east-0", "grpc": "weir-east-0.weir-east-peers:7700"}],
            }
        },
        "channels": {"alipay": {"regions": ["east"]}},
        "coordination": {"endpoints": ["etcd:2379"]},
    },
}

_PLACED: Json = {
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "payments", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}
                ]
            }
        }
    },
    "topologySpread": {"zone": "DoNotSchedule", "host": "DoNotSchedule"},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "resources": {
        "requests": {"cpu": "1", "memory": "1Gi"},
        "limits": {"cpu": "1500m", "memory": "1Gi"},
    },
}

EVERYTHING: Json = merge(
    MINIMAL,
    {
        "listenAddress": "[::]",
        "ports": {"grpc": 17700, "http": 17780, "agent": 17790},
        "image": {"repository": "registry.example.com/weir", "digest": "sha256:" + "0" * 64},
        "imagePullSecrets": [{"name": "pull"}],
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "payments"},
        "podAnnotations": {"example.com/note": "true"},
        "serviceAccount": {"name": "weir-runs", "annotations": {"example.com/role": "none"}},
        "tls": {
            "mode": "existingSecret",
            "existingSecret": "weir-tls",
            "agentExistingSecret": "agents",
        },
        "passwords": {
            "etcd": {"existingSecret": "etcd-user", "key": "pw"},
            "redis": {"existingSecret": "redis-user"},
        },
        "controlPlane": {
            **_PLACED,
            "persistence": {"storageClassName": "fast", "size": "10Gi", "retainOnDelete": True},
            "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
            "perPodService": {"enabled": True, "loadBalancerClass": "example.com/internal"},
            "extraEnv": [{"name": "WEIR_LOG__LEVEL", "value": "debug"}],
        },
        "agent": {**_PLACED, "extraEnv": [{"name": "WEIR_LOG__LEVEL", "value": "debug"}]},
        "gateway": {**_PLACED, "enabled": True, "service": {"type": "NodePort", "port": 9000}},
        "config": {"regions": {"east": {"endpoints": ["10.1.0.10:8080"]}}},
        "sidecar": {
            "namespaces": ["weir", "payments", "wallet"],
            "xds": True,
            "planListener": "127.0.0.1:7701",
        },
        "networkPolicy": {
            "grpcFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "listenerFrom": [{"namespaceSelector": {"matchLabels": {"pays": "true"}}}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        },
        "monitoring": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Weir"}},
        },
    },
)

BARE: Json = merge(
    MINIMAL,
    {
        "agent": {"enabled": False},
        "serviceAccount": {"create": False},
        "networkPolicy": {"enabled": False},
        "tests": {"enabled": False},
        "controlPlane": {
            "persistence": {"enabled": False},
            "topologySpread": {"enabled": False},
            "podDisruptionBudget": {"enabled": False},
            "resources": {},
        },
    },
)

CLASSIC: Json = merge(EVERYTHING, {"sidecar": {"mode": "classic"}})

CASES: dict[str, tuple[str, Json]] = {
    "east": ("weir-east", example("east")),
    "north": ("weir-north", example("north")),
    "south": ("weir-south", example("south")),
    "minimal": ("weir-east", MINIMAL),
    "everything": ("weir-east", EVERYTHING),
    "classic": ("weir-east", CLASSIC),
    "bare": ("weir-east", BARE),
}
"""Name of the case -> (release, values)."""


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Tell whether a non-empty equality selector takes these labels."""
    return bool(selector) and selector.items() <= labels.items()


class Harness:
    """Renders every case once per version."""

    def __init__(self, helm: Helm) -> None:
        self.helm = helm
        self._done: dict[tuple[str, str], Release] = {}

    def case(self, name: str, version: str = DEFAULT_VERSION) -> Release:
        """Return a rendered case."""
        key = (name, version)
        if key not in self._done:
            release, values = CASES[name]
            self._done[key] = self.helm.render(values, name=release, version=version)
            self._done[key].case = name
        return self._done[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.helm.close()
