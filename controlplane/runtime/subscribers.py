"""Who follows the plan at this replica, and which epoch each has applied.

"Converged" means that every live subscriber has applied an epoch. A subscriber is live while its
stream is open and it has lately given a sign of life; who is neither has stopped by itself
(`endpoint_stale_after`) and is not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from controlplane.model.errors import UnavailableError
from controlplane.model.evidence import Subscriber, check_text, plain_text
from controlplane.model.ids import Epoch


@dataclass(slots=True)
class _Entry:
    """One open stream. `streams` counts several of the same name."""

    kind: str
    region: str
    applied: Epoch
    seen_ms: int
    streams: int
    error: str = ""
    version: str = ""


class SubscriberRegistry:
    """Open plan streams by name, bounded. Time is passed in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: dict[str, _Entry] = {}
        self._sources: list[Callable[[], tuple[Subscriber, ...]]] = []

    def add_source(self, source: Callable[[], tuple[Subscriber, ...]]) -> None:
        """Add subscribers kept elsewhere (xDS) to `snapshot`."""
        self._sources.append(source)

    def open(self, kind: str, name: str, region: str, now_ms: int) -> None:
        """Count a stream. InvalidInputError for a bad name, UnavailableError when full."""
        check_text("subscriber", name, least=1)
        check_text("region", region)
        entry = self._entries.get(name)
        if entry is not None:
            entry.streams += 1
            entry.seen_ms = now_ms
            return
        if len(self._entries) >= self._limit:
            raise UnavailableError(
                f"this replica serves at most {self._limit} subscribers; use another one"
            )
        self._entries[name] = _Entry(kind, region, Epoch(0), now_ms, 1)

    def close(self, name: str) -> None:
        """Forget a stream."""
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.streams -= 1
        if entry.streams <= 0:
            del self._entries[name]

    def ack(self, name: str, epoch: Epoch, now_ms: int) -> None:
        """Note an applied epoch; acknowledgements of unknown streams are ignored."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.applied = Epoch(max(entry.applied, epoch))
            entry.seen_ms, entry.error = now_ms, ""

    def tell_version(self, name: str, version: str) -> None:
        """Note what an agent says of itself."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.version = version

    def refuse(self, name: str, error: str, now_ms: int) -> None:
        """Note why a plan was refused, until one is applied."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.seen_ms, entry.error = now_ms, plain_text(error)

    def touch(self, name: str, now_ms: int) -> None:
        """Note a sign of life."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.seen_ms = now_ms

    def snapshot(self, now_ms: int) -> tuple[Subscriber, ...]:
        """All subscribers, sorted by kind and name."""
        own = [
            Subscriber(
                name=name,
                kind=entry.kind,
                region=entry.region,
                applied_epoch=entry.applied,
                age_ms=now_ms - entry.seen_ms,
                error=entry.error,
                version=entry.version,
            )
            for name, entry in self._entries.items()
        ]
        others = [subscriber for source in self._sources for subscriber in source()]
        return tuple(sorted(own + others, key=lambda s: (s.kind, s.name)))
