"""Typed errors as gRPC statuses with details that a program can act on.

| raised                | status              | details                                   |
|-----------------------|---------------------|-------------------------------------------|
| InvalidInputError     | INVALID_ARGUMENT    | BadRequest naming the field               |
| RefusedError          | FAILED_PRECONDITION | PreconditionFailure naming the rule       |
| UnavailableError      | UNAVAILABLE         | RetryInfo                                 |
| AmbiguousError        | UNAVAILABLE         | RetryInfo; repeat with the same request_id |
| DeposedError          | ABORTED             | RetryInfo                                 |
| anything else         | INTERNAL            | no text of ours leaves the process        |

Every one carries google.rpc.ErrorInfo with domain `weir` and a reason in UPPER_SNAKE_CASE.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from controlplane.model.errors import (
    AmbiguousError,
    DeposedError,
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)

log = structlog.get_logger(__name__)

DOMAIN: Final = "weir"
_RETRY_MS: Final = 500


def _reason(error: Exception) -> str:
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()


def to_status(error: Exception) -> status_pb2.Status:
    """Return the google.rpc.Status of an error."""
    info = error_details_pb2.ErrorInfo(reason=_reason(error), domain=DOMAIN)
    details: list[Any] = [info]
    message = str(error)
    if isinstance(error, InvalidInputError):
        code = code_pb2.INVALID_ARGUMENT
        info.metadata["field"] = error.field
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    elif isinstance(error, RefusedError):
        code = code_pb2.FAILED_PRECONDITION
        info.metadata["rule"] = error.rule
        refusal = error_details_pb2.PreconditionFailure.Violation(
            type="SAFETY_RULE", subject=error.rule, description=message
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[refusal]))
    elif isinstance(error, UnavailableError | AmbiguousError):
        code = code_pb2.UNAVAILABLE
        details.append(_retry(getattr(error, "retry_after_ms", _RETRY_MS)))
    elif isinstance(error, DeposedError):
        code = code_pb2.ABORTED
        details.append(_retry(_RETRY_MS))
    elif isinstance(error, WeirError):
        code = code_pb2.UNKNOWN
    else:
        code, message = code_pb2.INTERNAL, "internal error; the server's log has the details"
    return make_status(code, message, details)


def make_status(code: int, message: str, details: Sequence[Any]) -> status_pb2.Status:
    """Return a google.rpc.Status with packed details."""
    packed = []
    for detail in details:
        wrapped = any_pb2.Any()
        wrapped.Pack(detail)
        packed.append(wrapped)
    return status_pb2.Status(code=code, message=message, details=packed)


def _retry(after_ms: int) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(after_ms)
    return info


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """End the call with the error's status and details."""
    await abort_with(context, to_status(error))


async def abort_with(context: grpc.aio.ServicerContext, message: status_pb2.Status) -> NoReturn:
    """End the call with a status and its details."""
    status = rpc_status.to_status(message)
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)
    raise AssertionError  # abort always raises


P = ParamSpec("P")
R = TypeVar("R")


def typed_errors(method: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """Answer typed errors of a unary servicer method (self, request, context) with their status."""

    @functools.wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(*args, **kwargs)
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: nothing may leave untyped
            await _answer(args[-1], error, method.__name__)

    return guarded


def typed_stream_errors(
    method: Callable[P, AsyncIterator[R]],
) -> Callable[P, AsyncIterator[R]]:
    """Answer typed errors of a streaming servicer method with their status."""

    @functools.wraps(method)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        try:
            async for item in method(*args, **kwargs):
                yield item
        except grpc.aio.AbortError:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: nothing may leave untyped
            await _answer(args[-1], error, method.__name__)

    return guarded


def first_of(error: BaseException) -> BaseException:
    """Return the first error in a group of a TaskGroup, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _answer(context: Any, error: Exception, method: str) -> NoReturn:
    found = first_of(error)
    if isinstance(found, WeirError | grpc.aio.AbortError):
        error = found
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, WeirError):
        log.error("internal_error", method=method, exc_info=error)
    await abort(context, error)
