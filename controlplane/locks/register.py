"""The epochs of the fencing tokens, kept in etcd: one key, changed by compare-and-swap only.

Theory. A token's high part is an epoch, and an epoch belongs to exactly one lineage of Redis data,
known by its nonce. `allocate` gives a lineage the number above everything anybody has seen, or the
one that it was given before: a bump that died half-way is finished by the next, not repeated (355
bumps used 29 epochs).

The record also says how long a grant of this epoch may last (`ttl_high_ms`) and for how long the
epoch before it may still be believed in (`quarantine_ms`, 0 once the quarantine is over).

Failure modes. etcd restored from a backup is behind: `allocate` goes above what Redis and every
replica remember (`at_least`). Only a loss of etcd, of Redis and of every replica's memory at once
needs a person: `epoch_floor` of the configuration.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Final

from controlplane.locks.token import EPOCH_MAX
from controlplane.model.errors import Alarm, AmbiguousError, UnavailableError
from controlplane.ports import Compare, KeyValueStore, Put

ATTEMPTS_MAX: Final = 16
"""Compare-and-swap rounds; each lost round means that another replica made progress."""
READS_MAX: Final = 2
"""Linearizable reads under way at once; more would not be answered sooner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What etcd holds. Times in ms; `nonce` names the lineage the epoch was allocated for."""

    epoch: int
    nonce: str = ""
    ttl_high_ms: int = 0
    quarantine_ms: int = 0

    def encode(self) -> bytes:
        """As JSON, for people with etcdctl."""
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def decode(cls, value: bytes) -> Record:
        """Parse; Alarm when the key holds something else."""
        try:
            return cls(**json.loads(value))
        except (ValueError, TypeError) as error:
            raise Alarm(f"locks: the epoch record in etcd is unreadable: {error}") from error


NOTHING: Final = Record(epoch=0)
Changing = Callable[[Record], Record | None]
"""The record to write instead of the old one; None to leave it."""


class EpochRegister:
    """The key `key` of a linearizable store."""

    def __init__(self, store: KeyValueStore, key: bytes) -> None:
        self._store = store
        self._key = key
        self._batch: asyncio.Future[Record] | None = None
        self._gate = asyncio.Semaphore(READS_MAX)
        self.reads = 0
        """Linearizable reads made for strict grants; many grants share one."""

    async def read(self) -> tuple[Record, int]:
        """Linearizable read of the record and its mod_revision (0 when there is none)."""
        found = await self._store.get(self._key)
        if found is None:
            return NOTHING, 0
        return Record.decode(found.value), found.mod_revision

    async def current(self) -> Record:
        """Read the record by a linearizable read that begins after this call.

        Everybody who asks before a read begins shares it.
        """
        while True:
            if self._batch is None:
                return await self._lead()
            try:
                return await asyncio.shield(self._batch)
            except asyncio.CancelledError:
                if not self._leader_went():
                    raise

    def _leader_went(self) -> bool:
        task = asyncio.current_task()
        return task is not None and not task.cancelling()

    async def _lead(self) -> Record:
        batch = self._batch = asyncio.get_running_loop().create_future()
        try:
            await asyncio.sleep(0)  # those whose grants came in the same answer of Redis join
            async with self._gate:
                self._batch = None  # who asks from here on needs a later read
                self.reads += 1
                record, _ = await self.read()
        except asyncio.CancelledError:
            batch.cancel()
            raise
        except Exception as error:
            batch.set_exception(error)
            batch.exception()  # there may be no follower to retrieve it
            raise
        finally:
            if self._batch is batch:
                self._batch = None
        batch.set_result(record)
        return record

    async def allocate(self, nonce: str, *, above: int, floor: int, ttl_usual_ms: int) -> Record:
        """Return the epoch of the lineage `nonce`: its own if it has one, else a new one.

        `above` is the epoch that this Redis has already, `floor` the highest that the caller has
        seen anywhere. A new epoch is above both, above etcd's, and never given to another lineage.
        """

        def next_record(old: Record) -> Record | None:
            if old.nonce == nonce and old.epoch > above and old.epoch >= floor:
                return None  # allocated by somebody who did not get to install it
            return Record(
                epoch=max(old.epoch, above, floor) + 1,
                nonce=nonce,
                ttl_high_ms=ttl_usual_ms,
                quarantine_ms=max(old.ttl_high_ms, old.quarantine_ms, ttl_usual_ms),
            )

        return await self._change(next_record)

    async def raise_ttl(self, epoch: int, ttl_ms: int) -> Record:
        """Announce a longer TTL for an epoch. Returns the record; its epoch may be another."""

        def raised(old: Record) -> Record | None:
            if old.epoch != epoch or old.ttl_high_ms >= ttl_ms:
                return None
            return replace(old, ttl_high_ms=ttl_ms)

        return await self._change(raised)

    async def opened(self, epoch: int) -> Record:
        """Note that the quarantine of an epoch is over."""

        def over(old: Record) -> Record | None:
            if old.epoch != epoch or not old.quarantine_ms:
                return None
            return replace(old, quarantine_ms=0)

        return await self._change(over)

    async def _change(self, change: Changing) -> Record:
        for _ in range(ATTEMPTS_MAX):
            old, revision = await self.read()
            new = change(old)
            if new is None:
                return old
            if new.epoch > EPOCH_MAX:
                raise Alarm(f"locks: epoch {new.epoch} does not fit a token")
            try:
                outcome = await self._store.txn(
                    [Compare(key=self._key, target="mod", op="==", operand=revision)],
                    [Put(key=self._key, value=new.encode())],
                )
            except AmbiguousError:
                continue  # the next read tells
            if outcome.succeeded:
                return new
        raise UnavailableError("locks: the epoch record changes faster than it can be written")
