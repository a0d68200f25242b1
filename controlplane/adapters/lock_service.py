"""LockService over gRPC: any replica grants, renews, releases and shows locks.

Idempotency. While a grant lives, its request id gets the same token from every replica (Redis
knows it). After that, the replica that saw the end refuses the id, so that a late copy of a request
cannot take a lock for nobody. Releases and forced releases answer a repetition as at first;
forced ones are remembered in etcd.
"""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final, Generic, TypeVar

import grpc
from google.protobuf import timestamp_pb2

from controlplane.adapters.lock_session import Attempt, LockSession
from controlplane.adapters.rpc_errors import typed_errors, typed_stream_errors
from controlplane.locks import codec
from controlplane.locks.audit import AuditLog, ForcedRelease
from controlplane.locks.grant import (
    Grant,
    Holder,
    LockState,
    Mode,
    check_name,
    check_owner,
)
from controlplane.locks.manager import LockManager
from controlplane.locks.statistics import NameStatistics
from controlplane.locks.token import Token
from controlplane.model.errors import InvalidInputError, RefusedError, UnavailableError
from controlplane.v1 import lock_pb2, lock_pb2_grpc

REMEMBERED_MAX: Final = 20_000
"""Requests remembered by a replica; the oldest is forgotten."""
SESSIONS_MAX: Final = 1_000
"""Open streams of a replica; the next one is told to come back."""
PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1_000
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")
V = TypeVar("V")


class _Remembered(OrderedDict[str, V], Generic[V]):
    """A dictionary that forgets its oldest entries."""

    def put(self, key: str, value: V) -> None:
        self[key] = value
        if len(self) > REMEMBERED_MAX:
            self.popitem(last=False)


