"""What the lock clients send and read: requests, grants, and errors in our own words."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from controlplane.locks.errors import LockHeldError, LockLostError
from controlplane.locks.grant import Grant, Mode, new_request
from controlplane.locks.token import Token
from controlplane.model.errors import (
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)
from controlplane.v1 import lock_pb2

CALL_TIMEOUT_MS: Final = 3_000
"""Deadline of a call, beyond the wait that it asks for."""
RENEW_TIMEOUT_MIN_MS: Final = 200
RETRY_MS: Final = 500
"""When to come back, where the server does not say."""
_ELSEWHERE: Final = {
    code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED, code_pb2.RESOURCE_EXHAUSTED,
}  # fmt: skip


def renew_timeout_ms(ttl_ms: int) -> int:
    """Deadline of a renewal: a replica that hangs must leave time to ask another one."""
    return max(RENEW_TIMEOUT_MIN_MS, min(CALL_TIMEOUT_MS, ttl_ms // 4))


def error_of(error: grpc.RpcError, name: str) -> WeirError:
    """Return our error for a call that failed."""
    call: Any = error
    status = rpc_status.from_call(call)
    if status is None:
        code = call.code().value[0]
        status = status_pb2.Status(code=code, message=call.details() or str(call.code()))
    return error_of_status(status, name)


def error_of_status(status: status_pb2.Status, name: str) -> WeirError:
    """Return our error for a status."""
    reason, rule, field, retry_ms = "", "", "", RETRY_MS
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, rule = info.reason, info.metadata.get("rule", "")
            field = info.metadata.get("field", "")
        elif detail.Unpack(retry):
            retry_ms = retry.retry_delay.ToMilliseconds()
    text, code = status.message, status.code
    if code == code_pb2.INVALID_ARGUMENT:
        return InvalidInputError(field or "request", text)
    if code == code_pb2.FAILED_PRECONDITION:
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


def acquire_request(name: str, fields: dict[str, Any]) -> lock_pb2.AcquireRequest:
    """Build a request to acquire; without `request` it gets an id of its own."""
    mode = fields.pop("mode")
    request = fields.pop("request") or new_request()
    return lock_pb2.AcquireRequest(name=name, request_id=request, mode=mode or "", **fields)


def grant_of(answer: lock_pb2.LockGrant, request: Any, sent_ms: int) -> Grant:
    """Return the grant as its holder sees it: `sent_ms` is its clock before the request left."""
    return Grant(
        name=answer.name, owner=answer.owner, token=Token(answer.epoch, answer.counter),
        deadline_ms=sent_ms + answer.expires_in_ms, ttl_ms=request.ttl_ms,
        request=request.request_id, verified=answer.verified, shared=answer.shared,
        entries=answer.entries, waited_ms=answer.waited_ms,
    )  # fmt: skip


def renew_request(
    name: str, owner: str, token: Token, ttl_ms: int, mode: Mode | None
) -> lock_pb2.RenewRequest:
    """Build a request to renew."""
    return lock_pb2.RenewRequest(
        name=name, owner=owner, token=token.value, ttl_ms=ttl_ms, mode=mode or "",
        request_id=new_request(),
    )  # fmt: skip


def release_request(
    name: str, owner: str, token: Token, request: str | None, *, whole: bool
) -> lock_pb2.ReleaseRequest:
    """Build a request to release."""
    return lock_pb2.ReleaseRequest(
        name=name, owner=owner, token=token.value, one_entry=not whole,
        request_id=request or new_request(),
    )  # fmt: skip
