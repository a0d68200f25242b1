"""Links to the members of one etcd cluster: one grpc.aio channel each, and a bounded call.

Theory. Any member serves any request, so a member that refuses or is slow is simply left for the
next one. Three facts shape this file. A stopped member still accepts TCP connections and answers
nothing, so nobody waits for one member alone for as long as etcd's 7 s. A write whose attempt
failed may still happen, even minutes later when a stopped member wakes with the request in its
socket: such a failure is *ambiguous*, and only the caller knows whether repetition is harmless.
gRPC's own keepalive neither notices a stopped member in time nor is welcome at etcd: not used.

Rules. A failed attempt marks its link and moves everybody to the link that failed longest ago,
which is connected beforehand: leaving a member costs no handshake.
An attempt that is left goes on: its answer may come first (`etcd_call`; how long that takes:
`etcd_pace`).
Reads are repeated until the call's time is over. Writes are repeated when the failure proves that
nothing was sent, or when the caller says that a repetition is harmless.

Failure modes. UnavailableError: nobody answered in time, nothing happened. AmbiguousError: it may
have happened. NoSpaceError: etcd is full and refuses writes. EtcdError: etcd said no.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from etcd3 import etcdrpc

from controlplane.adapters.etcd_pace import Pace
from controlplane.clock import Clock, seeded
from controlplane.model.errors import (
    InvalidInputError,
    UnavailableError,
    WeirError,
)

MESSAGE_MAX: Final = 16 << 20
"""Largest answer accepted, in bytes: a page of keys, far above etcd's request limit of 1.5 MiB."""
BACKOFF_MS: Final = (20, 40, 80, 160, 320)
"""Pause after each full round over all members, last value repeated; +-50 % jitter."""

_T = TypeVar("_T")
Metadata = tuple[tuple[str, str], ...]


class NoSpaceError(UnavailableError):
    """etcd is full (alarm NOSPACE): reads work, writes are refused until somebody makes room."""


class EtcdError(WeirError):
    """etcd understood the request and refused it."""


class LeaseGoneError(EtcdError):
    """The lease has lapsed or was revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdTls:
    """Files for TLS: the authority to trust and, for client certificates, certificate and key."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """How to reach etcd. `attempt_ms` is the patience with one member before another is asked as
    well, `call_ms` bounds a call in all; both grow while answers come late (`etcd_pace`)."""

    attempt_ms: int = 500
    call_ms: int = 2500
    progress_ms: int = 500
    silence_ms: int = 2000
    tls: EtcdTls | None = None
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(slots=True)
class EtcdStats:
    """Counters for metrics: `calls`, `failures` by reason, `rotations`, `ambiguous`, `logins`,
    `watch_resumes` and `watch_relists`."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    rotations: int = 0
    ambiguous: int = 0
    logins: int = 0
    watch_resumes: int = 0
    watch_relists: int = 0


class Fault(enum.Enum):
    """What a failed attempt means for a repetition."""

    UNSENT = "unsent"  # certainly did not happen; try the next member
    UNKNOWN = "unknown"  # may have happened or may still happen
    LOGIN = "login"  # the token is stale; log in and try again
    FINAL = "final"  # etcd's answer; trying again gives the same


_UNKNOWN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)
_LOGIN: Final = ("invalid auth token", "revision of auth store is old", "user name is empty")
_UNSENT: Final = ("failed to connect to all addresses", "too many requests")


def classify(error: grpc.aio.AioRpcError) -> Fault:
    """Say what a failed attempt means."""
    details = error.details() or ""
    if any(text in details for text in _LOGIN):
        return Fault.LOGIN
    if any(text in details for text in _UNSENT):
        return Fault.UNSENT
    return Fault.UNKNOWN if error.code() in _UNKNOWN else Fault.FINAL


def typed(error: grpc.aio.AioRpcError) -> WeirError:
    """Turn etcd's final answer into a typed error."""
    details = error.details() or str(error.code())
    if "database space exceeded" in details:
        return NoSpaceError(f"etcd is full: {details}; compact and defragment, then disarm")
    if "lease not found" in details:
        return LeaseGoneError(details)
    if "request is too large" in details or "too many operations" in details:
        return InvalidInputError("request", details)
    return EtcdError(details)


def ended_early(link: Link) -> grpc.aio.AioRpcError:
    """Make the failure of a stream that ended without an answer: says nothing about a lease."""
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE,
        grpc.aio.Metadata(),
        grpc.aio.Metadata(),
        details=f"{link.endpoint}: stream ended early",
    )


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


