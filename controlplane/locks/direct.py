"""Locks straight from Redis for synchronous programs: lineage mode only, one call per grant.

For workers that hold thousands of short locks a second and stand beside Redis. With no etcd it
cannot grant in strict mode, cannot put a new epoch in force (a replica of the control plane does),
and cannot announce TTLs above the usual one. Programs that want those use `SyncLockClient`.

An instance may be shared by threads. It remembers the highest epoch it has seen.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from controlplane.adapters.redis import RedisReplyError
from controlplane.adapters.redis_address import RedisAddress
from controlplane.adapters.redis_sync import BlockingRedis, PooledRedis
from controlplane.clock import Clock, SystemClock
from controlplane.locks import codec
from controlplane.locks.errors import LineageError, LockHeldError, LockLostError
from controlplane.locks.grant import Grant, Limits, check_name, check_owner, new_request
from controlplane.locks.scripts import load
from controlplane.locks.token import Token
from controlplane.model.errors import InvalidInputError, RefusedError, UnavailableError, WeirError

PAUSE_MS: Final = 100
"""Pause of a waiter while no grant can be made; it waits on its own connection."""
OWED_MAX: Final = 1_000
"""Withdrawals kept while Redis is away. The oldest is forgotten: its time ends what it left."""


class DirectLocks:
    """Acquire, renew, release in lineage mode, blocking."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        prefix: str,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self.limits = limits or Limits()
        self._keys = codec.Keys(prefix)
        self._pool = PooledRedis(address, channel_prefix=self._keys.channel(""))
        self._scripts = load()
        self._floor = 0
        self._owed: deque[tuple[codec.Ask, str]] = deque(maxlen=OWED_MAX)
        """Given up with its connection: the request, and the channel that asked for it."""

    def close(self) -> None:
        """Close idle connections; what is held stays held until its TTL."""
        self._pool.close()

    def acquire(
        self,
        name: str,
        *,
        owner: str,
        ttl_ms: int,
        wait_ms: int = 0,
        shared: bool = False,
        reentrant: bool = False,
        request: str | None = None,
    ) -> Grant:
        """Acquire; same meaning and errors as LockManager.acquire in lineage mode."""
        check_name(name)
        check_owner(owner)
        self.limits.check_ttl(ttl_ms)
        self.limits.check_wait(wait_ms)
        ask = codec.Ask(
            name=name, owner=owner, request=request or new_request(), ttl_ms=ttl_ms,
            wait=wait_ms > 0, shared=shared, reentrant=reentrant,
        )  # fmt: skip
        try:
            with self._pool.lend() as link:
                if self._owed:
                    self._pay(link)
                return self._acquire(link, ask, wait_ms)
        except UnavailableError as error:
            if self._owed and not isinstance(error.__cause__, TimeoutError):
                with suppress(UnavailableError), self._pool.lend() as link:
                    self._pay(link)  # a Redis that hangs is not waited for a second time
            raise

    def renew(self, grant: Grant, ttl_ms: int | None = None) -> Grant:
        """Extend a grant; LockLostError when it is gone, UnavailableError when that is unknown."""
        ttl_ms = ttl_ms or grant.ttl_ms
        self.limits.check_ttl(ttl_ms)
        with self._pool.lend() as link:
            if self._owed:
                self._pay(link)
            return self._renew(link, grant, ttl_ms)

    def release(self, grant: Grant, *, whole: bool = True) -> int | None:
        """Release; returns the entries left, None when the token did not hold it any more."""
        token = grant.token
        with self._pool.lend() as link:
            if self._owed:
                self._pay(link)
            reply = self._run(
                link, "release", grant.name, self._floor, grant.owner, token.epoch, token.counter,
                codec.WHOLE if whole else new_request(), int(whole),
            )  # fmt: skip
        if reply[0] == b"gone":
            return None
        return int(reply[1]) if reply[0] == b"kept" else 0

    @contextmanager
    def hold(
        self, name: str, *, ttl_ms: int, owner: str = "", wait_ms: int = 0, shared: bool = False
    ) -> Iterator[Grant]:
        """Hold for the body, without renewal: the TTL has to cover it."""
        grant = self.acquire(
            name, owner=owner or uuid.uuid4().hex, ttl_ms=ttl_ms, wait_ms=wait_ms, shared=shared
        )
        try:
            yield grant
        finally:
            self.release(grant)

    def _pay(self, link: BlockingRedis) -> None:
        """Give back what callers gave up."""
        while self._owed:
            owed = self._owed.popleft()
            try:
                self._withdraw(link, *owed)
            except BaseException:
                self._owed.append(owed)
                raise

    # --- one acquisition --------------------------------------------------------------------------

    def _acquire(self, link: BlockingRedis, ask: codec.Ask, wait_ms: int) -> Grant:
        started = self.clock.monotonic_ms()
        until = started + wait_ms
        in_redis = False
        try:
            while True:
                sent = self.clock.monotonic_ms()
                argv = ask.argv(
                    self._floor, link.channel, self.limits.beat_ms, self.limits.waiters_max,
                    self.clock.wall_ms(), sent,
                )  # fmt: skip
                maybe, in_redis = in_redis, True  # if its reply is lost, it may be
                answer = codec.acquired(self._run(link, "acquire", ask.name, *argv))
                in_redis = maybe
                grant: Grant | None = None
                if isinstance(answer, codec.Granted):
                    in_redis = False  # ours
                    self._floor = max(self._floor, answer.fence_epoch)
                    return self._grant(
                        ask, answer.token, sent + answer.left_ms, answer.entries, started
                    )
                if isinstance(answer, codec.Queued):
                    in_redis = True
                    grant = self._wait(link, ask, answer, until, started)
                elif isinstance(answer, codec.Busy):
                    raise LockHeldError(  # noqa: TRY301 - what it holds is given back below
                        ask.name, left_ms=answer.left_ms, waiters=answer.waiters, owner=answer.owner
                    )
                else:
                    self._sit_out(link, answer, until)
                if grant is not None:
                    in_redis = False
                    return grant
        except BaseException as error:
            answered = isinstance(error, WeirError) and not isinstance(error, UnavailableError)
            if in_redis and answered:
                self._withdraw(link, ask, link.channel)
            elif in_redis:  # this connection is given up, also when the caller is interrupted
                self._owed.append((ask, link.channel))
            raise

    def _withdraw(self, link: BlockingRedis, ask: codec.Ask, channel: str) -> None:
        self._run(link, "cancel", ask.name, self._floor, ask.owner, ask.request, channel)

    def _wait(
        self, link: BlockingRedis, ask: codec.Ask, queued: codec.Queued, until: int, started: int
    ) -> Grant | None:
        left = until - self.clock.monotonic_ms()
        if left <= 0:
            raise LockHeldError(ask.name, left_ms=queued.left_ms, waiters=queued.waiters)
        pause = min(left, self.limits.beat_ms)
        if not queued.ahead and queued.left_ms >= 0:
            pause = min(pause, queued.left_ms + 1)
        payload = link.wait_push(pause)
        while payload is not None:
            told = codec.handed_off(payload)
            if told.request == ask.request:
                self._floor = max(self._floor, told.token.epoch)
                grant = self._grant(ask, told.token, told.deadline_ms, 1, started)
                if grant.deadline_ms - self.clock.monotonic_ms() >= ask.ttl_ms // 2:
                    return grant
                with suppress(LockLostError):  # told too late: ask again
                    return self._renew(link, grant, ask.ttl_ms)
            payload = link.pushed.popleft() if link.pushed else None
        return None

    def _sit_out(self, link: BlockingRedis, refusal: codec.Refusal, until: int) -> None:
        cause = refusal.cause
        if cause == "ttl":
            raise InvalidInputError(
                "ttl_ms", f"over {refusal.high_ms}, the longest announced; use the lock service"
            )
        if cause in {"upgrade", "nested"}:
            raise RefusedError(f"lock_{cause}", "release what this owner holds first")
        error = LineageError(cause, PAUSE_MS)
        if cause == "replica":
            raise error  # this connection is of no use; the next call finds the primary
        if cause == "full":
            raise UnavailableError("too many wait already", PAUSE_MS)
        left = until - self.clock.monotonic_ms()
        if left <= 0:
            raise error
        link.wait_push(min(left, PAUSE_MS))

    def _grant(
        self, ask: codec.Ask, token: Token, deadline_ms: int, entries: int, started: int
    ) -> Grant:
        return Grant(
            name=ask.name, owner=ask.owner, token=token, deadline_ms=deadline_ms,
            ttl_ms=ask.ttl_ms, request=ask.request, shared=ask.shared, entries=entries,
            waited_ms=self.clock.monotonic_ms() - started,
        )  # fmt: skip

    def _renew(self, link: BlockingRedis, grant: Grant, ttl_ms: int) -> Grant:
        token = grant.token
        sent = self.clock.monotonic_ms()
        reply = self._run(
            link, "renew", grant.name, self._floor, grant.owner, token.epoch, token.counter, ttl_ms
        )
        if reply[0] == b"renewed":
            return replace(grant, deadline_ms=sent + ttl_ms, ttl_ms=ttl_ms, entries=int(reply[1]))
        if reply[0] == b"gone":
            raise LockLostError(grant.name, f"not held by token {token.value} any more")
        raise LineageError(codec.refused(reply).cause, PAUSE_MS)

    def _run(self, link: BlockingRedis, script: str, name: str, *argv: str | int) -> Any:
        found, keys = self._scripts[script], self._keys.of(name)
        try:
            return link.call("EVALSHA", found.sha, len(keys), *keys, *argv)
        except RedisReplyError as error:
            if error.code != "NOSCRIPT":
                raise UnavailableError(f"redis: {error}") from error
        try:
            return link.call("EVAL", found.source, len(keys), *keys, *argv)
        except RedisReplyError as error:
            raise UnavailableError(f"redis: {error}") from error