class LockServiceServicer(lock_pb2_grpc.LockServiceServicer):
    """Serves one LockManager. `audit` keeps what operators took away."""

    def __init__(self, manager: LockManager, audit: AuditLog) -> None:
        self._manager = manager
        self._audit = audit
        self._requests: _Remembered[str] = _Remembered()
        """Request id by lock and token, of grants made here."""
        self._newest: _Remembered[Attempt | None] = _Remembered()
        """The newest attempt by request id; None for one that came outside of a session."""
        self._ended: _Remembered[bool] = _Remembered()
        self._released: _Remembered[lock_pb2.ReleaseResponse] = _Remembered()
        self._open: set[int] = set()
        """Numbers of the open streams, in the order they were opened."""
        self._numbers = itertools.count(1)

    @typed_errors
    async def Acquire(  # noqa: N802
        self, request: lock_pb2.AcquireRequest, context: grpc.aio.ServicerContext
    ) -> lock_pb2.LockGrant:
        """Acquire a lock."""
        del context
        return await self.acquire(request)

    async def acquire(
        self, request: lock_pb2.AcquireRequest, attempt: Attempt | None = None
    ) -> lock_pb2.LockGrant:
        """Acquire, however the request came."""
        manager = self._manager
        _check_request(request.request_id)
        check_name(request.name)
        check_owner(request.owner)
        mode = _mode(request.mode)
        manager.limits.check_ttl(request.ttl_ms)
        manager.limits.check_wait(request.wait_ms)
        if request.validate_only:
            return lock_pb2.LockGrant(name=request.name, owner=request.owner)
        if request.request_id in self._ended:
            raise RefusedError(
                "request_used", "the grant of this request_id has ended; use a new one"
            )
        newest = self._newest.get(request.request_id)
        if attempt and newest and self._went_on(attempt, newest):
            # read late, after a pause of this process: its caller left that stream for the newer
            # one, and holds the lock by that; a late withdrawal would free it
            raise UnavailableError("the request went on over a newer stream")
        self._newest.put(request.request_id, attempt)
        grant = await manager.acquire(
            request.name, owner=request.owner, ttl_ms=request.ttl_ms, wait_ms=request.wait_ms,
            mode=mode, shared=request.shared, reentrant=request.reentrant,
            request=request.request_id,
        )  # fmt: skip
        if attempt:
            attempt.granted = True
        self._requests.put(f"{grant.name} {grant.token}", request.request_id)
        return self._grant(grant)

    def _went_on(self, attempt: Attempt, newest: Attempt) -> bool:
        later = newest.session > attempt.session and newest.session in self._open
        return later and newest.granted

    def withdraw(self, attempt: Attempt) -> None:
        """Give back a grant whose caller went while the answer was on its way.

        Not when the request was repeated since, over another stream: the repetition got the same
        grant, and its caller holds it. Nor when that is forgotten: then its TTL ends it.
        """
        if self._newest.get(attempt.request) is attempt:
            self._manager.withdraw(
                codec.Ask(name=attempt.name, owner=attempt.owner, request=attempt.request, ttl_ms=0)
            )

    @typed_errors
    async def Renew(  # noqa: N802
        self, request: lock_pb2.RenewRequest, context: grpc.aio.ServicerContext
    ) -> lock_pb2.LockGrant:
        """Extend a lock."""
        del context
        return await self.renew(request)

    async def renew(self, request: lock_pb2.RenewRequest) -> lock_pb2.LockGrant:
        """Renew, however the request came."""
        _check_request(request.request_id)
        grant = await self._manager.renew(
            request.name, owner=request.owner, token=Token.of(request.token),
            ttl_ms=request.ttl_ms, mode=_mode(request.mode),
        )  # fmt: skip
        return self._grant(grant)

    @typed_errors
    async def Release(  # noqa: N802
        self, request: lock_pb2.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> lock_pb2.ReleaseResponse:
        """Give a lock back."""
        del context
        return await self.release(request)

    async def release(self, request: lock_pb2.ReleaseRequest) -> lock_pb2.ReleaseResponse:
        """Release, however the request came."""
        _check_request(request.request_id)
        before = self._released.get(request.request_id)
        if before is not None:
            return before
        token = Token.of(request.token)
        entries = await self._manager.release(
            request.name, owner=request.owner, token=token, request=request.request_id,
            whole=not request.one_entry,
        )  # fmt: skip
        answer = lock_pb2.ReleaseResponse(released=entries is not None, entries=entries or 0)
        self._released.put(request.request_id, answer)
        if not entries:
            ended = self._requests.pop(f"{request.name} {token}", None)
            if ended:
                self._ended.put(ended, True)
        return answer

    @typed_errors
    async def GetLock(  # noqa: N802
        self, request: lock_pb2.GetLockRequest, context: grpc.aio.ServicerContext
    ) -> lock_pb2.Lock:
        """Show one lock."""
        del context
        return self._lock(await self._manager.inspect(request.name))

    @typed_errors
    async def ListLocks(  # noqa: N802
        self, request: lock_pb2.ListLocksRequest, context: grpc.aio.ServicerContext
    ) -> lock_pb2.ListLocksResponse:
        """Show some of the locks that are held."""
        del context
        if not 0 <= request.page_size <= PAGE_MAX:
            raise InvalidInputError("page_size", f"{request.page_size} is not 0 to {PAGE_MAX}")
        if request.page_token and not request.page_token.isdecimal():
            raise InvalidInputError("page_token", "not from a previous answer")
        states, cursor = await self._manager.list(
            int(request.page_token or 0), request.page_size or PAGE_DEFAULT
        )
        return lock_pb2.ListLocksResponse(
            locks=map(self._lock, states), next_page_token=str(cursor) if cursor else ""
        )

    @typed_errors
    async def ForceRelease(  # noqa: N802
        self, request: lock_pb2.ForceReleaseRequest, context: grpc.aio.ServicerContext
    ) -> lock_pb2.ForceReleaseResponse:
        """Take a lock away, audited."""
        del context
        _check_request(request.request_id)
        if not request.reason.strip():
            raise InvalidInputError("reason", "say why; it is kept in the audit record")
        state = await self._manager.inspect(request.name)
        holders = [h for h in state.holders if request.token in {0, h.token.value}]
        if request.token and not holders:
            raise RefusedError("lock_changed", f"{request.name} is not held by {request.token}")
        if request.validate_only:
            return lock_pb2.ForceReleaseResponse(released=False, holders=map(_holder, holders))
        entry = await self._audit.open(
            ForcedRelease(
                request=request.request_id,
                name=request.name,
                reason=request.reason,
                operator=request.operator,
                at_ms=self._manager.clock.wall_ms(),
                owners=tuple(h.owner for h in holders),
                tokens=tuple(h.token.value for h in holders),
            )
        )
        if entry.name != request.name:
            raise InvalidInputError("request_id", f"was used for {entry.name} before")
        if entry.released is None:
            done = await self._manager.force(request.name, entry.pairs())
            entry = await self._audit.close(entry, released=done)
        return lock_pb2.ForceReleaseResponse(
            released=bool(entry.released), holders=[_audited(entry, i) for i in _indexes(entry)]
        )

    @typed_stream_errors
    async def WatchLock(  # noqa: N802
        self, request: lock_pb2.WatchLockRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[lock_pb2.Lock]:
        """Show a lock now and after every change."""
        del context
        async for state in self._manager.watch(request.name):
            yield self._lock(state)

    @typed_errors
    async def Session(  # noqa: N802
        self,
        requests: AsyncIterator[lock_pb2.SessionRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        """Serve many calls over one stream."""
        if len(self._open) >= SESSIONS_MAX:
            raise UnavailableError(f"locks: {SESSIONS_MAX} sessions are open already")
        number = next(self._numbers)
        self._open.add(number)
        try:
            await LockSession(self, context, number).run(requests)
        finally:
            self._open.discard(number)

    def _grant(self, grant: Grant) -> lock_pb2.LockGrant:
        return lock_pb2.LockGrant(
            name=grant.name, owner=grant.owner, token=grant.token.value, epoch=grant.token.epoch,
            counter=grant.token.counter, verified=grant.verified, shared=grant.shared,
            expires_in_ms=max(0, grant.deadline_ms - self._manager.clock.monotonic_ms()),
            entries=grant.entries, waited_ms=grant.waited_ms,
        )  # fmt: skip

    def _lock(self, state: LockState) -> lock_pb2.Lock:
        return lock_pb2.Lock(
            name=state.name, shared=state.shared, holders=map(_holder, state.holders),
            waiters=state.waiters, statistics=_counts(self._manager.statistics.of(state.name)),
            first_waiters=[
                lock_pb2.LockWaiter(
                    owner=w.owner, shared=w.shared, waiting_ms=w.waiting_ms, alive=w.alive
                )
                for w in state.first_waiters
            ],
        )  # fmt: skip


def _holder(holder: Holder) -> lock_pb2.LockHolder:
    since = timestamp_pb2.Timestamp()
    since.FromMilliseconds(holder.since_ms)
    return lock_pb2.LockHolder(
        owner=holder.owner, token=holder.token.value, expires_in_ms=holder.expires_in_ms,
        since=since, age_ms=holder.age_ms, entries=holder.entries,
    )  # fmt: skip


def _counts(counts: NameStatistics) -> lock_pb2.LockStatistics:
    return lock_pb2.LockStatistics(
        granted=counts.granted, refused=counts.refused, renewed=counts.renewed,
        released=counts.released, lost=counts.lost, waited_ms=counts.waited_ms,
        waited_ms_max=counts.waited_ms_max,
    )  # fmt: skip


def _indexes(entry: ForcedRelease) -> range:
    return range(len(entry.tokens))


def _audited(entry: ForcedRelease, index: int) -> lock_pb2.LockHolder:
    return lock_pb2.LockHolder(owner=entry.owners[index], token=entry.tokens[index])


def _check_request(request_id: str) -> None:
    if _UUID.fullmatch(request_id) is None:
        raise InvalidInputError("request_id", "a UUID is required; repeat it with the same request")


def _mode(text: str) -> Mode | None:
    if not text:
        return None
    try:
        return Mode(text)
    except ValueError:
        raise InvalidInputError("mode", "strict or lineage, or empty") from None
