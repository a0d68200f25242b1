"""Where do payments of a channel go, and do they succeed?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from kit import BREAKERS, CLUSTER, GREEN, RED, YELLOW, board, coded, lines, number, states
from queries import BREAKER_CODES, CHANNEL, DECLINED, failing, payments, quantile, weights


def make() -> dashboard.Dashboard:
    """Return the dashboard."""
    here = ', channel=~"$channel"'
    only = here.removeprefix(", ")
    made = board(
        "weir-channel",
        "Channel",
        "Where do the payments of a channel go, and do they succeed?",
        variables=[CHANNEL],
    )
    made.with_panel(
        number(
            "Answered",
            f"1 - ({failing('channel', here)})",
            unit="percentunit",
            decimals=3,
            legend="{{channel}}",
            steps=((None, RED), (0.99, YELLOW), (0.999, GREEN)),
            text="Share of payments with an answer now.",
            width=8,
            height=5,
        )
    )
    made.with_panel(
        number(
            "Error budget burns",
            f"weir:payments_error_ratio:rate1h{{{CLUSTER}{here}}} "
            "/ scalar(weir:payments_error_budget:ratio)",
            unit="none",
            decimals=1,
            legend="{{channel}}",
            steps=((None, GREEN), (1, YELLOW), (14.4, RED)),
            text="How many times faster than the objective allows, over one hour (recording rules).",
            width=8,
            height=5,
        )
    )
    made.with_panel(
        number(
            "To be shed",
            f"max by (channel) (weir_route_shed_bp{{{CLUSTER}{here}}}) / 10000",
            unit="percentunit",
            decimals=2,
            legend="{{channel}}",
            steps=((None, GREEN), (0.0001, RED)),
            text="Share that no region can carry.",
            width=8,
            height=5,
        )
    )
    made.with_panel(
        lines(
            "Where it is sent (plan)",
            [(weights("channel, region", here), "{{channel}} {{region}}")],
            unit="percentunit",
            high=1,
            text="Weight of each region in the newest plan. `weir explain CHANNEL` says why.",
        )
    )
    made.with_panel(
        states(
            "Breakers",
            coded("weir_breaker_state", "state", BREAKER_CODES, "channel, region", only),
            "{{channel}} {{region}}",
            BREAKERS,
            text="Open in every region: the provider is down and nothing is moved.",
            height=8,
        )
    )
    made.with_panel(
        lines(
            "Payments by region",
            [(payments("channel, region", here), "{{channel}} {{region}}")],
            unit="reqps",
            text="What really happens. Should follow the plan.",
        )
    )
    made.with_panel(
        lines(
            "Failing by region",
            [(failing("channel, region", here), "{{channel}} {{region}}")],
            unit="percentunit",
            limit=0.01,
            text="Share without an answer. From one region only: that region's way to the provider.",
        )
    )
    made.with_panel(
        lines(
            "Declined",
            [
                (
                    f"{payments('channel', here + DECLINED)} / ({payments('channel', here)} > 0)",
                    "{{channel}}",
                )
            ],
            unit="percentunit",
            text="Declined by issuer or risk control: answers, no errors. A jump is theirs to explain.",
            width=8,
        )
    )
    made.with_panel(
        lines(
            "Probes failing",
            [
                (
                    f'sum by (channel, region) (rate(weir_probes_total{{{CLUSTER}{here}, outcome="error"}}'
                    "[$__rate_interval])) / (sum by (channel, region) "
                    f"(rate(weir_probes_total{{{CLUSTER}{here}}}[$__rate_interval])) > 0)",
                    "{{channel}} {{region}}",
                )
            ],
            unit="percentunit",
            high=1,
            text="Synthetic probes. They see what a quiet channel's payments cannot show.",
            width=8,
        )
    )
    return made.with_panel(
        lines(
            "Time to first byte of probes (p99)",
            [
                (
                    quantile(
                        0.99,
                        "weir_probe_phase_seconds",
                        "channel, region",
                        here + ', phase="first_byte"',
                    ),
                    "{{channel}} {{region}}",
                )
            ],
            unit="s",
            text="Slower from one region only: its way there. From all: the provider.",
            width=8,
        )
    )
