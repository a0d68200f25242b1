"""Is anything wrong, and what does Weir do about it?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import (
    CLUSTER,
    GREEN,
    NO_YES,
    PHASES,
    RED,
    YELLOW,
    bars,
    board,
    lines,
    newest,
    number,
    states,
)
from queries import BUDGET_S, CLOSED, FAILED, FAILING_NOW, failing, payments, phases, weights


def make() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = board("weir-overview", "Overview", "Is anything wrong, and what does Weir do about it?")
    made.with_panel(
        number(
            "Leader last heard",
            f"min(weir_leader_heartbeat_age_seconds{{{CLUSTER}}})",
            unit="s",
            decimals=1,
            steps=((None, GREEN), (3, YELLOW), (10, RED)),
            text="Age of the leader's last sign of life. Green: somebody decides.",
        )
    )
    made.with_panel(
        number(
            "Regions failed",
            f"sum(max by (region) ({newest(FAILED)}))",
            steps=((None, GREEN), (1, RED)),
            text="Regions that the quorum declared lost; their weight is 0.",
        )
    )
    made.with_panel(
        number(
            "Budget left",
            f"min(weir_budget_remaining_seconds{{{CLUSTER}}})",
            unit="s",
            decimals=0,
            steps=((None, RED), (0.001, YELLOW), (BUDGET_S, GREEN)),
            text="Of the running failover's 30 s. 30 while none runs.",
        )
    )
    made.with_panel(
        number(
            "Breakers not closed",
            f"sum(1 - max by (region, channel) ({newest(CLOSED)}))",
            steps=((None, GREEN), (1, YELLOW)),
            text="Cells (region x channel) whose payments go through another region.",
        )
    )
    made.with_panel(
        number(
            "Payments failing",
            f"({FAILING_NOW}) or vector(0)",
            unit="percentunit",
            decimals=3,
            steps=((None, GREEN), (0.001, YELLOW), (0.01, RED)),
            text="Share without an answer now. Declines are answers.",
        )
    )
    made.with_panel(
        number(
            "Alerts firing",
            'count(ALERTS{alertstate="firing", component="weir", severity=~"critical|warning", '
            f"{CLUSTER}}}) or vector(0)",
            steps=((None, GREEN), (1, YELLOW)),
            text="Alerts of Weir, critical and warning. Each links to its runbook.",
        )
    )
    made.with_panel(
        states(
            "Regions",
            phases(),
            "{{region}}",
            PHASES,
            text="Where each region stands in the newest plan, and since when.",
        )
    )
    made.with_panel(
        lines(
            "Where payments are sent (plan)",
            [(weights("region"), "{{region}}")],
            unit="percentunit",
            high=1,
            stacked=True,
            height=6,
            text="Weight of each region, averaged over channels: what Weir asks for.",
        )
    )
    made.with_panel(
        lines(
            "Where payments arrive",
            [(payments("region"), "{{region}}")],
            unit="reqps",
            stacked=True,
            text="Payments per second by region: what really happens. Should follow the plan.",
        )
    )
    made.with_panel(
        lines(
            "Payments failing by channel",
            [(failing("channel"), "{{channel}}")],
            unit="percentunit",
            limit=0.01,
            text="Share without an answer. One channel alone: its provider. All: a region.",
        )
    )
    made.with_panel(
        bars(
            "Utilisation of regions",
            f"sum by (region) (rate(weir_payments_total{{{CLUSTER}}}[$__rate_interval])) "
            f"/ max by (region) (weir_region_capacity_tps{{{CLUSTER}}})",
            "{{region}}",
            unit="percentunit",
            high=1,
            steps=((None, GREEN), (0.8, YELLOW), (1, RED)),
            text="Payments against capacity. Weir fills regions to 80 % before it spills over.",
            height=6,
            width=8,
        )
    )
    made.with_panel(
        lines(
            "To be shed",
            [(f"max by (channel) (weir_route_shed_bp{{{CLUSTER}}}) / 10000", "{{channel}}")],
            unit="percentunit",
            text="Share that no region can carry and that the edge is told to refuse. Good: 0.",
            height=6,
            width=8,
        )
    )
    return made.with_panel(
        states(
            "Hands on",
            f"max by (control) (label_replace(max(weir_frozen{{{CLUSTER}}}), "
            '"control", "frozen", "", "") '
            f'or label_replace(max(weir_panic{{{CLUSTER}}}), "control", "panic", "", "") '
            f'or label_replace(max(weir_region_drained{{{CLUSTER}}}), "control", "drained", "", "")'
            f' or label_replace(max(weir_reconciliation_gate_closed{{{CLUSTER}}}), "control", '
            '"gate closed", "", ""))',
            "{{control}}",
            NO_YES,
            text="What holds Weir back: a freeze, panic, a drain, a closed reconciliation gate.",
            width=8,
        )
    )
