"""One open stream as the ADS server sees it, and the rules that need nothing but it and the time.

Theory. A stream's protocol state is its `Machine`'s (`xds_stream`, `xds_delta`); here is what the
server notes besides: since when the client owes an answer, and since when a write is under way.

Rules
- Age. A subscriber that owes nothing has age 0; else its age is the time since the oldest push it
  has not answered. One that hangs with its connection open therefore grows older with every push
  to come, and stays at the epoch it acknowledged last.
- A write that has lasted `limit_ms` is not slow yet but *overdue*; it is slow if it still is at the
  next look, `SECOND_LOOK_MS` later: it may be this replica that was paused, with the news of a
  completed write still unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from controlplane.adapters.xds_stream import Outgoing, Peer, Receipt, View
from controlplane.model.evidence import Subscriber, plain_text
from controlplane.model.ids import Epoch

SECOND_LOOK_MS: Final = 100
"""How long an overdue write is given before it is called slow."""


class Machine(Protocol):
    """What the server needs of a stream's state; see `xds_stream` and `xds_delta`."""

    peer: Peer
    asked: bool

    def receive(self, request: Any) -> tuple[Receipt, str]:
        """Take a request."""
        ...

    def due(self, view: View) -> list[Outgoing]:
        """Return what has to be sent now."""
        ...

    def refresh(self, view: View) -> list[Outgoing]:
        """Return the expiring endpoints again."""
        ...

    def error(self, type_url: str) -> str:
        """Return why the client refused a type last."""
        ...

    @property
    def refusal(self) -> str:
        """Why the client refuses what it was sent last, with the type; empty when it does not."""
        ...

    @property
    def routes_traffic(self) -> bool:
        """Whether it has endpoints at all."""
        ...

    @property
    def applied_epoch(self) -> Epoch:
        """Newest epoch acknowledged."""
        ...

    @property
    def waiting(self) -> bool:
        """Whether endpoints are unanswered."""
        ...


@dataclass(slots=True, eq=False)
class Session:
    """One open stream. `refreshes` counts the confirmations it was told of."""

    machine: Machine
    task: asyncio.Task[Any]
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    refreshes: int = 0
    waiting_since_ms: int | None = None
    writing_since_ms: int | None = None
    overdue: bool = False
    slow: bool = False
    kind: str = ""
    ended: bool = False

    def due(self, view: View, refreshes: int) -> list[Outgoing]:
        """Return what has to be written now; after a confirmation also what would expire, whatever
        else is due: a delta stream's other endpoints renew nothing."""
        out = self.machine.due(view)
        if self.refreshes != refreshes:
            self.refreshes = refreshes
            out += self.machine.refresh(view)
        return out

    def writing(self, now_ms: int) -> None:
        """Note that a write begins."""
        if self.waiting_since_ms is None and self.machine.waiting:
            self.waiting_since_ms = now_ms
        self.writing_since_ms = now_ms

    def written(self) -> None:
        """Note that it ended."""
        self.writing_since_ms, self.overdue = None, False

    def answered(self) -> None:
        """Note that a request was taken, which may have been the answer that was owed."""
        if not self.machine.waiting:
            self.waiting_since_ms = None

    def describe(self, now_ms: int) -> Subscriber:
        """Say who this is and what it has applied."""
        peer, since_ms = self.machine.peer, self.waiting_since_ms
        return Subscriber(
            name=peer.name,
            kind=peer.kind,
            region=peer.region,
            applied_epoch=self.machine.applied_epoch,
            age_ms=0 if since_ms is None else now_ms - since_ms,
            error=plain_text(self.machine.refusal),
        )


def mark_slow(
    sessions: Iterable[Session], now_ms: int, limit_ms: int
) -> tuple[list[Session], int | None]:
    """Mark the writes that take too long; return those to be ended, and in how many ms to look
    again (None when nothing is being written)."""
    slow: list[Session] = []
    next_ms: int | None = None
    for session in sessions:
        if session.writing_since_ms is None or session.slow:
            continue
        left_ms = session.writing_since_ms + limit_ms - now_ms
        if left_ms <= 0 and session.overdue:
            session.slow = True
            slow.append(session)
            continue
        if left_ms <= 0:
            session.overdue, left_ms = True, SECOND_LOOK_MS
        next_ms = left_ms if next_ms is None else min(next_ms, left_ms)
    return slow, next_ms
