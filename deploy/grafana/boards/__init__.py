"""The six dashboards. Each is built to answer its question in five seconds: the top row says
whether anything is wrong, the rest says what, and since when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from grafana_foundation_sdk.builders import dashboard

from boards import channel, failover, internals, locks, overview, region

BOARDS: Final[Mapping[str, Callable[[], dashboard.Dashboard]]] = {
    "weir-overview": overview.make,
    "weir-region": region.make,
    "weir-channel": channel.make,
    "weir-failover": failover.make,
    "weir-locks": locks.make,
    "weir-internals": internals.make,
}
"""Builders by uid."""
