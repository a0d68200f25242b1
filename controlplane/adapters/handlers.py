"""gRPC handlers wrapped into handlers of the same kind: what an interceptor does to each call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

Inner = Callable[[Any, Any], Any]
"""What is wrapped: called with request (or requests) and context."""


class Wrapping(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """An interceptor that wraps the handler of every known method."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """Wrap the handler of a known method; gRPC itself answers for an unknown one."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self.wrapped(handler, handler_call_details.method)

    @abstractmethod
    def wrapped(self, handler: Any, method: str) -> Any:
        """Return the handler to call instead; `method` is its full name."""


def rewrapped(
    handler: Any,
    *,
    single: Callable[[Inner, Any, Any], Awaitable[Any]],
    streaming: Callable[[Inner, Any, Any], AsyncIterator[Any]],
    request_deserializer: Any = None,
) -> Any:
    """Return a handler that calls `single` or `streaming`, as it answers, with the one there was,
    request and context."""
    if handler.response_streaming:
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            async for answer in streaming(inner, request, context):
                yield answer

        behaviour: Any = stream
    else:
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )

        async def call(request: Any, context: Any) -> Any:
            return await single(inner, request, context)

        behaviour = call
    return make(
        behaviour,
        request_deserializer=request_deserializer or handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


async def answers_of(inner: Inner, request: Any, context: Any) -> AsyncIterator[Any]:
    """Yield the answers of a streaming handler; nothing when it writes to the context itself."""
    answers = inner(request, context)
    if hasattr(answers, "__aiter__"):
        async for answer in answers:
            yield answer
    else:
        await answers
