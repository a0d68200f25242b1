"""The book of digests: the newest of every replica, and what follows from all of them together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from controlplane.model.epochs import believable
from controlplane.model.evidence import Digest, Subscriber
from controlplane.model.ids import Epoch, ReplicaId

FORGET_MS: Final = 600_000
"""A replica unheard of for ten minutes is forgotten."""

STALE_SUBSCRIBER_MS: Final = 5_000
"""A subscriber with no sign of life for this long is not live: nobody waits for it any more."""

SILENT_MS: Final = 60_000
"""How long the subscribers of a replica that is not heard of are still named as silent."""

MAX_REPLICAS: Final = 64
"""More replicas than this are refused: each costs one stream and one digest a tick."""


class DigestBook:
    """Newest digest per replica with the time it came. Older, repeated and reordered ones are
    ignored."""

    def __init__(self) -> None:
        self._entries: dict[ReplicaId, tuple[Digest, int]] = {}

    def put(self, digest: Digest, now_ms: int) -> bool:
        """Keep a digest if it is news; tell whether it was."""
        known = self._entries.get(digest.replica)
        if known is not None:
            old = known[0]
            if old.boot == digest.boot and old.seq >= digest.seq:
                return False
        elif len(self._entries) >= MAX_REPLICAS:
            return False
        self._entries[digest.replica] = (digest, now_ms)
        return True

    def entries(self, now_ms: int) -> list[tuple[Digest, int]]:
        """All digests with their age in ms, sorted by replica."""
        for replica, (_, at) in list(self._entries.items()):
            if now_ms - at > FORGET_MS:
                del self._entries[replica]
        return [(digest, now_ms - at) for _, (digest, at) in sorted(self._entries.items())]

    def highest_epoch(self, committed: Epoch) -> Epoch:
        """Highest epoch anyone has reported that can be believed: one absurd report hides none."""
        told = (e for d, _ in self._entries.values() for e in (d.highest_epoch, d.plan_epoch))
        return Epoch(max((e for e in told if believable(e, committed)), default=0))


def live_subscribers(entries: Iterable[tuple[Digest, int]]) -> list[Subscriber]:
    """Return subscribers with a recent sign of life, over all replicas that are themselves heard
    of.

    A subscriber of several replicas counts once, with the highest epoch it acknowledged anywhere.
    """
    best: dict[tuple[str, str], Subscriber] = {}
    for digest, age_ms in entries:
        if age_ms > STALE_SUBSCRIBER_MS:
            continue
        for subscriber in digest.subscribers:
            if subscriber.age_ms + age_ms > STALE_SUBSCRIBER_MS:
                continue
            key = (subscriber.kind, subscriber.name)
            known = best.get(key)
            if known is None or known.applied_epoch < subscriber.applied_epoch:
                best[key] = subscriber
    return [best[key] for key in sorted(best)]


def silent_subscribers(entries: Iterable[tuple[Digest, int]], current: Epoch) -> list[Subscriber]:
    """Return subscribers that nobody has heard of for a while and that were behind `current` then:
    hung, gone, or cut off. `age_ms` is the time since their last sign of life.

    That they have applied it, or have stopped, is known to nobody; only a channel that fails closed
    has surely stopped. One that is live at another replica is not silent. A replica tells of those
    that left it for a minute, of those whose stream is open for as long as it is.
    """
    kept = list(entries)
    live = {(s.kind, s.name) for s in live_subscribers(kept)}
    best: dict[tuple[str, str], Subscriber] = {}
    for digest, age_ms in kept:
        if age_ms > SILENT_MS:
            continue
        for subscriber in digest.subscribers:
            key, silent_ms = (subscriber.kind, subscriber.name), subscriber.age_ms + age_ms
            if key in live:
                continue
            known = best.get(key)
            if known is None or known.applied_epoch < subscriber.applied_epoch:
                best[key] = replace(subscriber, age_ms=silent_ms)
    return [best[key] for key in sorted(best) if best[key].applied_epoch < current]


def converged_epoch(subscribers: Iterable[Subscriber], current: Epoch) -> Epoch:
    """Return the epoch that every live subscriber has applied; `current` when there is none."""
    return Epoch(min((s.applied_epoch for s in subscribers), default=current))
