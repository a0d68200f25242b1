"""Generate docs/metrics.md from the catalogue of metrics; `--check` reports drift only."""

from __future__ import annotations

import sys
from pathlib import Path

from controlplane.adapters import metric_catalogue as catalogue
from controlplane.adapters.metric_catalogue import CATALOGUE, Spec

PAGE = Path(__file__).resolve().parent.parent / "docs/metrics.md"

INTRO = """# Metrics

Generated from the code by `scripts/gen_metrics_doc.py`; do not edit.

Every replica and every agent answers `GET /metrics` in the Prometheus text format (OpenMetrics when
asked for). It needs neither etcd nor Redis nor a leader. Beside what is listed here there are the
usual `process_*` metrics of the process.

**Labels are bounded.** `region` and `channel` have the values of the configuration, the other
labels those of the lists below; whatever else arrives is counted as `other`. Request ids, agents,
peers and subscribers are never labels. With 3 regions and 100 channels a replica answers fewer than
4,000 series.

**Summing.** Counters count what their process did: sum them over replicas. What the plan or the
evidence says is the same on every replica: take the maximum, from replicas that serve the newest
plan (`weir:plan_newest:replica` in the recording rules). `weir_payments_total` comes from agents
and is exported by the replica that they report to, so that the sum over replicas counts each
payment once; it is the SLI of the SLO alerts, in which `declined` counts as an answer.

When a Prometheus lives in one region and sees only that region's replica, everything but
`weir_leader`, the counters and the histograms of failovers is still complete.

"""

TITLES = {
    "both": "Served by replicas and agents",
    "replica": "Served by replicas",
    "agent": "Served by agents",
}

VALUES = {
    ("weir_reports", "result"): catalogue.REPORT_RESULTS,
    ("weir_agent_reports", "result"): catalogue.REPORT_RESULTS,
    ("weir_failovers", "kind"): catalogue.FAILOVER_KINDS,
    ("weir_failover_running", "kind"): catalogue.FAILOVER_KINDS,
    ("weir_failovers", "outcome"): catalogue.FAILOVER_OUTCOMES,
    ("weir_failover_duration_seconds", "stage"): catalogue.STAGES,
    ("weir_payments", "outcome"): catalogue.OUTCOMES,
    ("weir_probes", "outcome"): catalogue.OUTCOMES,
    ("weir_agent_probes", "outcome"): catalogue.PROBE_OUTCOMES,
    ("weir_agent_ingress_probes", "outcome"): catalogue.PROBE_OUTCOMES,
    ("weir_subscribers", "kind"): catalogue.SUBSCRIBER_KINDS,
    ("weir_subscriber_epoch_lag", "kind"): catalogue.SUBSCRIBER_KINDS,
    ("weir_xds_streams", "kind"): catalogue.SUBSCRIBER_KINDS,
    ("weir_xds_refused", "reason"): catalogue.XDS_REFUSALS,
    ("weir_lock_grants", "result"): catalogue.LOCK_RESULTS,
    ("weir_lock_state", "state"): catalogue.LOCK_STATES,
    ("weir_etcd_failures", "reason"): (*catalogue.ETCD_FAILURES, "…"),
    ("weir_etcd_events", "event"): catalogue.ETCD_EVENTS,
    ("weir_alarms", "kind"): catalogue.ALARMS,
    ("weir_config_reloads", "result"): catalogue.RELOAD_RESULTS,
    ("weir_certificate_expiry_timestamp_seconds", "use"): catalogue.CERTIFICATES,
    ("weir_probe_phase_seconds", "phase"): catalogue.PROBE_PHASES,
}
"""Closed lists by metric and label; `type` is always an xDS type."""


def _label(spec: Spec, label: str) -> str:
    values = VALUES.get((spec.name, label))
    if label == "type":
        values = catalogue.XDS_TYPES
    return f"`{label}`" + (f" ({', '.join(values)})" if values else "")


def _row(spec: Spec) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(spec.kind, "")
    labels = "; ".join(_label(spec, label) for label in spec.labels) or "none"
    text = spec.help
    if spec.buckets:
        text += " Buckets: " + ", ".join(f"{bound:g}" for bound in spec.buckets) + " s."
    kind = "gauge" if spec.kind == "info" else spec.kind
    return f"| `{spec.name}{suffix}` | {kind} | {labels} | {text} |"


def page() -> str:
    """Return the whole page."""
    text = INTRO
    for server, title in TITLES.items():
        text += f"## {title}\n\n| Name | Kind | Labels | Meaning |\n|---|---|---|---|\n"
        text += "\n".join(_row(spec) for spec in CATALOGUE if spec.server == server) + "\n\n"
    return text.rstrip() + "\n"


def main() -> int:
    """Write or check; exit 1 on drift."""
    if "--check" in sys.argv:
        if PAGE.exists() and PAGE.read_text() == page():
            return 0
        print("docs/metrics.md is not what the code says; run python scripts/gen_metrics_doc.py")
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
