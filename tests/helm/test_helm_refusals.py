"""What the chart refuses before anything is installed, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.charts import EVERYTHING, MINIMAL, Harness, HelmRefusedError, Json, example, merge

REFUSALS: list[tuple[str, Json, Json, str]] = [
    ("no region", MINIMAL, {"region": ""}, "region"),
    ("unknown region", MINIMAL, {"region": "west"}, '"west" is not among config.regions (east)'),
    ("misspelt value", MINIMAL, {"replicaCount": 3}, "replicaCount"),
    ("misspelt key of the configuration", MINIMAL, {"config": {"lock": {}}}, "lock"),
    ("misspelt policy", MINIMAL, {"config": {"policy": {"tick": 1}}}, "tick"),
    ("share beyond the whole", MINIMAL, {"config": {"regions": {"east": {"share_bp": 10001}}}}, "share_bp"),
    ("address without a port", MINIMAL, {"config": {"coordination": {"endpoints": ["etcd"]}}}, "endpoints"),
    ("bad region name", MINIMAL, {"config": {"regions": {"East!": {}}}}, "East!"),
    ("owned listener", MINIMAL, {"config": {"server": {"grpc_listen": "0.0.0.0:1"}}},
     "config.server.grpc_listen: written by the chart; use listenAddress and ports.grpc"),
    ("owned id", MINIMAL, {"config": {"cluster": {"id": "x"}}}, "it is the pod's name"),
    ("owned password", MINIMAL, {"config": {"locks": {"password_file": "/x"}}}, "use passwords.redis"),
    ("more pods than ids", MINIMAL, {"controlPlane": {"replicas": 2}},
     "has ids [weir-east-0], but this release's pods are [weir-east-0, weir-east-1]"),
    ("another name than the ids", MINIMAL, {"fullnameOverride": "other"}, "[other-0]"),
    ("plaintext by accident", MINIMAL, {"config": {"server": {"allow_plaintext": False}}},
     "needs config.server.allow_plaintext: true"),
    ("no certificate", MINIMAL, {"tls": {"mode": "existingSecret"}}, "ca.crt, tls.crt and tls.key"),
    ("agents without a certificate", MINIMAL, {"tls": {"mode": "existingSecret", "existingSecret": "x"}},
     "tls.agentExistingSecret"),
    ("no issuer", MINIMAL, {"tls": {"mode": "certManager"}}, "issuerRef.name"),
    ("issuer of one namespace", example("east"), {"tls": {"certManager": {"issuerRef": {"kind": "Issuer"}}}},
     "needs a ClusterIssuer"),
    ("gateway without endpoints", MINIMAL, {"gateway": {"enabled": True}},
     "config.regions.east.endpoints"),
    ("plan beyond the pod", MINIMAL, {"sidecar": {"planListener": "0.0.0.0:7701"}}, "planListener"),
    ("ports in conflict", MINIMAL, {"ports": {"http": 7700}}, "must differ"),
    ("privileged port", MINIMAL, {"ports": {"http": 80}}, "ports/http"),
    ("quantity", MINIMAL, {"agent": {"resources": {"limits": {"memory": "64MB"}}}}, "memory"),
    ("budget of nothing", EVERYTHING, {"agent": {"podDisruptionBudget": {"maxUnavailable": 0}}}, "maxUnavailable"),
    ("short digest", MINIMAL, {"image": {"digest": "sha256:abc"}}, "digest"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("base", "over", "message"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_refused_with_a_remedy(harness: Harness, base: Json, over: Json, message: str) -> None:
    """The values alone are accepted, with the fault they are refused, and the message names the
    value."""
    harness.helm.render(base)
    with pytest.raises(HelmRefusedError) as refusal:
        harness.helm.render(merge(base, over))
    assert message in str(refusal.value)


def test_what_the_daemon_refuses_in_type_or_range_helm_refuses_too(harness: Harness) -> None:
    """The schema in the chart is the daemon's own: a value of the wrong type anywhere in the
    configuration never reaches the cluster."""
    for section, key, wrong in (
        ("coordination", "lease_ttl_s", 1),
        ("coordination", "takeover_after_ms", "fast"),
        ("locks", "mode", "loose"),
        ("server", "max_agents", 0),
        ("log", "level", "loud"),
        ("agent", "interval_ms", -5),
        ("policy", "ramp_bp", [-1]),
    ):
        over: Any = {"config": {section: {key: wrong}}}
        with pytest.raises(HelmRefusedError, match=key):
            harness.helm.render(merge(MINIMAL, over))
