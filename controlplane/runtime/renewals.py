"""Orders that were renewed, as events: each once, by whoever leads.

A renewal moves nothing, so the decision does not see it; its end matters to whoever is on call.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.clock import rfc3339
from controlplane.model.intents import Order
from controlplane.model.plan import Event


class Renewals:
    """What stood at the last look. A new leader begins with what stands then."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], int] | None = None

    def new(self, orders: Sequence[Order]) -> list[Event]:
        """Return an event for every order that was renewed since the last look."""
        before, self._seen = self._seen, {order.key: order.revision for order in orders}
        if before is None:
            return []
        return [
            _event(order)
            for order in orders
            if order.was_until_ms and before.get(order.key, order.revision) != order.revision
        ]


def _event(order: Order) -> Event:
    until, was = rfc3339(order.expires_ms), rfc3339(order.was_until_ms)
    what = " ".join(part for part in (order.kind, order.target) if part)
    text = f"{what} holds until {until} instead of {was} by {order.by}: {order.reason}"
    fixes = order.kind == "override"
    return Event(
        kind="order_renewed",
        message=text,
        data={"by": order.by, "reason": order.reason, "expires_at": until, "was_until": was},
        region="" if fixes else order.target,
        channel=order.target if fixes else "",
    )
