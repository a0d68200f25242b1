"""A stream of lock calls for threads, as the client sees it: one per replica.

Theory. As in `lock_stream`: a unary call costs gRPC far more than the lock costs Redis, so the
calls of all threads share one stream, and those made while a message is being sent leave together
in the next one. One thread of ours reads the answers; each caller sleeps until its own is there.

Failure modes. A caller that is not answered in time, or is interrupted, withdraws its call. When
the stream breaks every call in flight fails with UnavailableError, its outcome unknown; the next
call opens a new stream. A stream without calls for `IDLE_S` ends by itself: a replica has room for
a thousand. A server that knows no sessions is called method by method.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any, Final

import grpc

from controlplane.adapters.lock_stream import (
    CALLS_A_MESSAGE,
    METHODS,
    OUT_MAX,
    NoSessionsError,
    error_of_stream,
)
from controlplane.adapters.lock_wire import RETRY_MS, error_of, error_of_status
from controlplane.model.errors import UnavailableError, WeirError
from controlplane.v1 import lock_pb2, lock_pb2_grpc

IDLE_S: Final = 30.0


class SyncLockStream:
    """Calls to one replica, from any thread."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub: Any = lock_pb2_grpc.LockServiceStub(channel)
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._sessions = True

    def ask(self, kind: str, request: Any, timeout_ms: int, name: str) -> Any:
        """Return the answer to one request; errors of `controlplane.locks` about lock `name`."""
        if self._sessions:
            try:
                answer = self._open().ask(kind, request, timeout_ms)
            except NoSessionsError:
                self._sessions = False
            else:
                if answer.HasField("error"):
                    raise error_of_status(answer.error, name)
                return answer.released if kind == "release" else answer.grant
        try:
            return getattr(self._stub, METHODS[kind])(request, timeout=timeout_ms / 1000)
        except grpc.RpcError as error:
            raise error_of(error, name) from error

    def _open(self) -> _Session:
        with self._lock:
            if self._session is None or self._session.over:
                self._session = _Session(self._stub)
            return self._session


class _Session:
    """One stream, from its first call until it breaks or rests."""

    def __init__(self, stub: Any) -> None:
        self.over = False
        self._failure: WeirError = UnavailableError("the stream of lock calls ended", RETRY_MS)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, SimpleQueue[lock_pb2.SessionAnswer | WeirError]] = {}
        self._out: SimpleQueue[lock_pb2.SessionCall] = SimpleQueue()
        call = stub.Session(self._requests())
        threading.Thread(target=self._read, args=(call,), name="lock-stream", daemon=True).start()

    def ask(self, kind: str, request: Any, timeout_ms: int) -> lock_pb2.SessionAnswer:
        if self._out.qsize() >= OUT_MAX:
            raise UnavailableError("the replica takes no calls", RETRY_MS)
        mine: SimpleQueue[lock_pb2.SessionAnswer | WeirError] = SimpleQueue()
        with self._lock:
            if self.over:
                raise self._failure
            number = next(self._numbers)
            self._waiting[number] = mine
        try:
            self._out.put(lock_pb2.SessionCall(id=number, **{kind: request}))
            found = mine.get(timeout=timeout_ms / 1000)
        except BaseException as error:  # also when interrupted: nobody will read the answer
            self._waiting.pop(number, None)
            self._out.put(lock_pb2.SessionCall(withdraw=number))
            if isinstance(error, Empty):
                text = f"no answer within {timeout_ms} ms"
                raise UnavailableError(text, RETRY_MS) from None
            raise
        if isinstance(found, WeirError):
            raise found
        return found

    def _requests(self) -> Iterator[lock_pb2.SessionRequest]:
        """Yield what leaves; gRPC asks for the next message on a thread of its own."""
        while True:
            try:
                calls = [self._out.get(timeout=IDLE_S)]
            except Empty:
                if self._rests():
                    return
                continue
            while len(calls) < CALLS_A_MESSAGE and not self._out.empty():
                calls.append(self._out.get())
            if self.over:
                return
            yield lock_pb2.SessionRequest(calls=calls)

    def _rests(self) -> bool:
        with self._lock:
            self.over = self.over or not self._waiting
            return self.over

    def _read(self, call: Any) -> None:
        try:
            for response in call:
                for answer in response.answers:
                    caller = self._waiting.pop(answer.id, None)
                    if caller is not None:
                        caller.put(answer)
        except grpc.RpcError as error:
            self._failure = error_of_stream(error)
        finally:
            with self._lock:
                self.over = True
                waiting, self._waiting = self._waiting, {}
            self._out.put(lock_pb2.SessionCall())  # wakes gRPC's thread, which then ends
            for caller in waiting.values():
                caller.put(self._failure)
