"""One blocking connection to the Redis primary, for synchronous callers.

Same rules as `redis`: no retry, no buffer, RESP3, notifications on one connection. A connection
serves one thread at a time; `PooledRedis` lends them out. Time-outs are the socket's own
(SO_RCVTIMEO), which costs no extra system call per read; under TLS they are Python's, for its ssl
module tries a read that timed out in the kernel again.
"""

from __future__ import annotations

import socket
import ssl
import struct
import uuid
from collections import deque
from typing import Any, Final, cast

import hiredis

from controlplane.adapters.redis import Argument, RedisReplyError, Reply
from controlplane.adapters.redis_address import (
    READ,
    SENTINEL_TIMEOUT_MS,
    Question,
    RedisAddress,
)
from controlplane.model.errors import UnavailableError, WeirError

CONNECT_TIMEOUT_S: Final = 1.0
_MS: Final = 1_000


class BlockingRedis:
    """A connected socket. `channel` is its own, subscribed to from the start."""

    def __init__(self, address: RedisAddress, channel: str, call_timeout_ms: int) -> None:
        host, port = _primary(address)
        try:
            self._socket = _connected(address, host, port, CONNECT_TIMEOUT_S)
        except OSError as error:
            raise UnavailableError(f"redis {host}:{port}: {error}") from error
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        self._timeout_ms = 0
        self._call_timeout_ms = call_timeout_ms
        self._reader = hiredis.Reader(replyError=RedisReplyError)
        self.channel = channel
        self.pushed: deque[bytes] = deque(maxlen=256)
        """Notifications that arrived between replies; the oldest give way."""
        try:
            hello = self.call("HELLO", 3, *address.credentials())
            role = dict(hello.items()).get(b"role") if isinstance(hello, dict) else b"?"
            _must_be_primary(f"{host}:{port}", role)
            self._write(("SUBSCRIBE", channel))
        except BaseException:
            self.close()
            raise

    def call(self, *args: Argument) -> Reply:
        """Send one command and return its reply; RedisReplyError, UnavailableError."""
        self._write(args)
        self._patience(self._call_timeout_ms)
        while True:
            reply = self._next()
            if not isinstance(reply, hiredis.PushNotification):
                if isinstance(reply, RedisReplyError):
                    raise reply
                return reply
            self._keep(reply)

    def wait_push(self, timeout_ms: int) -> bytes | None:
        """Return the next notification, None after `timeout_ms`."""
        if self.pushed:
            return self.pushed.popleft()
        self._patience(max(1, timeout_ms))
        while not self.pushed:
            try:
                reply = self._next()
            except TimeoutError:
                return None
            self._keep(reply)
        return self.pushed.popleft()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _keep(self, push: Any) -> None:
        if push[0] == b"message":
            self.pushed.append(push[2])

    def _write(self, args: tuple[Argument, ...]) -> None:
        try:
            self._socket.sendall(hiredis.pack_command(cast("Any", args)))
        except OSError as error:
            raise UnavailableError(f"redis: {error}") from error

    def _next(self) -> Reply:
        while (reply := self._reader.gets()) is False:
            try:
                data = self._socket.recv(READ)
            except (BlockingIOError, TimeoutError) as error:
                raise TimeoutError(f"no answer for {self._timeout_ms} ms") from error
            except OSError as error:
                raise UnavailableError(f"redis: {error}") from error
            if not data:
                raise UnavailableError("redis: the connection was lost; the call may have happened")
            self._reader.feed(data)
        return reply

    def _patience(self, timeout_ms: int) -> None:
        if timeout_ms == self._timeout_ms:
            return
        self._timeout_ms = timeout_ms
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.settimeout(timeout_ms / _MS)
            return
        value = struct.pack("ll", timeout_ms // _MS, timeout_ms % _MS * _MS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


class PooledRedis:
    """Connections lent to one thread at a time; broken ones are not taken back."""

    def __init__(
        self, address: RedisAddress, *, channel_prefix: str, call_timeout_ms: int = 1_000
    ) -> None:
        self._address = address
        self._channel_prefix = channel_prefix
        self._call_timeout_ms = call_timeout_ms
        self._idle: deque[BlockingRedis] = deque()

    def lend(self) -> _Loan:
        """Lend a connection for the body of a `with`."""
        return _Loan(self)

    def take(self) -> BlockingRedis:
        """Take an idle connection, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            channel = self._channel_prefix + uuid.uuid4().hex
            return BlockingRedis(self._address, channel, self._call_timeout_ms)

    def give(self, link: BlockingRedis) -> None:
        """Take back one that is in order."""
        self._idle.append(link)

    def timed_out(self, error: TimeoutError) -> UnavailableError:
        """Return the error of a call that was not answered."""
        return UnavailableError(f"redis {self._address}: {error}")

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop().close()


class _Loan:
    """One loan. A class, for a generator costs every lock two microseconds."""

    __slots__ = ("_link", "_pool")

    def __init__(self, pool: PooledRedis) -> None:
        self._pool = pool

    def __enter__(self) -> BlockingRedis:
        self._link = self._pool.take()
        return self._link

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        answered = isinstance(error, WeirError) and not isinstance(error, UnavailableError)
        if error is None or answered:
            self._pool.give(self._link)
            return
        self._link.close()  # it is broken, or a reply may be outstanding
        if isinstance(error, TimeoutError):
            raise self._pool.timed_out(error) from error


def _must_be_primary(peer: str, role: object) -> None:
    if role != b"master":
        raise UnavailableError(f"redis {peer} is not the primary")


def _primary(address: RedisAddress) -> tuple[str, int]:
    if not address.sentinels:
        return address.host, address.port
    problem = ""
    for host, port in address.sentinels:
        try:
            with _connected(address, host, port, SENTINEL_TIMEOUT_MS / _MS) as sock:
                question = Question(address)
                sock.sendall(question.sent)
                while (found := question.answered(sock.recv(READ))) is None:
                    pass
                return found
        except (OSError, hiredis.HiredisError, UnavailableError) as error:
            problem = f"{host}:{port}: {error}"
    raise address.unknown(problem)


def _connected(address: RedisAddress, host: str, port: int, timeout_s: float) -> socket.socket:
    raw = socket.create_connection((host, port), timeout_s)
    try:
        context = address.ssl()
        return context.wrap_socket(raw, server_hostname=host) if context else raw
    except BaseException:
        raw.close()
        raise
