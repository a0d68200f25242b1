"""PeerService: replicas tell each other what they heard, once a tick.

One stream per pair: the replica whose id sorts first dials the other. Digests are cumulative, so a
stream that is slow only ever sends the newest; a peer that is silent for `SILENT_MS` although its
socket is open (SIGSTOP) is dialled anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Protocol

import grpc
import structlog

from controlplane.adapters.wire_evidence import decode_digest, encode_digest
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import Digest
from controlplane.v1 import peer_pb2, peer_pb2_grpc

log = structlog.get_logger(__name__)

SILENT_MS: Final = 2_000
RECONNECT_BASE_MS: Final = 100
RECONNECT_MAX_MS: Final = 2_000


class Book(Protocol):
    """Where digests are kept (runtime.book)."""

    def put(self, digest: Digest, now_ms: int) -> bool:
        """Keep a digest if it is news."""
        ...


class DigestFeed:
    """The newest digest of this replica; wakes the streams that send it."""

    def __init__(self) -> None:
        self._digest: peer_pb2.Digest | None = None
        self._changed = asyncio.Condition()

    async def publish(self, digest: Digest) -> None:
        """Offer a digest to every stream."""
        self._digest = encode_digest(digest)
        async with self._changed:
            self._changed.notify_all()

    async def stream(self) -> AsyncIterator[peer_pb2.Digest]:
        """Yield the newest digest, then each newer one; what a slow reader missed is contained in
        it."""
        seen = 0
        while True:
            async with self._changed:
                while self._digest is None or self._digest.seq <= seen:
                    await self._changed.wait()
                digest = self._digest
            seen = digest.seq
            yield digest


class PeerService(peer_pb2_grpc.PeerServiceServicer):
    """Answers the replicas that dial this one."""

    def __init__(self, feed: DigestFeed, book: Book, clock: Clock) -> None:
        self._feed = feed
        self._book = book
        self._clock = clock

    async def Exchange(  # noqa: N802
        self,
        request_iterator: AsyncIterator[peer_pb2.Digest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[peer_pb2.Digest]:
        """Take the peer's digests and yield ours."""
        del context
        reader = asyncio.ensure_future(_read(request_iterator, self._book, self._clock))
        try:
            async for digest in self._feed.stream():
                if reader.done():
                    break
                yield digest
        except asyncio.CancelledError:
            return  # the peer has gone, or we stop: the call ends either way
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await reader


async def _read(digests: AsyncIterator[peer_pb2.Digest], book: Book, clock: Clock) -> None:
    async for message in digests:
        try:
            book.put(decode_digest(message), clock.monotonic_ms())
        except InvalidInputError as error:
            log.warning("digest_refused", replica=message.replica[:64], error=str(error))


class PeerLinks:
    """Dials every peer whose id sorts after ours, for ever."""

    def __init__(
        self,
        own_id: str,
        peers: Mapping[str, str],
        feed: DigestFeed,
        book: Book,
        clock: Clock,
        rng: random.Random,
        dial: Callable[[str], grpc.aio.Channel],
    ) -> None:
        self._peers = {name: address for name, address in peers.items() if name > own_id}
        self._feed = feed
        self._book = book
        self._clock = clock
        self._rng = rng
        self._dial = dial

    async def run(self) -> None:
        """Keep one stream to each peer until cancelled."""
        if not self._peers:
            await asyncio.Event().wait()  # all others dial us
        async with asyncio.TaskGroup() as group:
            for name, address in self._peers.items():
                group.create_task(self._keep(name, address), name=f"peer-{name}")

    async def _keep(self, name: str, address: str) -> None:
        wait_ms = RECONNECT_BASE_MS
        while True:
            if await self._talk(name, address):
                wait_ms = RECONNECT_BASE_MS
            await self._clock.sleep_ms(self._rng.uniform(0, wait_ms))
            wait_ms = min(RECONNECT_MAX_MS, wait_ms * 2)

    async def _talk(self, name: str, address: str) -> bool:
        """Exchange digests until the peer fails or falls silent; tell whether it ever spoke."""
        spoke = False
        try:
            async with self._dial(address) as channel:
                call = peer_pb2_grpc.PeerServiceStub(channel).Exchange(self._feed.stream())
                try:
                    while (message := await _next(call)) is not grpc.aio.EOF:
                        spoke = True
                        self._take(message)
                finally:
                    call.cancel()
        except (grpc.aio.AioRpcError, TimeoutError, OSError) as error:
            log.debug("peer_lost", peer=name, error=type(error).__name__)
        return spoke

    def _take(self, message: peer_pb2.Digest) -> None:
        try:
            self._book.put(decode_digest(message), self._clock.monotonic_ms())
        except InvalidInputError as error:
            log.warning("digest_refused", replica=message.replica[:64], error=str(error))


async def _next(call: Any) -> Any:
    """Return the next digest or EOF; TimeoutError when the peer is silent or cancelled the call."""
    try:
        async with asyncio.timeout(SILENT_MS / 1000):
            return await call.read()
    except asyncio.CancelledError:
        # grpc raises it also for a status CANCELLED sent by the server: then it is not for us
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise TimeoutError from None
