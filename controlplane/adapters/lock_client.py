"""Clients of LockService: `LockClient` for asyncio, `SyncLockClient` for everything else.

Both turn the service's answers into the values and errors of `controlplane.locks`, so that code
written for a LockManager works over the network (`hold`, `hold_all`). A call that no replica
answered is tried at the next one with the same request id: a lost reply is not a lost lock. The
deadline of a grant counts from before the call; a grant whose time ran down in the queue is renewed
before it is returned.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from controlplane.clock import Clock, SystemClock
from controlplane.locks.errors import LockHeldError, LockLostError
from controlplane.locks.grant import Grant, Mode
from controlplane.locks.token import Token
from controlplane.model.errors import (
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)
from controlplane.v1 import lock_pb2, lock_pb2_grpc

CALL_TIMEOUT_MS: Final = 3_000
"""Deadline of a call, beyond the wait that it asks for."""
OPTIONS: Final = (("grpc.enable_http_proxy", 0),)
_ELSEWHERE: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def error_of(error: grpc.RpcError, name: str) -> WeirError:
    """Return our error for a failed call."""
    call: Any = error
    reason, rule, field, retry_ms = "", "", "", 500
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, rule = info.reason, info.metadata.get("rule", "")
            field = info.metadata.get("field", "")
        elif detail.Unpack(retry):
            retry_ms = retry.retry_delay.ToMilliseconds()
    text = call.details() or str(call.code())
    code = call.code()
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidInputError(field or "request", text)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        if rule == "lock_lost":
            return LockLostError(name, text)
        if rule == "lock_held":
            return _HeldError(name, text)
        return RefusedError(rule or reason or "refused", text)
    if code in _ELSEWHERE:
        return UnavailableError(text, retry_ms)
    return WeirError(text)


class _HeldError(LockHeldError):
    """As the server said it."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, left_ms=0, waiters=0)
        self.args = (text,)


def _acquire_request(name: str, fields: dict[str, Any]) -> lock_pb2.AcquireRequest:
    mode = fields.pop("mode")
    request = fields.pop("request") or str(uuid.uuid4())
    return lock_pb2.AcquireRequest(name=name, request_id=request, mode=mode or "", **fields)


def _grant(answer: lock_pb2.LockGrant, request: Any, sent_ms: int) -> Grant:
    return Grant(
        name=answer.name, owner=answer.owner, token=Token(answer.epoch, answer.counter),
        deadline_ms=sent_ms + answer.expires_in_ms, ttl_ms=request.ttl_ms,
        request=request.request_id, verified=answer.verified, shared=answer.shared,
        entries=answer.entries, waited_ms=answer.waited_ms,
    )  # fmt: skip


def _renew_request(
    name: str, owner: str, token: Token, ttl_ms: int, mode: Mode | None
) -> lock_pb2.RenewRequest:
    return lock_pb2.RenewRequest(
        name=name, owner=owner, token=token.value, ttl_ms=ttl_ms, mode=mode or "",
        request_id=str(uuid.uuid4()),
    )  # fmt: skip


def _release_request(
    name: str, owner: str, token: Token, request: str | None, *, whole: bool
) -> lock_pb2.ReleaseRequest:
    return lock_pb2.ReleaseRequest(
        name=name, owner=owner, token=token.value, one_entry=not whole,
        request_id=request or str(uuid.uuid4()),
    )  # fmt: skip


