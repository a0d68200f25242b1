"""A stream of lock calls, as the server sees it.

Theory. A unary call costs gRPC far more than the lock costs Redis. Calls that are under way
together travel together: those that arrive in one message are begun together (and so leave for
Redis in one write), and answers that are ready when the stream is free leave in one message.

Rules. Every call is answered exactly once. A call that is withdrawn is answered with CANCELLED
unless its outcome came first; a grant that crossed its withdrawal is given back, for its caller has
gone. When the stream ends, by either side, what still waits is withdrawn, and what was granted and
had not left yet. (What has left may have arrived: taking it back could make two holders.)

Limits. `CALLS_MAX` calls under way; one more is answered UNAVAILABLE with RetryInfo at once, so
no call queues up here and a withdrawal is never stuck behind one. A client that does not read its
answers is not read either once more than `CALLS_MAX` of them lie here: flow control stops it.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from google.rpc import code_pb2, status_pb2

from controlplane.adapters.rpc_errors import to_status
from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError
from controlplane.v1 import lock_pb2

log = structlog.get_logger(__name__)

CALLS_MAX: Final = 2_000
"""Calls of one stream under way at once."""
ANSWERS_A_MESSAGE: Final = 500
"""Keeps a message far below gRPC's limit of 4 MiB."""
RETRY_MS: Final = 100


@dataclass(slots=True, eq=False)
class Attempt:
    """One call that acquires, told apart from a repetition of its request: what a withdrawal needs
    once the call is over."""

    name: str
    owner: str
    request: str
    session: int
    """Number of its stream, in the order they were opened."""
    granted: bool = False


class Methods(Protocol):
    """What the calls mean (LockServiceServicer)."""

    async def acquire(
        self, request: lock_pb2.AcquireRequest, attempt: Attempt
    ) -> lock_pb2.LockGrant:
        """Acquire."""
        ...

    def withdraw(self, attempt: Attempt) -> None:
        """Give back what this attempt was granted, unless its request was repeated since."""
        ...

    async def renew(self, request: lock_pb2.RenewRequest) -> lock_pb2.LockGrant:
        """Renew."""
        ...

    async def release(self, request: lock_pb2.ReleaseRequest) -> lock_pb2.ReleaseResponse:
        """Release."""
        ...


class LockSession:
    """One stream."""

    def __init__(self, methods: Methods, context: Any, number: int = 0) -> None:
        self._methods = methods
        self._number = number
        self._context = context
        self._under_way: dict[int, asyncio.Task[lock_pb2.SessionAnswer]] = {}
        self._granted: OrderedDict[int, Attempt] = OrderedDict()
        """The newest `CALLS_MAX` grants, whose withdrawal may still be on its way."""
        self._answers: list[lock_pb2.SessionAnswer] = []
        self._something = asyncio.Event()
        self._room = asyncio.Event()
        self._read_all = False

    async def run(self, requests: AsyncIterator[lock_pb2.SessionRequest]) -> None:
        """Serve until the client has closed its side and everything is answered."""
        try:
            await self._serve_all(requests)
        finally:
            for answer in self._answers:  # granted, and never told
                if attempt := self._granted.pop(answer.id, None):
                    self._methods.withdraw(attempt)

    async def _serve_all(self, requests: AsyncIterator[lock_pb2.SessionRequest]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(), name="lock-session")
            async for request in requests:
                for call in request.calls:
                    while len(self._answers) > CALLS_MAX:
                        self._room.clear()
                        await self._room.wait()
                    self._begin(group, call)
            self._read_all = True
            self._something.set()

    def _begin(self, group: asyncio.TaskGroup, call: lock_pb2.SessionCall) -> None:
        kind = call.WhichOneof("call")
        if kind == "withdraw":
            self._withdraw(call.withdraw)
        elif kind is None:
            text = "none of acquire, renew, release, withdraw"
            self._fail(call.id, InvalidInputError("call", text))
        elif call.id in self._under_way:
            self._fail(call.id, InvalidInputError("id", f"{call.id} is under way already"))
        elif len(self._under_way) >= CALLS_MAX:
            text = f"locks: {CALLS_MAX} calls of this stream are under way"
            self._fail(call.id, UnavailableError(text, RETRY_MS))
        else:
            self._granted.pop(call.id, None)  # a withdrawal of this number means this call now
            task = group.create_task(self._serve(call, kind))
            self._under_way[call.id] = task
            task.add_done_callback(functools.partial(self._done, call.id))

    def _withdraw(self, number: int) -> None:
        task = self._under_way.get(number)
        if task is not None and not task.done():
            task.cancel()
        elif (attempt := self._granted.pop(number, None)) is not None:
            self._methods.withdraw(attempt)

    async def _acquire(self, number: int, request: lock_pb2.AcquireRequest) -> lock_pb2.LockGrant:
        attempt = Attempt(request.name, request.owner, request.request_id, self._number)
        grant = await self._methods.acquire(request, attempt)
        self._granted[number] = attempt
        if len(self._granted) > CALLS_MAX:
            self._granted.popitem(last=False)
        return grant

    async def _serve(self, call: lock_pb2.SessionCall, kind: str) -> lock_pb2.SessionAnswer:
        methods, number = self._methods, call.id
        try:
            if kind == "release":
                released = await methods.release(call.release)
                return lock_pb2.SessionAnswer(id=number, released=released)
            grant = await (
                self._acquire(number, call.acquire)
                if kind == "acquire"
                else methods.renew(call.renew)
            )
            return lock_pb2.SessionAnswer(id=number, grant=grant)
        except Exception as error:
            if not isinstance(error, WeirError):
                log.error("internal_error", method=f"Session/{kind}", exc_info=error)
            return lock_pb2.SessionAnswer(id=number, error=to_status(error))

    def _done(self, number: int, task: asyncio.Task[lock_pb2.SessionAnswer]) -> None:
        del self._under_way[number]
        if task.cancelled():
            status = status_pb2.Status(code=code_pb2.CANCELLED, message="withdrawn")
            self._answer(lock_pb2.SessionAnswer(id=number, error=status))
        else:
            self._answer(task.result())

    def _fail(self, number: int, error: Exception) -> None:
        self._answer(lock_pb2.SessionAnswer(id=number, error=to_status(error)))

    def _answer(self, answer: lock_pb2.SessionAnswer) -> None:
        self._answers.append(answer)
        self._something.set()

    async def _write(self) -> None:
        write: Any = self._context.write
        while True:
            await self._something.wait()
            self._something.clear()
            while self._answers:
                answers = self._answers[:ANSWERS_A_MESSAGE]
                del self._answers[:ANSWERS_A_MESSAGE]
                self._room.set()
                await write(lock_pb2.SessionResponse(answers=answers))
            if self._read_all and not self._under_way:
                return
