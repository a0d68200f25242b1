"""Are locks granted, quickly, and does nobody act with an old token?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import CLUSTER, GREEN, RED, YELLOW, board, lines, number
from queries import quantile


def make() -> dashboard.Dashboard:
    """Return the dashboard."""
    made = board(
        "weir-locks", "Locks", "Are locks granted, quickly, and does nobody act with an old token?"
    )
    made.with_panel(
        number(
            "Granted",
            f'sum(rate(weir_lock_grants_total{{{CLUSTER}, result="granted"}}[$__rate_interval]))',
            unit="reqps",
            text="Grants per second.",
            width=6,
        )
    )
    made.with_panel(
        number(
            "Wait (p99)",
            f"({quantile(0.99, 'weir_lock_wait_seconds')} >= 0) or vector(0)",
            unit="s",
            steps=((None, GREEN), (0.2, YELLOW), (1, RED)),
            text="From request to grant. 0 while nobody asks.",
            width=6,
        )
    )
    made.with_panel(
        number(
            "Old tokens refused",
            f"sum(increase(weir_lock_tokens_rejected_total{{{CLUSTER}}}[1h]))",
            decimals=0,
            steps=((None, GREEN), (1, YELLOW)),
            text="In the last hour. Each was harmless because it was refused.",
            width=6,
        )
    )
    made.with_panel(
        number(
            "Redis errors",
            f"sum(increase(weir_lock_redis_errors_total{{{CLUSTER}}}[5m]))",
            decimals=0,
            steps=((None, GREEN), (1, YELLOW), (5, RED)),
            text="In the last five minutes. Locks fail closed.",
            width=6,
        )
    )
    made.with_panel(
        lines(
            "Requests by how they ended",
            [
                (
                    f"sum by (result) (rate(weir_lock_grants_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{result}}",
                )
            ],
            unit="reqps",
            stacked=True,
            text="granted is new, repeated is the answer to a lost reply, lost was renewed too late.",
        )
    )
    made.with_panel(
        lines(
            "Wait",
            [
                (f"{quantile(0.5, 'weir_lock_wait_seconds')}", "p50"),
                (f"{quantile(0.99, 'weir_lock_wait_seconds')}", "p99"),
            ],
            unit="s",
            limit=0.2,
            text="From request to grant. Over 0.2 s: contention; over 1 s: payments feel it.",
        )
    )
    made.with_panel(
        lines(
            "Redis errors by kind",
            [
                (
                    f"sum by (kind) (rate(weir_lock_redis_errors_total{{{CLUSTER}}}[$__rate_interval]))",
                    "{{kind}}",
                )
            ],
            unit="ops",
            text="identity: Redis is not the one it was; quarantine: one lease is waited out.",
        )
    )
    return made.with_panel(
        lines(
            "Epoch of tokens",
            [(f"max by (instance) (weir_lock_epoch{{{CLUSTER}}})", "{{instance}}")],
            unit="none",
            text="High part of tokens. A step: Redis lost its identity and Weir moved above it.",
        )
    )
