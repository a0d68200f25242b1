"""Clients of LockService: `LockClient` for asyncio, `SyncLockClient` for everything else.

Both turn the service's answers into the values and errors of `controlplane.locks`, so that code
written for a LockManager works over the network (`hold`, `hold_all`). A call that no replica
answered is tried at the next one with the same request id: a lost reply is not a lost lock. The
replica that answered is asked first from then on. The deadline of a grant counts from before the
call; a grant whose time ran down in the queue is renewed before it is returned.

LockClient's calls share one stream to a replica (`lock_stream`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import grpc

from controlplane.adapters.lock_client_sync import SyncHeld, SyncLockClient
from controlplane.adapters.lock_stream import LockStream
from controlplane.adapters.lock_wire import (
    CALL_TIMEOUT_MS,
    acquire_request,
    error_of,
    grant_of,
    release_request,
    renew_request,
    renew_timeout_ms,
)
from controlplane.clock import Clock, SystemClock
from controlplane.locks.grant import Grant, Mode
from controlplane.locks.token import Token
from controlplane.model.errors import UnavailableError
from controlplane.v1 import lock_pb2

__all__ = ["LockClient", "SyncHeld", "SyncLockClient", "error_of"]


class LockClient:
    """asyncio. `channels` are open grpc.aio channels to replicas, tried in turn.

    Usable as an async context manager; closing a channel ends its stream too.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel], *, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._links = [LockStream(channel) for channel in channels]
        self._at = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the streams; the channels stay open. What is held stays held until its TTL."""
        for link in self._links:
            await link.aclose()

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
        """Acquire; meaning and errors of LockManager.acquire. `request` is a UUID."""
        ask = acquire_request(name, {
            "owner": owner, "ttl_ms": ttl_ms, "wait_ms": wait_ms, "mode": mode, "shared": shared,
            "reentrant": reentrant, "request": request,
        })  # fmt: skip
        answer, sent = await self._call("acquire", ask, name, CALL_TIMEOUT_MS + wait_ms)
        grant = grant_of(answer, ask, sent)
        if grant.waited_ms <= ttl_ms // 2:
            return grant
        try:
            fresh = await self.renew(name, owner=owner, token=grant.token, ttl_ms=ttl_ms, mode=mode)
        except BaseException:  # also when cancelled: the caller never had it
            give_back = release_request(name, owner, grant.token, None, whole=not reentrant)
            self._links[self._at].tell("release", give_back)
            raise
        return replace(grant, deadline_ms=fresh.deadline_ms, verified=fresh.verified)

    async def renew(
        self, name: str, *, owner: str, token: Token, ttl_ms: int, mode: Mode | None = None
    ) -> Grant:
        """Renew; LockLostError when the token does not hold the lock any more."""
        ask = renew_request(name, owner, token, ttl_ms, mode)
        answer, sent = await self._call("renew", ask, name, renew_timeout_ms(ttl_ms))
        return grant_of(answer, ask, sent)

    async def release(
        self, name: str, *, owner: str, token: Token, request: str | None = None, whole: bool = True
    ) -> int | None:
        """Release; the entries left, None when the token did not hold the lock."""
        ask = release_request(name, owner, token, request, whole=whole)
        answer, _ = await self._call("release", ask, name, CALL_TIMEOUT_MS)
        return answer.entries if answer.released else None

    async def get(self, name: str) -> lock_pb2.Lock:
        """Holders, waiters and statistics of a lock."""
        ask = lock_pb2.GetLockRequest(name=name)
        answer, _ = await self._call("GetLock", ask, name, CALL_TIMEOUT_MS)
        found: lock_pb2.Lock = answer
        return found

    async def _call(self, kind: str, ask: Any, name: str, timeout_ms: int) -> tuple[Any, int]:
        last, count, first = UnavailableError("no replica was named"), len(self._links), self._at
        for turn in range(count):
            at = (first + turn) % count
            link, sent = self._links[at], self.clock.monotonic_ms()
            try:
                if kind == "GetLock":
                    answer = await link.single(kind, ask, timeout_ms, name)
                else:
                    answer = await link.ask(kind, ask, timeout_ms, name)
            except UnavailableError as error:
                last = error
                continue
            self._at = at
            return answer, sent
        raise last
