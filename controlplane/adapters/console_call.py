"""AdminService called from HTTP: the same methods, the same checks, the same errors as over gRPC.

A servicer method ends with a message, or it aborts its context with a google.rpc.Status. Here the
context keeps that status, and it becomes an HTTP status with the same words and details.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
from aiohttp import web
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from controlplane.adapters.jsonview import to_json

HTTP_STATUS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.UNAVAILABLE: 503,
}
"""Everything else is 500."""
_DETAILS: Final = "grpc-status-details-bin"


class _Context:
    """As much of a ServicerContext as a unary method of AdminService uses."""

    def __init__(self) -> None:
        self.code = grpc.StatusCode.OK
        self.message = ""
        self.details = status_pb2.Status()

    def set_trailing_metadata(self, metadata: Sequence[tuple[str, Any]]) -> None:
        """Keep the typed details."""
        for key, value in metadata:
            if key == _DETAILS:
                self.details = status_pb2.Status.FromString(value)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> None:
        """End the call."""
        self.code, self.message = code, details
        raise grpc.aio.AbortError

    def auth_context(self) -> dict[str, list[bytes]]:
        """Return no certificate: HTTP knows no identity."""
        return {}


async def call(method: Callable[[Any, Any], Awaitable[Message]], request: Message) -> web.Response:
    """Call a unary method and return its answer, or its error, as JSON."""
    context = _Context()
    try:
        answer = await method(request, context)
    except grpc.aio.AbortError:
        return _error(context)
    return web.json_response(to_json(answer))


def refuse(status: int, reason: str, message: str) -> web.Response:
    """Return an error of the HTTP edge itself in the same shape."""
    return web.json_response(
        {"error": {"code": reason, "message": message, "rule": "", "field": ""}}, status=status
    )


def _error(context: _Context) -> web.Response:
    info = error_details_pb2.ErrorInfo()
    for detail in context.details.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
    return web.json_response(
        {
            "error": {
                "code": context.code.name,
                "message": context.message,
                "rule": info.metadata.get("rule", ""),
                "field": info.metadata.get("field", ""),
            }
        },
        status=HTTP_STATUS.get(context.code, 500),
    )