class LockClient:
    """asyncio. `channels` are open grpc.aio channels to replicas, tried in turn."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], *, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._stubs: list[Any] = [lock_pb2_grpc.LockServiceStub(channel) for channel in channels]

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
        ask = _acquire_request(name, {
            "owner": owner, "ttl_ms": ttl_ms, "wait_ms": wait_ms, "mode": mode, "shared": shared,
            "reentrant": reentrant, "request": request,
        })  # fmt: skip
        answer, sent = await self._call("Acquire", ask, name, CALL_TIMEOUT_MS + wait_ms)
        grant = _grant(answer, ask, sent)
        if grant.waited_ms <= ttl_ms // 2:
            return grant
        fresh = await self.renew(name, owner=owner, token=grant.token, ttl_ms=ttl_ms, mode=mode)
        return replace(grant, deadline_ms=fresh.deadline_ms, verified=fresh.verified)

    async def renew(
        self, name: str, *, owner: str, token: Token, ttl_ms: int, mode: Mode | None = None
    ) -> Grant:
        """Renew; LockLostError when the token does not hold the lock any more."""
        ask = _renew_request(name, owner, token, ttl_ms, mode)
        answer, sent = await self._call("Renew", ask, name, CALL_TIMEOUT_MS)
        return _grant(answer, ask, sent)

    async def release(
        self, name: str, *, owner: str, token: Token, request: str | None = None, whole: bool = True
    ) -> int | None:
        """Release; the entries left, None when the token did not hold the lock."""
        ask = _release_request(name, owner, token, request, whole=whole)
        answer, _ = await self._call("Release", ask, name, CALL_TIMEOUT_MS)
        return answer.entries if answer.released else None

    async def get(self, name: str) -> lock_pb2.Lock:
        """Holders, waiters and statistics of a lock."""
        answer, _ = await self._call(
            "GetLock", lock_pb2.GetLockRequest(name=name), name, CALL_TIMEOUT_MS
        )
        found: lock_pb2.Lock = answer
        return found

    async def _call(self, method: str, ask: Any, name: str, timeout_ms: int) -> tuple[Any, int]:
        last: grpc.RpcError | None = None
        for stub in self._stubs:
            sent = self.clock.monotonic_ms()
            try:
                return await getattr(stub, method)(ask, timeout=timeout_ms / 1000), sent
            except grpc.RpcError as error:
                last = error
                if _code(error) not in _ELSEWHERE:
                    break
        if last is None:
            raise UnavailableError("no replica was named")
        raise error_of(last, name) from last


class SyncLockClient:
    """Blocking, safe across threads. `channels` are open grpc channels to replicas."""

    def __init__(self, channels: Sequence[grpc.Channel], *, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._stubs: list[Any] = [lock_pb2_grpc.LockServiceStub(channel) for channel in channels]

    def acquire(
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
        ask = _acquire_request(name, {
            "owner": owner, "ttl_ms": ttl_ms, "wait_ms": wait_ms, "mode": mode, "shared": shared,
            "reentrant": reentrant, "request": request,
        })  # fmt: skip
        answer, sent = self._call("Acquire", ask, name, CALL_TIMEOUT_MS + wait_ms)
        grant = _grant(answer, ask, sent)
        if grant.waited_ms <= ttl_ms // 2:
            return grant
        return self.renew(grant, mode=mode)

    def renew(self, grant: Grant, *, ttl_ms: int | None = None, mode: Mode | None = None) -> Grant:
        """Renew; LockLostError when the token does not hold the lock any more."""
        ask = _renew_request(grant.name, grant.owner, grant.token, ttl_ms or grant.ttl_ms, mode)
        answer, sent = self._call("Renew", ask, grant.name, CALL_TIMEOUT_MS)
        fresh = _grant(answer, ask, sent)
        return replace(
            grant, deadline_ms=fresh.deadline_ms, ttl_ms=ask.ttl_ms, verified=fresh.verified
        )

    def release(self, grant: Grant, *, whole: bool = True) -> int | None:
        """Release; the entries left, None when the token did not hold the lock."""
        ask = _release_request(grant.name, grant.owner, grant.token, None, whole=whole)
        answer, _ = self._call("Release", ask, grant.name, CALL_TIMEOUT_MS)
        return answer.entries if answer.released else None

    @contextmanager
    def hold(
        self,
        name: str,
        *,
        ttl_ms: int,
        owner: str = "",
        wait_ms: int = 0,
        mode: Mode | None = None,
        shared: bool = False,
        on_lost: Callable[[LockLostError], None] | None = None,
    ) -> Iterator[SyncHeld]:
        """Hold for the body, renewed by a thread.

        A thread cannot be cancelled: call `check()` before each effect, or be told by `on_lost`
        (on the renewing thread) a tenth of the TTL before the time is over.
        """
        grant = self.acquire(
            name, owner=owner or str(uuid.uuid4()), ttl_ms=ttl_ms, wait_ms=wait_ms, mode=mode,
            shared=shared,
        )  # fmt: skip
        held = SyncHeld(self, grant, mode, on_lost)
        held.start()
        try:
            yield held
        finally:
            held.stop()
            try:
                self.release(held.grant)
            except WeirError:
                held.lost.set()  # the TTL frees it

    def _call(self, method: str, ask: Any, name: str, timeout_ms: int) -> tuple[Any, int]:
        last: grpc.RpcError | None = None
        for stub in self._stubs:
            sent = self.clock.monotonic_ms()
            try:
                return getattr(stub, method)(ask, timeout=timeout_ms / 1000), sent
            except grpc.RpcError as error:
                last = error
                if _code(error) not in _ELSEWHERE:
                    break
        if last is None:
            raise UnavailableError("no replica was named")
        raise error_of(last, name) from last


class SyncHeld:
    """A lock in the hand of a thread."""

    def __init__(
        self,
        client: SyncLockClient,
        grant: Grant,
        mode: Mode | None,
        on_lost: Callable[[LockLostError], None] | None,
    ) -> None:
        self._client = client
        self._mode = mode
        self._on_lost = on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lock-{grant.name}", daemon=True)
        self.grant = grant
        self.lost = threading.Event()
        """Set when one may not act any more."""

    @property
    def token(self) -> int:
        """The fencing token to present to guards."""
        return self.grant.token.value

    def remaining_ms(self) -> int:
        """How long one may still act."""
        margin = self.grant.ttl_ms // 10
        return max(0, self.grant.deadline_ms - margin - self._client.clock.monotonic_ms())

    def check(self) -> None:
        """Raise LockLostError when one may not act any more."""
        if self.lost.is_set() or not self.remaining_ms():
            self.lost.set()
            raise LockLostError(self.grant.name, "its time is over")

    def start(self) -> None:
        """Begin renewing."""
        self._thread.start()

    def stop(self) -> None:
        """End renewing."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        why = "it could not be renewed in time"
        while not self._stop.wait(self._pause_s()):
            if not self.remaining_ms():
                break
            try:
                self.grant = self._client.renew(self.grant, mode=self._mode)
            except UnavailableError as error:
                why = f"it could not be renewed in time: {error}"
            except WeirError as error:
                why = str(error)
                break
        if not self._stop.is_set():
            self.lost.set()
            if self._on_lost:
                self._on_lost(LockLostError(self.grant.name, why))

    def _pause_s(self) -> float:
        left = self.grant.deadline_ms - self._client.clock.monotonic_ms()
        due = left - self.grant.ttl_ms * 2 // 3
        return max(min(due, self.remaining_ms()), min(50, self.grant.ttl_ms // 10)) / 1000


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    call: Any = error
    code: grpc.StatusCode = call.code()
    return code
