"""The record of locks that operators took away: one key in etcd per request.

The record is written before the act, with the tokens it is about, so that a repetition (or a crash
in between) can take away only what the operator saw, never the lock of whoever came next.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Final

from controlplane.locks.token import Token
from controlplane.model.errors import AmbiguousError, UnavailableError
from controlplane.ports import Compare, Get, KeyValueStore, Put

KEEP_S: Final = 30 * 24 * 3600
"""Records are kept for 30 days."""
ATTEMPTS_MAX: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedRelease:
    """One operator's act. `tokens` are the holders that were seen, `released` what came of it."""

    request: str
    name: str
    reason: str
    operator: str
    at_ms: int
    owners: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    released: bool | None = None

    def pairs(self) -> tuple[Token, ...]:
        """Return the tokens as pairs."""
        return tuple(map(Token.of, self.tokens))


class AuditLog:
    """Records below `prefix`."""

    def __init__(self, store: KeyValueStore, prefix: bytes) -> None:
        self._store = store
        self._prefix = prefix

    async def open(self, entry: ForcedRelease) -> ForcedRelease:
        """Write the record, or return the one that this request wrote before."""
        key = self._prefix + entry.request.encode()
        lease = await self._store.grant_lease(KEEP_S)
        for _ in range(ATTEMPTS_MAX):
            try:
                outcome = await self._store.txn(
                    [Compare(key=key, target="create", op="==", operand=0)],
                    [Put(key=key, value=_encode(entry), lease=lease)],
                    [Get(key=key)],
                )
            except AmbiguousError:
                continue
            if outcome.succeeded:
                return entry
            if outcome.reads and outcome.reads[0]:
                return _decode(outcome.reads[0][0].value)
        raise UnavailableError("the audit record could not be written; nothing was released")

    async def close(self, entry: ForcedRelease, *, released: bool) -> ForcedRelease:
        """Note the outcome; the first one stays."""
        key = self._prefix + entry.request.encode()
        done = replace(entry, released=released)
        found = await self._store.get(key)
        if found is not None and _decode(found.value).released is None:
            await self._store.txn(
                [Compare(key=key, target="mod", op="==", operand=found.mod_revision)],
                [Put(key=key, value=_encode(done), lease=found.lease)],
            )
        return done

    async def list(self) -> list[ForcedRelease]:
        """Every record, oldest first."""
        found, _ = await self._store.get_prefix(self._prefix)
        return sorted((_decode(kv.value) for kv in found), key=lambda entry: entry.at_ms)


def _encode(entry: ForcedRelease) -> bytes:
    return json.dumps(asdict(entry), separators=(",", ":")).encode()


def _decode(value: bytes) -> ForcedRelease:
    fields = json.loads(value)
    fields["owners"] = tuple(fields["owners"])
    fields["tokens"] = tuple(fields["tokens"])
    return ForcedRelease(**fields)