class Link:
    """One member: its channel and stubs. `failed_at_ms` is when it last failed, 0 for never."""

    __slots__ = (
        "auth", "channel", "cluster", "endpoint", "failed_at_ms", "kv", "lease", "maintenance",
        "watch",
    )  # fmt: skip

    def __init__(self, endpoint: str, credentials: Any, server_name: str) -> None:
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MESSAGE_MAX),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ]
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        self.endpoint = endpoint
        self.failed_at_ms = 0
        self.channel = (
            grpc.aio.secure_channel(endpoint, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(endpoint, options=options)
        )
        self.kv = etcdrpc.KVStub(self.channel)
        self.lease = etcdrpc.LeaseStub(self.channel)
        self.watch = etcdrpc.WatchStub(self.channel)
        self.auth = etcdrpc.AuthStub(self.channel)
        self.cluster = etcdrpc.ClusterStub(self.channel)
        self.maintenance = etcdrpc.MaintenanceStub(self.channel)


Attempt = Callable[[Link, float, Metadata], Awaitable[_T]]
"""One try on one member: link, timeout in s, metadata."""


class Links:
    """All members of a cluster. Make it inside the running loop; close it with `aclose`."""

    def __init__(
        self, endpoints: Sequence[str], options: EtcdOptions, clock: Clock, seed: int | None = None
    ) -> None:
        if not endpoints:
            raise InvalidInputError("coordination.endpoints", "empty: name at least one member")
        self.options = options
        self.stats = EtcdStats()
        self.pace = Pace(options.attempt_ms, options.call_ms)
        self._clock = clock
        self._random = seeded(seed)
        credentials = _credentials(options.tls) if options.tls else None
        server_name = options.tls.server_name if options.tls else ""
        self._links = [Link(endpoint, credentials, server_name) for endpoint in endpoints]
        self._current = self._links[self._random.randrange(len(self._links))]
        self._token = ""
        self._login = asyncio.Lock()
        self._connect_next()

    @property
    def current(self) -> Link:
        """The link in use."""
        return self._current

    @property
    def all(self) -> Sequence[Link]:
        """Every link."""
        return self._links

    async def aclose(self) -> None:
        """Close every channel at once; calls in flight are cancelled."""
        for link in self._links:
            await link.channel.close(grace=None)

    def failed(self, link: Link) -> None:
        """Mark a link; whoever used it goes to the one that failed longest ago."""
        link.failed_at_ms = self._clock.monotonic_ms()
        if link is self._current:
            self._current = self.other_than(link)
            self.stats.rotations += 1
            self._connect_next()

    def other_than(self, link: Link) -> Link:
        """Return the link that failed longest ago, preferably another one."""
        others = [other for other in self._links if other is not link] or [link]
        return min(others, key=lambda other: other.failed_at_ms)

    def _connect_next(self) -> None:
        """Connect, in the background, to whoever would be next."""
        self.other_than(self._current).channel.get_state(try_to_connect=True)

    async def backoff(self, failures: int) -> None:
        """Pause after a round over all members (never within one)."""
        if failures % len(self._links):
            return
        step = min(failures // len(self._links), len(BACKOFF_MS)) - 1
        await self._clock.sleep_ms(BACKOFF_MS[step] * (0.5 + self._random.random()))

    async def metadata(self, timeout_s: float) -> Metadata:
        """Metadata of every request: refuse without raft leader, and the token when we log in."""
        if not self.options.username:
            return (("hasleader", "true"),)
        if not self._token:
            await self._authenticate(timeout_s)
        return (("hasleader", "true"), ("token", self._token))

    def forget_token(self, used: Metadata) -> None:
        """Drop the token of these metadata unless somebody already replaced it."""
        if ("token", self._token) in used:
            self._token = ""

    async def _authenticate(self, timeout_s: float) -> None:
        async with self._login:
            if self._token:
                return
            request = etcdrpc.AuthenticateRequest(
                name=self.options.username, password=self.options.password
            )
            answer = await self._current.auth.Authenticate(request, timeout=timeout_s)
            self._token = answer.token
            self.stats.logins += 1


def _credentials(tls: EtcdTls) -> Any:
    """Read the files at once, so that a wrong path fails at start with its name."""
    pair = (tls.key, tls.certificate)
    if (tls.key is None) != (tls.certificate is None):
        raise InvalidInputError("coordination.tls", "certificate and key belong together")
    key, certificate = (path.read_bytes() if path else None for path in pair)
    return grpc.ssl_channel_credentials(tls.ca.read_bytes(), key, certificate)
