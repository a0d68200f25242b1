"""One pipelined asyncio link to the Redis (or Valkey) primary.

Theory. Scripts are small and Redis runs them one after the other, so one connection serves a whole
process: calls made in one turn of the event loop leave in one write, answers come back in order,
and RESP3 lets notifications arrive on the same connection. There is no pool, no retry and no
buffer: while the link is down every call fails at once with UnavailableError, and a caller that
repeats a call does so with the same request id. (redis-py's silent retry is what makes its own
`Lock` say "not acquired" while it holds it.)

Failure modes. Nothing heard for `call_timeout_ms` while an answer is due makes the whole link
suspect (answers are in order; time in which this process stalled does not count), so it is closed,
every call in flight fails, and a new one is tried with a backoff that is bounded. A server that
answers as a replica is left at once and the address is asked again, which with Sentinel finds the
new primary. What happened to a call in flight is unknown; the scripts are idempotent by request id
for that reason. A call that is still on its way when its link is given up must not be run after
what is sent over the next one (a grant after its withdrawal): the server is told to drop the old
connection first.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import hiredis
import structlog

from controlplane.adapters.redis_address import RedisAddress
from controlplane.clock import Clock, SystemClock
from controlplane.model.errors import NotSentError, UnavailableError, WeirError

log = structlog.get_logger(__name__)

Argument = str | bytes | int
Reply = Any
PushHandler = Callable[[bytes, bytes], None]

IN_FLIGHT_MAX: Final = 20_000
"""Calls sent and not answered; past it callers are told to come back, so no queue grows."""
BACKOFF_MS: Final = (20, 50, 100, 200, 500)
"""Pauses between attempts to connect; the last one repeats."""
CONNECT_TIMEOUT_MS: Final = 1_000
_RUN_ID: Final = re.compile(rb"\nrun_id:(\w+)")


class RedisReplyError(WeirError):
    """Redis answered a call with an error. `code` is its first word (NOSCRIPT, OOM, READONLY)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message.split(" ", 1)[0]


