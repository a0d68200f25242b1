"""What happened, why, and where did the 30 s go?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import (
    CLUSTER,
    GREEN,
    GREY,
    PHASES,
    RED,
    VERDICTS,
    YELLOW,
    bars,
    board,
    coded,
    lines,
    rows,
    states,
)
from queries import BUDGET_S, VERDICT_CODES, failing, phases, weights


def make() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = board(
        "weir-failover",
        "Failover forensics",
        "What happened, why, and where did the 30 s go? Set the time range around the failover.",
    )
    durations = f"weir_failover_duration_seconds_sum{{{CLUSTER}}}"
    counts = f"weir_failover_duration_seconds_count{{{CLUSTER}}}"
    made.with_panel(
        rows(
            "Which region, what cause",
            "sum by (from, kind, outcome) (last_over_time(weir_failovers_total"
            f"{{{CLUSTER}}}[$__range])) > 0",
            text="Failovers closed so far by the replicas of this range. dead: silent and "
            "unreachable; ingress: black hole; brown_out: half of it lost; egress: its way out.",
            height=7,
        )
    )
    made.with_panel(
        bars(
            "Where the time went",
            f"sum by (stage) (last_over_time({durations}[$__range])) "
            f"/ (sum by (stage) (last_over_time({counts}[$__range])) > 0)",
            "{{stage}}",
            unit="s",
            high=BUDGET_S,
            steps=((None, GREEN), (15, YELLOW), (BUDGET_S, RED)),
            text="Mean time per stage of the failovers that were closed. suspect: until somebody "
            "doubted; decide: until the quorum was sure; commit: until etcd had the plan; "
            "converge: until everybody had applied it. Limit: 30 s.",
            height=7,
        )
    )
    made.with_panel(
        states(
            "Failover running",
            f"max by (region, kind) (weir_failover_running{{{CLUSTER}}} == 1) "
            f"or max by (region) (weir_failover_running{{{CLUSTER}}})",
            "{{region}} {{kind}}",
            {0: ("no", GREY), 1: ("running", RED)},
            text="From the first plan without the region until everybody has applied it.",
        )
    )
    made.with_panel(
        lines(
            "Budget left",
            [(f"min(weir_budget_remaining_seconds{{{CLUSTER}}})", "left")],
            unit="s",
            low=None,
            text="Falls from 30 s while a failover runs. Below 0: over budget.",
            height=6,
        )
    )
    made.with_panel(
        states(
            "Verdicts",
            coded("weir_region_verdict", "verdict", VERDICT_CODES, "region"),
            "{{region}}",
            VERDICTS,
            text="What the quorum said, and when it changed its mind.",
        )
    )
    made.with_panel(states("Phases", phases(), "{{region}}", PHASES, text="What Weir made of it."))
    made.with_panel(
        lines(
            "Who could not reach whom",
            [
                (
                    "sum by (weir_region, target) (increase(weir_agent_ingress_probes_total"
                    f'{{{CLUSTER}, outcome="error"}}[$__rate_interval]))',
                    "{{target}} from {{weir_region}}",
                )
            ],
            unit="short",
            text="Failed probes of ingress. A region that is lost fails from all others.",
        )
    )
    made.with_panel(
        lines(
            "Silence",
            [(f"min by (region) (weir_report_age_seconds{{{CLUSTER}}})", "{{region}}")],
            unit="s",
            text="Age of the newest report of each region. Rising: it is not heard.",
        )
    )
    made.with_panel(
        lines(
            "Weights",
            [(weights("region"), "{{region}}")],
            unit="percentunit",
            high=1,
            stacked=True,
            text="What the plan said, averaged over channels.",
        )
    )
    made.with_panel(
        lines(
            "Payments failing by region",
            [(failing("region"), "{{region}}")],
            unit="percentunit",
            text="What customers met.",
        )
    )
    made.with_panel(
        lines(
            "Subscribers behind",
            [(f"max by (kind) (weir_subscriber_epoch_lag{{{CLUSTER}}})", "{{kind}}")],
            unit="short",
            text="Epochs that the furthest behind lacks. A failover closes when this is 0.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Leadership",
            [
                (
                    f"sum(changes(weir:term:max{{{CLUSTER}}}[$__rate_interval]))",
                    "changes of leader",
                ),
                (
                    f"sum(increase(weir_fenced_writes_rejected_total{{{CLUSTER}}}[$__rate_interval]))",
                    "writes refused",
                ),
            ],
            unit="short",
            text="A peak: another leader (about 2 s). Writes refused: a deposed one tried.",
            width=8,
        )
    )
    return made.with_panel(
        lines(
            "Alerts",
            [
                (
                    'count by (alertname) (ALERTS{alertstate="firing", component="weir", '
                    f'alertname!="Watchdog", {CLUSTER}}})',
                    "{{alertname}}",
                )
            ],
            unit="short",
            text="Which alerts told whom, and when.",
            width=8,
        )
    )
