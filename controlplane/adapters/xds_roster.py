"""Who follows the plan over xDS at this server, and who did until lately. No input or output.

Rules
- Only a stream that was sent endpoints is a subscriber: nothing else can lag behind a plan.
- Several streams of one name are one subscriber, as far as the slowest of them.
- Who left is remembered for `remember_ms`, with an age that counts from then, or from the push that
  it owed an answer to: it may still carry payments by its last plan (it fails open), and nobody
  here can know.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from controlplane.adapters.xds_session import Session
from controlplane.model.evidence import Subscriber

REMEMBERED_MAX: Final = 4096
"""Departed subscribers that are still named as laggards."""


class Roster:
    """Open sessions, and the subscribers that left. Time is passed in."""

    def __init__(self, remember_ms: int) -> None:
        self.sessions: set[Session] = set()
        self._remember_ms = remember_ms
        self._departed: OrderedDict[str, tuple[Subscriber, int]] = OrderedDict()

    def leave(self, session: Session, now_ms: int) -> None:
        """Take a session out; remember it if it had endpoints."""
        self.sessions.discard(session)
        if not session.machine.routes_traffic:
            return
        subscriber = session.describe(now_ms)
        self._departed[subscriber.name] = (subscriber, now_ms)
        self._departed.move_to_end(subscriber.name)
        while len(self._departed) > REMEMBERED_MAX:
            self._departed.popitem(last=False)

    def subscribers(self, now_ms: int) -> tuple[Subscriber, ...]:
        """Everybody, sorted by name; a departed one only while it has no stream open."""
        found: dict[str, Subscriber] = {}
        for name, (subscriber, left_ms) in list(self._departed.items()):
            if now_ms - left_ms > self._remember_ms:
                del self._departed[name]
            else:
                found[name] = replace(subscriber, age_ms=subscriber.age_ms + now_ms - left_ms)
        live: dict[str, Subscriber] = {}
        for session in self.sessions:
            if session.machine.routes_traffic:
                mine = session.describe(now_ms)
                other = live.get(mine.name)
                live[mine.name] = mine if other is None else _slower(mine, other)
        return tuple(sorted({**found, **live}.values(), key=lambda s: s.name))


def _slower(one: Subscriber, other: Subscriber) -> Subscriber:
    """Return two streams of one name as one subscriber."""
    return replace(
        one,
        applied_epoch=min(one.applied_epoch, other.applied_epoch),
        age_ms=max(one.age_ms, other.age_ms),
        error=one.error or other.error,
    )
