"""The leader key in etcd: seen, claimed and given back, each in one transaction.

Theory. The term is the key's mod_revision: whoever puts the key begins a new term, and only the
transaction that began it knows its number. The leader never writes the key again. A claim compares
both what the candidate saw of the key and what it saw of the heartbeat, so a leader that has just
written wins against the candidate that believed it dead. The claim also puts the heartbeat: the
chain of the new term begins at the term itself.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from controlplane.adapters.etcd_keys import Keys
from controlplane.clock import Clock, rfc3339
from controlplane.model.errors import CompactedError
from controlplane.model.ids import Term
from controlplane.ports import (
    Compare,
    Delete,
    Get,
    KeyValueStore,
    LeaderKeyState,
    Leadership,
    Put,
    WatchEvent,
)

NAME_MAX: Final = 63


class EtcdLeaderKey:
    """Implements `controlplane.ports.LeaderKey`."""

    def __init__(self, kv: KeyValueStore, cluster: str, clock: Clock) -> None:
        self.keys = Keys(cluster)
        self._kv = kv
        self._clock = clock

    async def observe(self) -> LeaderKeyState:
        """Linearizable read of leader key and heartbeat."""
        result = await self._kv.txn((), (Get(key=self.keys.leader), Get(key=self.keys.heartbeat)))
        leader, heartbeat = (kvs[0] if kvs else None for kvs in result.reads)
        replica, region = _who(leader.value) if leader else ("", "")
        return LeaderKeyState(
            term=Term(leader.mod_revision if leader else 0),
            replica=replica,
            region=region,
            heartbeat_revision=heartbeat.mod_revision if heartbeat else 0,
            revision=result.revision,
        )

    async def claim(
        self, replica: str, region: str, lease: int, seen: LeaderKeyState
    ) -> Leadership | None:
        """Take the key if it and the heartbeat still are what was seen; None when they are not.

        Raises AmbiguousError when it may have happened: observe again before anything else.
        """
        since = rfc3339(self._clock.wall_ms())  # for people
        value = json.dumps(
            {"replica": replica, "region": region, "lease": lease, "since": since}
        ).encode()
        beat = json.dumps(
            {"replica": replica, "region": region, "lease": lease, "after": seen.term, "seq": 0}
        ).encode()
        result = await self._kv.txn(
            (
                Compare(key=self.keys.leader, target="mod", op="==", operand=seen.term),
                Compare(
                    key=self.keys.heartbeat, target="mod", op="==", operand=seen.heartbeat_revision
                ),
            ),
            (
                Put(key=self.keys.leader, value=value, lease=lease),
                Put(key=self.keys.heartbeat, value=beat),
            ),
        )
        if not result.succeeded:
            return None
        return Leadership(term=Term(result.revision), replica=replica, region=region)

    async def release(self, leadership: Leadership) -> None:
        """Delete the key if it still carries our term."""
        await self._kv.txn(
            (Compare(key=self.keys.leader, target="mod", op="==", operand=leadership.term),),
            (Delete(key=self.keys.leader),),
        )

    async def changes(self, after_revision: int) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """Yield changes of the key after a revision, for ever. Only a hint to observe at once."""
        while True:
            try:
                async for events in self._kv.watch(self.keys.leader, after_revision + 1):
                    after_revision = events[-1].mod_revision
                    yield events
            except CompactedError:
                after_revision = (await self.observe()).revision
                yield ()

    async def grant_lease(self, ttl_s: int) -> int:
        """Grant a lease."""
        return await self._kv.grant_lease(ttl_s)

    async def keepalive(self, lease: int) -> int:
        """Renew a lease; 0 when it is gone."""
        return await self._kv.keepalive(lease)

    async def revoke_lease(self, lease: int) -> None:
        """Revoke a lease."""
        await self._kv.revoke_lease(lease)


def _who(value: bytes) -> tuple[str, str]:
    """Read replica and region from the key's value; a value that is no JSON names nobody."""
    try:
        body = json.loads(value)
        return str(body["replica"])[:NAME_MAX], str(body["region"])[:NAME_MAX]
    except (ValueError, KeyError, TypeError):
        return "", ""
