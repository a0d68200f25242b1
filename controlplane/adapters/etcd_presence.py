"""Presence of replicas under leases, and what it means when many leases vanish at once.

Theory. Every replica keeps `replicas/<id>` alive under a lease of its own. One lease that lapses
says something about one replica. Many leases of several regions that vanish within seconds say
something about etcd (a stuck leader once revoked them all, etcd #15247): regions do not die in
unison while etcd, which needs most of them, goes on. Then leases prove nothing, the leader's key
and operators' intents included, and the decision holds.

Rules
- A loss is a deletion of a key that did not say goodbye; a clean exit writes `leaving` first.
- Mass loss: within `WINDOW_MS`, at least half of the replicas present, of at least two regions.
- It is suspected for `HOLD_MS` after the last such loss.
- A replica whose lease is gone registers again at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from typing import Final

import structlog

from controlplane.adapters.etcd_keys import Keys
from controlplane.clock import Clock
from controlplane.model.errors import CompactedError, WeirError
from controlplane.ports import KeyValueStore, Put

log = structlog.get_logger(__name__)

TTL_S: Final = 10
KEEPALIVE_MS: Final = 3_000
WINDOW_MS: Final = 12_000
"""Leases lost to one cause lapse within their TTL of each other, plus etcd's granularity."""
HOLD_MS: Final = 30_000
RETRY_MS: Final = 500
GOODBYE_S: Final = 1.0


class LeaseLosses:
    """Judges lost leases; pure. `present` maps replicas to regions."""

    def __init__(self) -> None:
        self._present: dict[str, str] = {}
        self._lost: deque[tuple[int, str, str]] = deque(maxlen=1000)
        self._until_ms: int | None = None

    @property
    def present(self) -> dict[str, str]:
        """Replicas whose key is there, and their regions."""
        return dict(self._present)

    def listed(self, now_ms: int, replicas: dict[str, str]) -> None:
        """Take in a whole listing; who is missing since the last one was lost unseen."""
        for replica in [name for name in self._present if name not in replicas]:
            self.lost(now_ms, replica)
        self._present = dict(replicas)

    def arrived(self, replica: str, region: str) -> None:
        """Take in a registration."""
        self._present[replica] = region

    def left(self, replica: str) -> None:
        """Take in a goodbye: the deletion that follows is no loss."""
        self._present.pop(replica, None)

    def lost(self, now_ms: int, replica: str) -> None:
        """Take in a deletion."""
        region = self._present.pop(replica, None)
        if region is None:
            return
        self._lost.append((now_ms, replica, region))
        recent = {name: where for at, name, where in self._lost if now_ms - at <= WINDOW_MS}
        total = len(recent | self._present)
        if len(set(recent.values())) > 1 and 2 * len(recent) >= total:
            if not self.suspect(now_ms):
                log.warning("coordination_suspect", lost=sorted(recent), of=total)
            self._until_ms = now_ms + HOLD_MS

    def suspect(self, now_ms: int) -> bool:
        """Whether leases are evidence against etcd at the moment."""
        return self._until_ms is not None and now_ms < self._until_ms


class EtcdPresence:
    """Keeps one replica's presence, watches everybody's. `run` it; ask `coordination_suspect`."""

    def __init__(
        self, kv: KeyValueStore, cluster: str, clock: Clock, *, replica: str, region: str
    ) -> None:
        self.keys = Keys(cluster)
        self.losses = LeaseLosses()
        self._kv = kv
        self._clock = clock
        self._replica = replica
        self._region = region
        self._lease = 0

    def coordination_suspect(self) -> bool:
        """Whether many leases vanished at once: `Evidence.coordination_suspect`."""
        return self.losses.suspect(self._clock.monotonic_ms())

    async def run(self) -> None:
        """Keep and watch until cancelled; says goodbye on the way out."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep(), name="presence")
                group.create_task(self._watch(), name="presence-watch")
        finally:
            with contextlib.suppress(WeirError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._goodbye()

    async def _keep(self) -> None:
        while True:
            try:
                if not self._lease or await self._kv.keepalive(self._lease) == 0:
                    await self._register()
                await self._clock.sleep_ms(KEEPALIVE_MS)
            except WeirError as error:
                log.debug("presence_not_kept", error=str(error))
                await self._clock.sleep_ms(RETRY_MS)

    async def _register(self) -> None:
        self._lease = await self._kv.grant_lease(TTL_S)
        value = json.dumps({"region": self._region}).encode()
        key = self.keys.replica(self._replica)
        await self._kv.txn((), (Put(key=key, value=value, lease=self._lease),))

    async def _goodbye(self) -> None:
        if not self._lease:
            return
        lease, self._lease = self._lease, 0
        value = json.dumps({"region": self._region, "leaving": True}).encode()
        key = self.keys.replica(self._replica)
        await self._kv.txn((), (Put(key=key, value=value, lease=lease),))
        await self._kv.revoke_lease(lease)

    async def _watch(self) -> None:
        while True:
            try:
                kvs, revision = await self._kv.get_prefix(self.keys.replicas)
                listing = {self._name(kv.key): _region(kv.value) for kv in kvs}
                self.losses.listed(self._clock.monotonic_ms(), listing)
                async for changes in self._kv.watch(self.keys.replicas, revision + 1):
                    for change in changes:
                        self._saw(self._name(change.key), change.value)
            except CompactedError:
                continue  # list again
            except WeirError as error:
                log.debug("presence_not_watched", error=str(error))
                await self._clock.sleep_ms(RETRY_MS)

    def _saw(self, name: str, value: bytes | None) -> None:
        if value is None:
            self.losses.lost(self._clock.monotonic_ms(), name)
        elif b'"leaving"' in value:
            self.losses.left(name)
        else:
            self.losses.arrived(name, _region(value))

    def _name(self, key: bytes) -> str:
        return key.removeprefix(self.keys.replicas).decode(errors="replace")


def _region(value: bytes) -> str:
    try:
        return str(json.loads(value)["region"])
    except (ValueError, KeyError, TypeError):
        return ""
