"""What the lock service hands out and shows, and the limits it keeps."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controlplane.locks.token import Token
from controlplane.model.errors import InvalidInputError

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
_OWNER: Final = re.compile(r"[!-~]{1,128}")


class Mode(StrEnum):
    """How a grant is vouched for; see docs/locks.md for what each promises."""

    LINEAGE = "lineage"
    """One Redis call. Tokens never repeat and never go back on one server, whatever it loses."""
    STRICT = "strict"
    """Plus a linearizable read of etcd after the grant: real-time order even with two primaries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of the service. Times in ms."""

    ttl_min_ms: int = 100
    ttl_max_ms: int = 300_000
    ttl_usual_ms: int = 5_000
    """TTLs up to this cost nothing extra. A quarantine lasts as long as the longest TTL granted in
    the lost epoch, and at least this; a longer TTL is announced in etcd first, once an epoch."""
    wait_max_ms: int = 60_000
    waiters_max: int = 5_000
    """Waiters on one name; the next one is refused."""
    beat_ms: int = 2_000
    """How often a waiter shows that it lives; it is passed over after three missed beats."""

    def __post_init__(self) -> None:
        if not 0 < self.ttl_min_ms <= self.ttl_max_ms:
            raise InvalidInputError("locks.ttl_min_ms", "must be above 0 and at most ttl_max_ms")
        if not 0 < self.ttl_usual_ms <= self.ttl_max_ms:
            raise InvalidInputError("locks.ttl_usual_ms", "must be above 0 and at most ttl_max_ms")

    def check_ttl(self, ttl_ms: int) -> None:
        """Refuse a TTL outside the bounds."""
        if not self.ttl_min_ms <= ttl_ms <= self.ttl_max_ms:
            raise InvalidInputError(
                "ttl_ms", f"{ttl_ms} is not between {self.ttl_min_ms} and {self.ttl_max_ms}"
            )

    def check_wait(self, wait_ms: int) -> None:
        """Refuse a wait outside the bounds."""
        if not 0 <= wait_ms <= self.wait_max_ms:
            raise InvalidInputError("wait_ms", f"{wait_ms} is not between 0 and {self.wait_max_ms}")


def check_name(name: str) -> None:
    """Refuse a name that is no lock's: 1 to 128 characters of A-Z a-z 0-9 . _ : / -."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError("name", "1 to 128 characters of A-Z a-z 0-9 . _ : / -")


def check_owner(owner: str) -> None:
    """Refuse an owner that is not 1 to 128 printable characters without spaces."""
    if _OWNER.fullmatch(owner) is None:
        raise InvalidInputError("owner", "1 to 128 printable ASCII characters without spaces")


def check_request(request: str) -> None:
    """Refuse a request id that is not 1 to 128 printable characters without spaces."""
    if _OWNER.fullmatch(request) is None:
        raise InvalidInputError("request_id", "1 to 128 printable characters without spaces")


def new_request() -> str:
    """Return a request id: 128 random bits as a UUID is written, without its dashes.

    `uuid.uuid4` takes eight times as long, which shows in a lock of a hundred microseconds.
    """
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lock in hand until `deadline_ms`, and the token to act with.

    `deadline_ms` is on the clock of the process that holds the grant, counted from before the
    request was sent: Redis lets go no earlier.
    """

    name: str
    owner: str
    token: Token
    deadline_ms: int
    ttl_ms: int
    request: str
    verified: bool = False
    """Confirmed by a linearizable read of etcd (strict mode)."""
    shared: bool = False
    entries: int = 1
    """How many nested entries the owner holds; that many releases free the lock."""
    waited_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lock now. `since_ms` is Unix time, for people."""

    owner: str
    token: Token
    expires_in_ms: int
    since_ms: int
    age_ms: int
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """Who waits. `alive` is false when it has missed its beats and will be passed over."""

    owner: str
    shared: bool
    waiting_ms: int
    alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LockState:
    """One lock as Redis has it; no holders and no waiters means that it is free."""

    name: str
    shared: bool = False
    holders: tuple[Holder, ...] = ()
    waiters: int = 0
    first_waiters: tuple[Waiter, ...] = ()
