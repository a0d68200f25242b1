"""The lock manager: locks of one prefix on one Redis, epochs in one etcd.

Every process that grants has one. It keeps no lock state of its own that matters: what is held is
in Redis, what epoch is in force is in etcd, and any manager can renew or release what another
granted.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import structlog

from controlplane.clock import Clock, SystemClock, seeded
from controlplane.locks import codec
from controlplane.locks.acquisition import Acquisition
from controlplane.locks.errors import LineageError, LockHeldError, LockLostError
from controlplane.locks.grant import (
    Grant,
    Limits,
    LockState,
    Mode,
    check_name,
    check_owner,
    check_request,
    new_request,
)
from controlplane.locks.keeper import Keeper
from controlplane.locks.lineage import Lineage
from controlplane.locks.metrics import LockMetrics, NoMetrics
from controlplane.locks.register import EpochRegister
from controlplane.locks.runner import Link, Scripts
from controlplane.locks.scripts import Script
from controlplane.locks.statistics import Statistics
from controlplane.locks.token import Token
from controlplane.locks.watching import Watches
from controlplane.model.errors import UnavailableError
from controlplane.ports import KeyValueStore

log = structlog.get_logger(__name__)

REPLICA_WAIT_MS: Final = 200
"""How long a grant may wait for replicas to confirm it: well below the silence at which a link is
given up, for WAIT holds up everything behind it."""
RETRY_AFTER_MS: Final[Mapping[str, int]] = {
    "lost": 500, "stale": 500, "exhausted": 200, "replica": 500, "quarantine": 1_000,
}  # fmt: skip
PAGE_MAX: Final = 1_000
OWED_MAX: Final = 10_000
"""Withdrawals kept while Redis is away. The oldest is forgotten: its time ends what it left."""


class LockManager:
    """Acquire, renew, release, inspect. Start it with `run()` in a TaskGroup, or `running()`.

    `redis` is a RedisLink (this manager runs it), `store` etcd, `prefix` names the fence in both.
    `may_bump` tells whether this replica leads. `sources` replaces the scripts in tests.
    """

    def __init__(
        self,
        *,
        redis: Link,
        store: KeyValueStore,
        prefix: str,
        epoch_key: bytes | None = None,
        limits: Limits | None = None,
        mode: Mode = Mode.STRICT,
        wait_replicas: int = 0,
        epoch_floor: int = 0,
        clock: Clock | None = None,
        may_bump: Callable[[], bool] = lambda: True,
        metrics: LockMetrics | None = None,
        seed: int | None = None,
        sources: Mapping[str, Script] | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.limits = limits or Limits()
        self.mode = mode
        self.metrics: LockMetrics = metrics or NoMetrics()
        self.lineage = Lineage(floor=epoch_floor, on_change=self._wake_waiters)
        self.statistics = Statistics()
        self.register = EpochRegister(store, epoch_key or f"/weir/{prefix}/locks/epoch".encode())
        self.scripts = Scripts(redis, prefix, sources)
        self.hand_offs: dict[str, asyncio.Future[codec.HandOff | None]] = {}
        self.attempts: dict[tuple[str, str, str], list[Acquisition]] = {}
        """By name, owner and request, those under way that may withdraw, the newest last."""
        self._owed: OrderedDict[tuple[str, str, str], codec.Ask] = OrderedDict()
        """Withdrawals that did not reach Redis; they leave first once there is a link again."""
        self._link = redis
        self._wait_replicas = wait_replicas
        self._channel = self.scripts.keys.channel(uuid.uuid4().hex)
        self._watches = Watches(redis, self.scripts, self.clock)
        redis.subscribe(self._channel.encode(), self._told)
        redis.on_connect(self._pay)
        self.keeper = Keeper(
            self.scripts, self.register, self.lineage, limits=self.limits, clock=self.clock,
            may_bump=may_bump, metrics=self.metrics, seed=seeded(seed),
        )  # fmt: skip

    async def run(self) -> None:
        """Keep the link and the epoch, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run(), name="locks-redis")
            group.create_task(self.keeper.run(), name="locks-keeper")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LockManager]:
        """Run in the background of a `with` block, for programs without a supervisor."""
        task = asyncio.ensure_future(self.run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (broken := task.exception()):
                log.error("locks_stopped", exc_info=broken)

    # --- what callers do --------------------------------------------------------------------------

    async def acquire(
        self,
        name: str,
        *,
        owner: str,
        ttl_ms: int,
        wait_ms: int = 0,
        mode: Mode | None = None,
        shared: bool = False,
        reentrant: bool = False,
        request: str | None = None,
    ) -> Grant:
        """Acquire a lock, waiting at most `wait_ms` in its queue.

        Repeating a call with its `request` gives the same token for as long as the grant lives.
        Raises InvalidInputError, LockHeldError, RefusedError, UnavailableError.
        """
        check_name(name)
        check_owner(owner)
        self.limits.check_ttl(ttl_ms)
        self.limits.check_wait(wait_ms)
        request = request or new_request()
        check_request(request)
        ask = codec.Ask(
            name=name, owner=owner, request=request, ttl_ms=ttl_ms, wait=wait_ms > 0,
            shared=shared, reentrant=reentrant,
        )  # fmt: skip
        attempt = Acquisition(self, ask, wait_ms, mode or self.mode)
        try:
            grant = await attempt.run()
        except LockHeldError:
            self.metrics.lock_grant("held")
            self.statistics.refused(name)
            raise
        except UnavailableError:
            self.metrics.lock_grant("unavailable")
            raise
        self.metrics.lock_grant("granted", grant.waited_ms / 1000)
        self.statistics.granted(name, grant.waited_ms)
        return grant

    async def renew(
        self, name: str, *, owner: str, token: Token, ttl_ms: int, mode: Mode | None = None
    ) -> Grant:
        """Extend a lock held by this token to `ttl_ms` from before this call.

        Raises LockLostError when it is not held any more, UnavailableError when that is unknown:
        the old deadline then still holds.
        """
        check_name(name)
        check_owner(owner)
        self.limits.check_ttl(ttl_ms)
        mode = mode or self.mode
        for _ in range(2):
            sent = self.clock.monotonic_ms()
            reply = await self.scripts.run(
                "renew", name, self.lineage.floor, owner, token.epoch, token.counter, ttl_ms
            )
            if reply[0] != b"ttl":
                break
            await self.announce_ttl(int(reply[1]), ttl_ms)
        if reply[0] == b"gone":
            self.metrics.lock_token_rejected()
            self.statistics.lost(name)
            raise LockLostError(name, f"not held by token {token.value} any more")
        if reply[0] != b"renewed":
            refusal = codec.refused(reply)
            self.met(refusal.cause, refusal.epoch)
            raise LineageError(refusal.cause, self.retry_after_ms(refusal.cause))
        if mode is Mode.STRICT:
            await self.confirm_epoch(int(reply[2]))
        self.statistics.renewed(name)
        return Grant(
            name=name, owner=owner, token=token, deadline_ms=sent + ttl_ms, ttl_ms=ttl_ms,
            request="", verified=mode is Mode.STRICT, entries=int(reply[1]),
        )  # fmt: skip

    async def release(
        self, name: str, *, owner: str, token: Token, request: str | None = None, whole: bool = True
    ) -> int | None:
        """Release a lock, or with `whole=False` one nested entry of it.

        Returns the entries left (0 when it is free now), None when this token did not hold it:
        released before, expired or taken away. Repeating is harmless.
        """
        check_name(name)
        check_owner(owner)
        request = request or (codec.WHOLE if whole else new_request())
        check_request(request)
        reply = await self.scripts.run(
            "release", name, self.lineage.floor, owner, token.epoch, token.counter, request,
            int(whole),
        )  # fmt: skip
        if reply[0] == b"gone":
            self.metrics.lock_token_rejected()
            return None
        if reply[0] == b"kept":
            return int(reply[1])
        self.statistics.released(name)
        return 0

    async def inspect(self, name: str) -> LockState:
        """Return holders, ages and waiters of one lock."""
        check_name(name)
        reply = await self.scripts.run("inspect", name, codec.NAMED_WAITERS)
        return codec.inspected(name, reply)

    async def list(self, cursor: int = 0, count: int = 100) -> tuple[list[LockState], int]:
        """Return some held locks and the cursor for more (0 at the end). Unordered."""
        count = min(max(count, 1), PAGE_MAX)
        prefix = self.scripts.keys.locks
        pattern = _literal(prefix) + "*"
        reply = await self._link.call("SCAN", cursor, "MATCH", pattern, "COUNT", count)
        names = [bytes(key).decode().removeprefix(prefix) for key in reply[1]]
        states = await asyncio.gather(*map(self.inspect, names))
        return [state for state in states if state.holders], int(reply[0])

    async def force(self, name: str, tokens: tuple[Token, ...]) -> bool:
        """Take the lock from the holders of `tokens`; False when they do not hold it any more.

        The next in the queue gets it at once. The old holder is not told: only guards that check
        tokens stop it, so this is an operator's last resort.
        """
        check_name(name)
        text = " ".join(f"{token.epoch}.{token.counter}" for token in tokens)
        reply = await self.scripts.run("force", name, self.lineage.floor, text)
        return bool(reply[0] == b"forced")

    def watch(self, name: str) -> AsyncIterator[LockState]:
        """Yield the lock now and after every change, until the iterator is closed.

        UnavailableError ends it when Redis does not answer.
        """
        check_name(name)
        return self._watches.follow(name, self.inspect)

    # --- what acquisitions need -------------------------------------------------------------------

    async def ask(self, ask: codec.Ask, sent_ms: int) -> codec.Answer:
        """One call of acquire.lua."""
        argv = ask.argv(
            self.lineage.floor, self._channel, self.limits.beat_ms, self.limits.waiters_max,
            self.clock.wall_ms(), sent_ms,
        )  # fmt: skip
        return codec.acquired(await self.scripts.run("acquire", ask.name, *argv))

    async def announce_ttl(self, epoch: int, ttl_ms: int) -> None:
        """Tell etcd, then Redis, that grants of this epoch may last this long.

        LineageError when etcd has another epoch in force: asking Redis again would not help.
        """
        record = await self.register.raise_ttl(epoch, ttl_ms)
        self.lineage.saw(record.epoch)
        if record.epoch != epoch:
            self.keeper.kick()
            raise LineageError("stale", RETRY_AFTER_MS["stale"])
        await self.scripts.run("raise", None, epoch, record.ttl_high_ms)

    async def confirm_replicas(self) -> None:
        """Wait until the configured number of replicas has the grant."""
        if not self._wait_replicas:
            return
        confirmed = await self._link.call("WAIT", self._wait_replicas, REPLICA_WAIT_MS)
        if int(confirmed) < self._wait_replicas:
            raise UnavailableError(
                f"redis: {confirmed} of {self._wait_replicas} replicas confirmed the grant"
            )

    async def confirm_epoch(self, epoch: int) -> None:
        """Make sure by a linearizable read that no newer epoch is known; LineageError if one is."""
        record = await self.register.current()
        self.lineage.saw(record.epoch)
        if record.epoch != epoch:  # check: strict
            self.keeper.kick()
            self.metrics.lock_grant("withdrawn")
            raise LineageError("unverified", RETRY_AFTER_MS["stale"])

    async def refresh(self, grant: Grant, mode: Mode) -> Grant | None:
        """Renew a grant whose time ran down while it was waited for; None when it is gone."""
        try:
            fresh = await self.renew(
                grant.name, owner=grant.owner, token=grant.token, ttl_ms=grant.ttl_ms, mode=mode
            )
        except LockLostError:
            return None
        return Grant(
            name=grant.name, owner=grant.owner, token=grant.token, deadline_ms=fresh.deadline_ms,
            ttl_ms=grant.ttl_ms, request=grant.request, verified=fresh.verified,
            shared=grant.shared, entries=grant.entries, waited_ms=grant.waited_ms,
        )  # fmt: skip

    def withdraw(self, ask: codec.Ask) -> None:
        """Leave the queue, or give back what was granted meanwhile, without waiting for it.

        Without a link, or when it breaks meanwhile, over the next one.
        """
        argv = (self.lineage.floor, ask.owner, ask.request, self._channel)
        self.scripts.post("cancel", ask.name, *argv, lost=lambda: self._owe(ask))

    def took_over(self, ask: codec.Ask) -> bool:
        """Begin a new attempt; True when it answers for what an earlier one may have left."""
        return self._owed.pop(ask.key, None) is not None

    def _owe(self, ask: codec.Ask) -> None:
        if under_way := self.attempts.get(ask.key):
            under_way[-1].in_redis = True  # its caller is back: that attempt answers for it
            return
        self._owed[ask.key] = ask
        if len(self._owed) > OWED_MAX:
            self._owed.popitem(last=False)

    def _pay(self) -> None:
        owed, self._owed = self._owed, OrderedDict()
        for ask in owed.values():
            self.withdraw(ask)

    def met(self, cause: str, epoch: int) -> None:
        """React to a refusal: look again at once, or for another server."""
        if cause != "stale":
            self.lineage.saw(epoch)
        if cause == "replica":
            self._link.leave("it became a replica")
        if self.lineage.state != cause:
            self.keeper.kick()

    def retry_after_ms(self, cause: str) -> int:
        """When a refused caller should come back."""
        return RETRY_AFTER_MS.get(cause, RETRY_AFTER_MS["lost"])

    def _told(self, payload: bytes) -> None:
        hand_off = codec.handed_off(payload)
        waiting = self.hand_offs.get(hand_off.request)
        if waiting is not None and not waiting.done():
            waiting.set_result(hand_off)

    def _wake_waiters(self) -> None:
        for waiting in self.hand_offs.values():
            if not waiting.done():
                waiting.set_result(None)


def _literal(text: str) -> str:
    """Escape what SCAN's pattern would interpret."""
    return "".join("\\" + char if char in "*?[]^\\" else char for char in text)