class _Wire(asyncio.Protocol):
    """One connection: futures in the order of the calls, pushes to a handler."""

    def __init__(self, on_push: PushHandler, clock: Clock) -> None:
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()
        self.waiting: deque[tuple[asyncio.Future[Reply], int]] = deque()
        self._reader = hiredis.Reader(replyError=RedisReplyError)
        self._on_push = on_push
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._heard_ms = clock.monotonic_ms()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(exc)
        while self.waiting:
            future, _ = self.waiting.popleft()
            if not future.done():
                future.set_exception(
                    UnavailableError("redis: the connection was lost; the call may have happened")
                )
                future.exception()  # a caller that has gone need not be warned about

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self._heard_ms = self._clock.monotonic_ms()
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.PushNotification):
                push = cast("list[bytes]", reply)
                if push[0] == b"message":
                    self._on_push(push[1], push[2])
                continue
            future, _ = self.waiting.popleft()
            if future.done():
                continue
            if isinstance(reply, RedisReplyError):
                future.set_exception(reply)
            else:
                future.set_result(reply)

    def send(self, args: tuple[Argument, ...]) -> asyncio.Future[Reply]:
        future = self._loop.create_future()
        self.waiting.append((future, self._clock.monotonic_ms()))
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(_packed(args))
        return future

    def tell(self, args: tuple[Argument, ...]) -> None:
        """Send a command that is answered by pushes only."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(_packed(args))

    def _flush(self) -> None:
        data, self._out = b"".join(self._out), []
        if self.transport and not self.transport.is_closing():
            self.transport.write(data)

    def due(self) -> tuple[int, int] | None:
        """Say what is waited for, None for nothing; it changes whenever anything is heard."""
        return (self.waiting[0][1], self._heard_ms) if self.waiting else None

    def close(self) -> None:
        if self.transport:
            self.transport.abort()


class RedisLink:
    """The link. Run `run()` in a TaskGroup; call `call()` from anywhere in the same loop."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        clock: Clock | None = None,
        call_timeout_ms: int = 1_000,
    ) -> None:
        self.address = address
        self.clock = clock or SystemClock()
        self.call_timeout_ms = call_timeout_ms
        self.connected = asyncio.Event()
        self.peer = ""
        """Address of the server in use, empty while there is none."""
        self._wire: _Wire | None = None
        self._handlers: dict[bytes, Callable[[bytes], None]] = {}
        self._problem = "not connected yet"
        self._on_connect: list[Callable[[], None]] = []
        self._left = (b"", 0)
        """run_id of the server and number of our connection there, of the last link."""

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send one command; await the result for its reply (bytes, int, list, None).

        The future raises RedisReplyError for an error reply and UnavailableError when the link
        broke. Raises NotSentError at once while there is no link or too much is in flight.
        """
        wire = self._wire
        if wire is None or wire.closed.done():
            raise NotSentError(f"redis {self.address}: {self._problem}")
        if len(wire.waiting) >= IN_FLIGHT_MAX:
            raise NotSentError(f"redis {self.address}: {IN_FLIGHT_MAX} calls in flight")
        return wire.send(args)

    def post(
        self,
        args: Sequence[Argument],
        otherwise: Sequence[Argument] = (),
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Send a command for whose outcome nobody waits; `otherwise` if its script is not known.

        `lost` is called when it did not leave, or its link broke before the answer.
        """

        def done(future: asyncio.Future[Reply]) -> None:
            error = None if future.cancelled() else future.exception()
            if isinstance(error, UnavailableError):
                lost()
            elif otherwise and isinstance(error, RedisReplyError) and error.code == "NOSCRIPT":
                self.post(otherwise, lost=lost)

        try:
            future = self.call(*args)
        except NotSentError:
            lost()
        else:
            future.add_done_callback(done)

    def on_connect(self, handler: Callable[[], None]) -> None:
        """Call `handler` on every new link, before anybody else can use it."""
        self._on_connect.append(handler)

    def subscribe(self, channel: bytes, handler: Callable[[bytes], None]) -> None:
        """Hand every message on `channel` to `handler`, now and after each reconnection."""
        self._handlers[channel] = handler
        if self._wire:
            self._wire.tell(("SUBSCRIBE", channel))

    def unsubscribe(self, channel: bytes) -> None:
        """Undo `subscribe`."""
        if self._handlers.pop(channel, None) and self._wire:
            self._wire.tell(("UNSUBSCRIBE", channel))

    def leave(self, why: str) -> None:
        """Close the connection and look the address up again: this server is the wrong one."""
        self._problem = why
        if self._wire:
            self._wire.close()

    async def run(self) -> None:
        """Keep one connection to the primary, for ever."""
        failures = 0
        while True:
            try:
                wire = await self._connect()
            except (OSError, WeirError, TimeoutError) as error:
                self._problem = str(error) or type(error).__name__
                delay = BACKOFF_MS[min(failures, len(BACKOFF_MS) - 1)]
                failures += 1
                await self.clock.sleep_ms(delay)
                continue
            failures = 0
            try:
                await self._watch(wire)
            finally:
                self._wire, self.peer = None, ""
                self.connected.clear()
                wire.close()
            await self.clock.sleep_ms(BACKOFF_MS[0])

    async def _connect(self) -> _Wire:
        async with asyncio.timeout(CONNECT_TIMEOUT_MS / 1000):
            host, port = await self.address.primary()
            loop = asyncio.get_running_loop()
            _, wire = await loop.create_connection(
                lambda: _Wire(self._pushed, self.clock), host, port, ssl=self.address.ssl()
            )
            try:
                hello = await wire.send(("HELLO", 3, *self.address.credentials()))
                fields = dict(_pairs(hello))
                _must_be_primary(f"{host}:{port}", bytes(fields.get(b"role", b"?")).decode())
                found = _RUN_ID.search(bytes(await wire.send(("INFO", "server"))))
                self._drop_the_last(wire, found[1] if found else b"", fields.get(b"id", 0))
            except BaseException:
                wire.close()
                raise
        if self._handlers:
            wire.tell(("SUBSCRIBE", *self._handlers))
        self._wire, self.peer = wire, f"{host}:{port}"
        for handler in self._on_connect:
            handler()
        self.connected.set()
        log.info("redis_connected", peer=self.peer)
        return wire

    def _drop_the_last(self, wire: _Wire, run_id: bytes, number: int) -> None:
        """Have the server drop our last connection, with what it has not read of it yet.

        Only in the same process of the server: another one numbers others' connections alike.
        """
        before, self._left = self._left, (run_id, number)
        if before[0] and before[0] == run_id:
            # no connection of that number is the usual answer: it was seen to end
            wire.send(("CLIENT", "KILL", "ID", before[1])).add_done_callback(_ignore)

    async def _watch(self, wire: _Wire) -> None:
        """Return when the connection ended or a call was not answered in time."""
        step_ms = max(10, self.call_timeout_ms // 10)
        due, silent_ms, looked_ms = None, 0, self.clock.monotonic_ms()
        while not wire.closed.done():
            await asyncio.wait({wire.closed}, timeout=step_ms / 1000)
            now = self.clock.monotonic_ms()
            if (still := wire.due()) is None or still != due:
                due, silent_ms = still, 0
            else:  # a stall of this process is no silence of Redis: its answer may lie unread
                silent_ms += min(now - looked_ms, 2 * step_ms)
            looked_ms = now
            if silent_ms > self.call_timeout_ms:
                self._problem = f"no answer for {silent_ms} ms"
                log.warning("redis_silent", peer=self.peer, silent_ms=silent_ms)
                wire.close()
                await wire.closed
        if self._problem == "not connected yet":
            self._problem = "the connection was lost"

    def _pushed(self, channel: bytes, payload: bytes) -> None:
        handler = self._handlers.get(channel)
        if handler:
            handler(payload)


def _must_be_primary(peer: str, role: str) -> None:
    if role != "master":
        raise UnavailableError(f"redis {peer} is a {role}, not the primary")


def _ignore(future: asyncio.Future[Reply]) -> None:
    if not future.cancelled():
        future.exception()


def _packed(args: tuple[Argument, ...]) -> bytes:
    return cast("bytes", hiredis.pack_command(cast("Any", args)))


def _pairs(reply: Reply) -> Iterator[tuple[bytes, Any]]:
    if isinstance(reply, dict):
        yield from reply.items()
    else:
        yield from zip(reply[::2], reply[1::2], strict=True)
