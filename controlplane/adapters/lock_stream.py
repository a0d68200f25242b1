"""A stream of lock calls, as the client sees it: one per replica, opened when it is first used.

Theory. Calls made in one turn of the event loop, or while a message is being sent, leave together
in the next one (`lock_session` is the other end). A call that is cancelled or not answered in time
is withdrawn, so that neither a place in a queue nor a grant is kept for nobody.

Failure modes. When the stream breaks every call in flight fails with UnavailableError, its outcome
unknown; the next call opens a new stream. A repetition carries the same request id. A replica that
hangs lets calls pile up here: with `OUT_MAX` of them the next one is refused at once. (Each of them
may add its withdrawal.) A server that knows no sessions is called method by method.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

import grpc
from google.rpc import code_pb2

from controlplane.adapters.lock_wire import CALL_TIMEOUT_MS, RETRY_MS, error_of, error_of_status
from controlplane.model.errors import UnavailableError, WeirError
from controlplane.v1 import lock_pb2, lock_pb2_grpc

METHODS: Final = {"acquire": "Acquire", "renew": "Renew", "release": "Release"}
CALLS_A_MESSAGE: Final = 500
"""Keeps a message far below gRPC's limit of 4 MiB."""
OUT_MAX: Final = 10_000
"""Calls waiting to leave, several times what a replica has under way for one stream: with so many
it hangs, or its network does."""


class LockStream:
    """Calls to one replica."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = lock_pb2_grpc.LockServiceStub(channel)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[lock_pb2.SessionAnswer]] = {}
        self._out: list[lock_pb2.SessionCall] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Future[None] | None = None
        self._sessions = True
        self._told: set[asyncio.Future[Any]] = set()

    async def ask(self, kind: str, request: Any, timeout_ms: int, name: str) -> Any:
        """Return the answer to one request; errors of `controlplane.locks` about lock `name`."""
        if not self._sessions:
            return await self.single(METHODS[kind], request, timeout_ms, name)
        if len(self._out) >= OUT_MAX:
            raise UnavailableError("the replica takes no calls", RETRY_MS)
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        future = self._waiting[number] = loop.create_future()
        self._send(lock_pb2.SessionCall(id=number, **{kind: request}))
        alarm = loop.call_later(timeout_ms / 1000, _expire, future, timeout_ms)
        try:
            answer = await future
        except asyncio.CancelledError:
            self._waiting[number] = future  # also when the answer had come: nobody will read it
            raise
        except NoSessionsError:
            return await self.single(METHODS[kind], request, timeout_ms, name)
        finally:
            alarm.cancel()
            if self._waiting.pop(number, None) is not None and self._task is not None:
                self._send(lock_pb2.SessionCall(withdraw=number))
        if answer.HasField("error"):
            raise error_of_status(answer.error, name)
        return answer.released if kind == "release" else answer.grant

    def tell(self, kind: str, request: Any) -> None:
        """Send one request for whose answer nobody waits."""
        if self._sessions:
            self._send(lock_pb2.SessionCall(id=next(self._numbers), **{kind: request}))
            return
        call = asyncio.ensure_future(self.single(METHODS[kind], request, CALL_TIMEOUT_MS, ""))
        self._told.add(call)
        call.add_done_callback(self._heard)

    def _heard(self, call: asyncio.Future[Any]) -> None:
        self._told.discard(call)
        if not call.cancelled():
            call.exception()

    async def single(self, method: str, request: Any, timeout_ms: int, name: str) -> Any:
        """Return the answer to one request by a call of its own."""
        try:
            return await getattr(self.stub, method)(request, timeout=timeout_ms / 1000)
        except grpc.RpcError as error:
            raise error_of(error, name) from error

    async def aclose(self) -> None:
        """End the stream; what waits fails."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    def _send(self, call: lock_pb2.SessionCall) -> None:
        self._out.append(call)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        call = self.stub.Session()
        failure: WeirError = UnavailableError("the stream of lock calls ended", RETRY_MS)
        writer = asyncio.ensure_future(self._write(call))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for answer in response.answers:
                    future = self._waiting.pop(answer.id, None)
                    if future is not None and not future.done():
                        future.set_result(answer)
            failure = await _why(call) or failure
        except grpc.RpcError as error:
            failure = error_of_stream(error)
        finally:
            # nothing is awaited here: a call made from now on begins a new stream
            writer.cancel()
            call.cancel()
            self._task = None
            self._out.clear()
            self._sessions = self._sessions and not isinstance(failure, NoSessionsError)
            waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                if not future.done():
                    future.set_exception(failure)
                    future.exception()  # its caller may have gone

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._out:
                    calls, self._out = self._out[:CALLS_A_MESSAGE], self._out[CALLS_A_MESSAGE:]
                    await call.write(lock_pb2.SessionRequest(calls=calls))
        except (grpc.RpcError, asyncio.InvalidStateError):
            call.cancel()  # the reader learns why


class NoSessionsError(WeirError):
    """The server is older than sessions."""


async def _why(call: Any) -> WeirError | None:
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return None
    return error_of_stream(
        grpc.aio.AioRpcError(
            code, await call.initial_metadata(), await call.trailing_metadata(),
            details=await call.details(),
        )
    )  # fmt: skip


def error_of_stream(error: grpc.RpcError) -> WeirError:
    """Return our error for a stream that broke."""
    call: Any = error
    if call.code() is grpc.StatusCode.UNIMPLEMENTED:
        return NoSessionsError("no sessions")
    found = error_of(error, "")
    if call.code().value[0] in {code_pb2.CANCELLED, code_pb2.INTERNAL, code_pb2.UNKNOWN}:
        return UnavailableError(f"the stream of lock calls broke: {found}", RETRY_MS)
    return found


def _expire(future: asyncio.Future[Any], timeout_ms: int) -> None:
    if not future.done():
        future.set_exception(UnavailableError(f"no answer within {timeout_ms} ms", RETRY_MS))
