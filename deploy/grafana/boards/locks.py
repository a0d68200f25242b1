"""Are locks granted, quickly, and does nobody act with an old token?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import CLUSTER, GREEN, RED, YELLOW, board, lines, number, states
from queries import quantile

LOCK_CODES = {1: "open", 2: "quarantine", 3: "unreachable", 4: "replica", 5: "lost", 6: "stale"}
LOCK_STATES = {
    code: (state, GREEN if state == "open" else YELLOW if state == "quarantine" else RED)
    for code, state in LOCK_CODES.items()
}


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
            "Grants are made",
            f'max(weir_lock_state{{{CLUSTER}, state="open"}})',
            words={0: ("no", RED), 1: ("yes", GREEN)},
            unit="none",
            text="No: Redis is not reachable, or lost its data and one lease is waited out.",
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
        states(
            "Where the epoch of locks stands",
            " or ".join(
                f'max by (instance) ({code} * weir_lock_state{{{CLUSTER}, state="{state}"}} > 0)'
                for code, state in LOCK_CODES.items()
            ),
            "{{instance}}",
            LOCK_STATES,
            text="quarantine: Redis lost its data, one lease is waited out; replica, stale: it is "
            "not the Redis it was. Grants are made while it is open.",
            height=8,
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
