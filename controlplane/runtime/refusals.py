"""Subscribers that refuse the plan, as events: each refusal is told once, by whoever leads.

A data plane that refuses a plan (a NACK) keeps its old one: it is a laggard until somebody looks.
Its replica logs it at once; the digest carries it to the leader, who alone writes events.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.model.evidence import Subscriber
from controlplane.model.plan import Event, Severity

EVENTS_PER_TICK: Final = 5
"""A bad plan is refused by all at once: five names tell the story, the rest is a number."""


class Refusals:
    """What is refused now. A new leader tells again what still is."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], str] = {}

    def new(self, subscribers: Iterable[Subscriber]) -> list[Event]:
        """Return an event for every refusal that was not told yet."""
        now = {(s.kind, s.name): s for s in subscribers if s.error}
        fresh = [s for key, s in now.items() if self._told.get(key) != s.error]
        self._told = {key: s.error for key, s in now.items()}
        events = [_event(s) for s in fresh[:EVENTS_PER_TICK]]
        if len(fresh) > EVENTS_PER_TICK:
            more = len(fresh) - EVENTS_PER_TICK
            message = f"{more} more data planes refuse what they were sent"
            events.append(Event(kind="xds_nack", message=message, severity=Severity.CRITICAL))
        return events


def _event(subscriber: Subscriber) -> Event:
    return Event(
        kind="xds_nack",
        message=f"{subscriber.name} refuses {subscriber.error}",
        severity=Severity.CRITICAL,
    )
