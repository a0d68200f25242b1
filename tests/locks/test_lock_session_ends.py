"""Either end of a session alone: the other one is a fake that does what a test needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from controlplane.adapters import lock_session, lock_stream
from controlplane.adapters.lock_session import LockSession
from controlplane.adapters.lock_stream import LockStream
from controlplane.model.errors import UnavailableError
from controlplane.v1 import lock_pb2


class Replica:
    """The server's end: keeps what is sent, and answers what a test puts in."""

    def __init__(self) -> None:
        self.sent: list[lock_pb2.SessionCall] = []
        self.answers: asyncio.Queue[lock_pb2.SessionResponse] = asyncio.Queue()
        self.heard = asyncio.Event()
        self.before_read: Any = lambda: None
        self.takes = asyncio.Event()
        self.takes.set()

    def Session(self) -> Replica:  # noqa: N802
        """Begin."""
        return self

    async def read(self) -> lock_pb2.SessionResponse:
        """Return the next answers."""
        self.before_read()
        return await self.answers.get()

    async def write(self, request: lock_pb2.SessionRequest) -> None:
        """Take calls."""
        self.sent += request.calls
        self.heard.set()
        await self.takes.wait()

    def cancel(self) -> None:
        """End."""


def stream_to(replica: Replica, channel: grpc.aio.Channel) -> LockStream:
    """The client's end."""
    stream = LockStream(channel)
    stream.stub = replica
    return stream


async def test_an_answer_that_nobody_reads_is_withdrawn() -> None:
    """The caller is cancelled when the answer has been read from the stream and not yet by it."""
    replica = Replica()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        stream = stream_to(replica, channel)
        request = lock_pb2.AcquireRequest(name="a")
        call = asyncio.ensure_future(stream.ask("acquire", request, 60_000, "a"))
        async with asyncio.timeout(20):
            await replica.heard.wait()
        replica.heard.clear()
        replica.before_read = call.cancel  # called in the very step in which the answer is noted
        answer = lock_pb2.SessionAnswer(id=1, grant=lock_pb2.LockGrant(name="a"))
        replica.answers.put_nowait(lock_pb2.SessionResponse(answers=[answer]))
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(20):
            await replica.heard.wait()
        assert replica.sent[-1].withdraw == 1
        await stream.aclose()


async def test_calls_to_a_replica_that_hangs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves while the replica takes nothing; what waits to leave is bounded, and leaves
    once the replica takes calls again."""
    monkeypatch.setattr(lock_stream, "OUT_MAX", 3)
    replica = Replica()
    replica.takes.clear()
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        stream = stream_to(replica, channel)

        def call() -> asyncio.Future[Any]:
            return asyncio.ensure_future(stream.ask("renew", lock_pb2.RenewRequest(), 60_000, "a"))

        calls = [call()]
        async with asyncio.timeout(20):
            await replica.heard.wait()  # the first is stuck on its way
        calls += [call() for _ in range(4)]
        with pytest.raises(UnavailableError, match="takes no calls"):
            async with asyncio.timeout(20):
                await calls[-1]
        assert not any(waiting.done() for waiting in calls[:-1])
        assert len(replica.sent) == 1
        replica.heard.clear()
        replica.takes.set()
        async with asyncio.timeout(20):
            await replica.heard.wait()
        assert len(replica.sent) == 4
        await stream.aclose()
        for waiting in calls[:-1]:
            with pytest.raises(UnavailableError):
                await waiting


class SlowReader:
    """A client that reads when it is told to; `kept` are the answers that lay there meanwhile."""

    def __init__(self) -> None:
        self.session: LockSession
        self.go_on = asyncio.Event()
        self.messages: list[int] = []
        self.answered: list[int] = []
        self.kept: list[int] = []

    async def write(self, response: lock_pb2.SessionResponse) -> None:
        """Read one message."""
        self.messages.append(len(response.answers))
        await self.go_on.wait()
        self.kept.append(len(self.session._answers))
        self.answered += [answer.id for answer in response.answers]


@pytest.mark.parametrize("calls_a_message", [1, 50])
async def test_a_client_that_does_not_read_is_not_read(
    monkeypatch: pytest.MonkeyPatch, calls_a_message: int
) -> None:
    """What lies here for it is bounded, whatever it sends; once it reads it gets every answer, in
    messages of bounded size."""
    monkeypatch.setattr(lock_session, "CALLS_MAX", 4)
    monkeypatch.setattr(lock_session, "ANSWERS_A_MESSAGE", 3)
    client = SlowReader()
    client.session = LockSession(None, client)
    read: list[int] = []

    async def requests() -> AsyncIterator[lock_pb2.SessionRequest]:
        for start in range(0, 100, calls_a_message):
            numbers = range(start, start + calls_a_message)
            calls = [lock_pb2.SessionCall(id=number) for number in numbers]
            await asyncio.sleep(0)  # as a stream does between messages
            read.extend(numbers)
            yield lock_pb2.SessionRequest(calls=calls)

    serving = asyncio.ensure_future(client.session.run(requests()))
    for _ in range(300):  # turns in which all of it could have been read
        await asyncio.sleep(0)
    assert len(read) <= max(10, calls_a_message)
    client.go_on.set()
    async with asyncio.timeout(20):
        await serving
    assert client.answered == list(range(100))
    assert max(client.messages) == 3
    assert max(client.kept) <= 5
