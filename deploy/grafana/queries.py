"""Expressions that several dashboards share."""

from __future__ import annotations

from typing import Final

from kit import CLUSTER, coded, newest, values_of

PHASE_CODES: Final = {0: "healthy", 1: "suspect", 2: "failed", 3: "recovering"}
VERDICT_CODES: Final = {0: "healthy", 1: "suspect", 2: "unhealthy", 3: "unknown"}
BREAKER_CODES: Final = {0: "closed", 1: "half_open", 2: "open"}
BUDGET_S: Final = 30

REGION: Final = values_of(
    "region", "weir_region_capacity_tps", name="region", text="Region looked at."
)
CHANNEL: Final = values_of(
    "channel", "weir_channel_demand_tps", name="channel", text="Channel looked at."
)

FAILED: Final = f'weir_region_phase{{{CLUSTER}, phase="failed"}}'
CLOSED: Final = f'weir_breaker_state{{{CLUSTER}, state="closed"}}'
DECLINED: Final = ', outcome="declined"'


def payments(by: str, more: str = "", span: str = "$__rate_interval") -> str:
    """Payments per second."""
    return f"sum by ({by}) (rate(weir_payments_total{{{CLUSTER}{more}}}[{span}]))"


def failing(by: str, more: str = "") -> str:
    """Share of payments without an answer."""
    errors = payments(by, f', outcome="error"{more}')
    return f"{errors} / ({payments(by, more)} > 0)"


def quantile(q: float, metric: str, by: str = "", more: str = "") -> str:
    """Quantile of a histogram over the rate interval."""
    grouped = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({q}, sum by ({grouped}) "
        f"(rate({metric}_bucket{{{CLUSTER}{more}}}[$__rate_interval])))"
    )


def weights(by: str, more: str = "") -> str:
    """Share of the plan's weights, 0 to 1, averaged over what is not in `by`."""
    inner = newest(f"weir_route_weight_bp{{{CLUSTER}{more}}}")
    return f"avg by ({by}) (max by (region, channel) ({inner})) / 10000"


def phases(more: str = "") -> str:
    """Phase of every region as a number."""
    return coded("weir_region_phase", "phase", PHASE_CODES, "region", more)


FAILING_NOW: Final = (
    f'sum(rate(weir_payments_total{{{CLUSTER}, outcome="error"}}[$__rate_interval])) '
    f"/ (sum(rate(weir_payments_total{{{CLUSTER}}}[$__rate_interval])) > 0)"
)
"""Share of all payments without an answer."""
