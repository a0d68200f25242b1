"""Bytes that are no message are the caller's mistake: INVALID_ARGUMENT, like any other.

gRPC parses a request before its handler is called, and answers UNKNOWN by itself when that fails;
in a stream the parser's error comes out of the handler, as INTERNAL. Here a single request that
cannot be parsed reaches the handler's place as `_Malformed`, and one of a stream is raised there as
InvalidInputError.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from controlplane.adapters.handlers import Inner, Wrapping, answers_of, rewrapped
from controlplane.adapters.rpc_errors import abort, first_of
from controlplane.model.errors import InvalidInputError

_FIELD = "request"
_REASON = "its bytes are no message of this method"


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request that could not be parsed."""


class WellFormed(Wrapping):
    """Answers requests that cannot be parsed."""

    def wrapped(self, handler: Any, method: str) -> Any:
        """Let requests that cannot be parsed reach the handler's place."""
        del method
        if handler.request_deserializer is None:
            return handler
        return rewrapped(
            handler,
            single=_single,
            streaming=_streaming,
            request_deserializer=_tolerant(handler.request_deserializer, handler.request_streaming),
        )


def _tolerant(parse: Callable[[bytes], Any], streaming: bool) -> Callable[[bytes], Any]:
    def tolerant(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError as error:
            if streaming:
                raise InvalidInputError(_FIELD, _REASON) from error
            return _Malformed()

    return tolerant


async def _single(inner: Inner, request: Any, context: Any) -> Any:
    if isinstance(request, _Malformed):
        await abort(context, InvalidInputError(_FIELD, _REASON))
    return await inner(request, context)


async def _streaming(inner: Inner, request: Any, context: Any) -> AsyncIterator[Any]:
    if isinstance(request, _Malformed):
        await abort(context, InvalidInputError(_FIELD, _REASON))
    try:
        async for answer in answers_of(inner, request, context):
            yield answer
    except Exception as error:
        found = first_of(error)
        if not isinstance(found, InvalidInputError):
            raise
        await abort(context, found)
