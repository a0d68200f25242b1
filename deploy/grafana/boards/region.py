"""How is one region, and who says so?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import BREAKERS, CLUSTER, PHASES, VERDICTS, board, coded, lines, row, states
from queries import (
    BREAKER_CODES,
    REGION,
    VERDICT_CODES,
    failing,
    payments,
    phases,
    quantile,
    weights,
)


def make() -> dashboard.Dashboard:
    """Return the dashboard."""
    here = ', region=~"$region"'
    only = here.removeprefix(", ")
    made = board("weir-region", "Region", "How is a region, and who says so?", variables=[REGION])
    made.with_panel(
        states(
            "Phase",
            phases(only),
            "{{region}}",
            PHASES,
            text="Where the region stands in the newest plan.",
            height=5,
        )
    )
    made.with_panel(
        states(
            "Verdict",
            coded("weir_region_verdict", "verdict", VERDICT_CODES, "region", only),
            "{{region}}",
            VERDICTS,
            text="What the quorum of the other regions says. Unknown: silence, which is not guilt.",
            height=5,
        )
    )
    made.with_panel(
        lines(
            "Share of payments (plan)",
            [(weights("region", here), "{{region}}")],
            unit="percentunit",
            high=1,
            text="Weight averaged over channels.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Payments and capacity",
            [
                (payments("region", here), "{{region}} payments"),
                (
                    f"max by (region) (weir_region_capacity_tps{{{CLUSTER}{here}}})",
                    "{{region}} capacity",
                ),
            ],
            unit="reqps",
            text="Payments per second against what the region can carry.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Payments failing by channel",
            [(failing("region, channel", here), "{{region}} {{channel}}")],
            unit="percentunit",
            limit=0.01,
            text="Share without an answer. All channels at once: the region's way out is ill.",
            width=8,
        )
    )
    made.with_row(row("Evidence"))
    made.with_panel(
        lines(
            "Others fail to reach its ingress",
            [
                (
                    "sum by (weir_region, target) (rate(weir_agent_ingress_probes_total"
                    f'{{{CLUSTER}, target=~"$region", outcome="error"}}[$__rate_interval])) '
                    "/ (sum by (weir_region, target) (rate(weir_agent_ingress_probes_total"
                    f'{{{CLUSTER}, target=~"$region"}}[$__rate_interval])) > 0)',
                    "{{target}} seen from {{weir_region}}",
                )
            ],
            unit="percentunit",
            high=1,
            text="Share of failed probes, by observer. Several observers agree: the region. "
            "One alone: that observer.",
        )
    )
    made.with_panel(
        lines(
            "Age of the newest report",
            [(f"min by (region) (weir_report_age_seconds{{{CLUSTER}{here}}})", "{{region}}")],
            unit="s",
            limit=5,
            text="Good: below 1 s. Silence with a reachable ingress holds the weight.",
        )
    )
    made.with_panel(
        lines(
            "Agents",
            [
                (f"max by (region) (weir_agents_live{{{CLUSTER}{here}}})", "{{region}} live"),
                (
                    f"max by (region) (weir_agents_expected{{{CLUSTER}{here}}})",
                    "{{region}} expected",
                ),
            ],
            unit="short",
            text="Agents that report, and that should.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Queues behind",
            [
                (
                    f"max by (region, queue) (weir_queue_lag_seconds{{{CLUSTER}{here}}})",
                    "{{region}} {{queue}}",
                )
            ],
            unit="s",
            limit=15,
            text="Age of the oldest waiting item. From 60 s on ask providers for the status.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Clock offset",
            [(f"max by (region) (weir_clock_offset_seconds{{{CLUSTER}{here}}})", "{{region}}")],
            unit="s",
            low=None,
            limit=60,
            text="Against the agents' reference. ClockSkew fires at 60 s either way. Providers refuse signatures from 300 s on.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Time of probes by phase (p99)",
            [
                (
                    quantile(0.99, "weir_probe_phase_seconds", "region, phase", here),
                    "{{region}} {{phase}}",
                )
            ],
            unit="s",
            text="DNS, TCP, TLS, first byte. Expected p99: 0.21, 0.09, 0.11 s and the provider's.",
        )
    )
    return made.with_panel(
        states(
            "Breakers",
            coded("weir_breaker_state", "state", BREAKER_CODES, "region, channel", only),
            "{{region}} {{channel}}",
            BREAKERS,
            text="One band per channel. Open: this region's payments of it go elsewhere.",
            height=8,
        )
    )
