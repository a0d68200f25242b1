"""How is Weir itself?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import BLUE, CLUSTER, GREEN, GREY, RED, YELLOW, board, lines, number, row, rows, states
from queries import quantile


def make() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = board("weir-internals", "Control-plane internals", "How is Weir itself?")
    made.with_panel(
        states(
            "Who leads",
            f"max by (instance) (weir_leader{{{CLUSTER}}})",
            "{{instance}}",
            {0: ("follows", GREY), 1: ("leads", GREEN)},
            text="Exactly one band is green at a time.",
        )
    )
    made.with_panel(
        lines(
            "Heartbeat seen by replicas",
            [
                (
                    f"max by (instance) (weir_leader_heartbeat_age_seconds{{{CLUSTER}}} < +Inf)",
                    "{{instance}}",
                )
            ],
            unit="s",
            limit=1.5,
            text="After 1.5 s a candidate takes over. One line alone: that replica is cut off.",
            height=6,
        )
    )
    made.with_panel(
        lines(
            "Tick",
            [
                (quantile(0.5, "weir_tick_duration_seconds"), "p50"),
                (quantile(0.99, "weir_tick_duration_seconds"), "p99"),
            ],
            unit="s",
            limit=0.5,
            text="Fold, decide, check, commit. The interval is 0.5 s.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Epoch in force",
            [
                (f"max by (instance) (weir_plan_epoch{{{CLUSTER}}})", "{{instance}}"),
                (f"max by (instance) (weir_agent_plan_epoch{{{CLUSTER}}})", "{{instance}}"),
            ],
            unit="none",
            low=None,
            text="Lines on top of each other: everybody follows the same plan.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Peers not heard",
            [
                (
                    f"max by (instance) (weir_peers_expected{{{CLUSTER}}} - weir_peers_heard{{{CLUSTER}}})",
                    "{{instance}}",
                )
            ],
            unit="short",
            text="Replicas whose digest a replica lacks. Good: 0.",
            width=8,
        )
    )
    made.with_row(row("etcd"))
    made.with_panel(
        states(
            "etcd reachable",
            f"min by (instance) (weir_etcd_reachable{{{CLUSTER}}})",
            "{{instance}}",
            {0: ("no", RED), 1: ("yes", GREEN)},
            text="Linearizable reads succeed. All red: no quorum, the last good plan stays.",
            width=8,
            height=7,
        )
    )
    made.with_panel(
        lines(
            "Calls and failures",
            [
                (
                    f"sum by (call) (rate(weir_etcd_calls_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{call}}",
                ),
                (
                    f"sum by (reason) (rate(weir_etcd_failures_total{{{CLUSTER}}}[$__rate_interval]))",
                    "failed: {{reason}}",
                ),
            ],
            unit="ops",
            text="Constant while nothing happens, and while much does.",
            width=8,
            height=7,
        )
    )
    made.with_panel(
        lines(
            "Unusual events",
            [
                (
                    f"sum by (event) (rate(weir_etcd_events_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{event}}",
                )
            ],
            unit="ops",
            text="rotation: a member was slow or gone; ambiguous: an outcome had to be read.",
            width=8,
            height=7,
        )
    )
    made.with_row(row("Reports and subscribers"))
    made.with_panel(
        lines(
            "Reports",
            [
                (
                    f"sum by (region, result) (rate(weir_reports_total{{{CLUSTER}}}[$__rate_interval])) > 0",
                    "{{region}} {{result}}",
                )
            ],
            unit="reqps",
            text="By region and answer. invalid or refused: an agent is wrong or too many.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Subscribers",
            [(f"sum by (kind) (weir_subscribers{{{CLUSTER}}})", "{{kind}}")],
            unit="short",
            text="Who follows the plan. A fall: data planes have lost Weir.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "xDS",
            [
                (
                    f"sum by (type) (rate(weir_xds_pushes_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{type}} pushed",
                ),
                (
                    f"sum by (type) (rate(weir_xds_nacks_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{type}} refused",
                ),
            ],
            unit="ops",
            text="Refused: that data plane keeps its old weights. Good: 0.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Calls denied",
            [
                (
                    f"sum by (reason) (rate(weir_calls_denied_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{reason}}",
                )
            ],
            unit="reqps",
            text="Without a valid identity, without the role, or too often. Good: 0.",
            height=6,
        )
    )
    made.with_panel(
        lines(
            "What agents made of plans",
            [
                (
                    f"sum by (result) (rate(weir_agent_plans_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{result}}",
                )
            ],
            unit="ops",
            text="refused: an agent found the plan broken; not_taken: its data plane did. Good: 0.",
            height=6,
        )
    )
    made.with_row(row("Processes"))
    made.with_panel(
        lines(
            "CPU",
            [
                (
                    f"sum by (instance) (rate(process_cpu_seconds_total{{{CLUSTER}}}[$__rate_interval]) and on (instance, job) weir_build_info)",
                    "{{instance}}",
                )
            ],
            unit="percentunit",
            text="Share of one core.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Memory",
            [
                (
                    f"sum by (instance) (process_resident_memory_bytes{{{CLUSTER}}} and on (instance, job) weir_build_info)",
                    "{{instance}}",
                )
            ],
            unit="bytes",
            text="Resident. Flat after an hour.",
            width=8,
        )
    )
    made.with_panel(
        rows(
            "What runs",
            f"weir_build_info{{{CLUSTER}}} * on (instance, job) group_left () weir_config_last_reload_successful",
            text="Versions, and 1 where the last reload of the configuration was taken.",
            hide=("Time", "__name__", "job"),
            width=8,
        )
    )
    made.with_panel(
        number(
            "Invariants broken",
            f"sum(increase(weir_alarms_total{{{CLUSTER}}}[$__range]))",
            decimals=0,
            steps=((None, GREEN), (1, RED)),
            text="In the time range. Every one is a defect.",
            width=8,
        )
    )
    made.with_panel(
        number(
            "Next certificate ends in",
            f"min(weir_certificate_expiry_timestamp_seconds{{{CLUSTER}}} - time()) or vector(+Inf)",
            unit="s",
            steps=((None, RED), (86_400, YELLOW), (1_209_600, GREEN)),
            text="Over all processes; infinite without TLS.",
            width=8,
        )
    )
    oldest = f"min(max by (region) (weir_drill_last_timestamp_seconds{{{CLUSTER}}}))"
    return made.with_panel(
        number(
            "Longest without a drill",
            # 0 is "never": no fallback, so that a missing metric is still seen as missing
            f"(time() - {oldest}) * ({oldest} > bool 0) - ({oldest} == bool 0)",
            unit="s",
            words={-1: ("never", BLUE)},
            steps=((None, GREEN), (7_776_000, BLUE)),
            text="A failover that is never practised is a hope. Blue: over 90 days, or never.",
            width=8,
        )
    )
