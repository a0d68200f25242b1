"""Either end of a session alone: the other one is a fake that does what a test needs."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from controlplane.adapters.lock_stream import LockStream
from controlplane.v1 import lock_pb2


class Replica:
    """The server's end: keeps what is sent, and answers what a test puts in."""

    def __init__(self) -> None:
        self.sent: list[lock_pb2.SessionCall] = []
        self.answers: asyncio.Queue[lock_pb2.SessionResponse] = asyncio.Queue()
        self.heard = asyncio.Event()
        self.before_read: Any = lambda: None

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
