"""Calls of the scripts, without any I/O: keys, arguments, and what the replies mean.

The asyncio manager and the synchronous client share it, so that both speak the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from controlplane.locks.grant import Holder, LockState, Waiter
from controlplane.locks.token import Token

REFUSALS: Final = frozenset({b"lost", b"stale", b"replica", b"quarantine", b"exhausted"})
"""Replies that only a new epoch, or another server, can change."""
ALIVE_BEATS: Final = 3
"""A waiter that missed this many beats is passed over."""
WHOLE: Final = "-"
"""Request id of a release of all entries, which needs none: once done it is done."""
NAMED_WAITERS: Final = 50
"""Waiters named by an inspection; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Redis keys below a prefix. The braces keep them on one slot."""

    prefix: str

    @property
    def fence(self) -> str:
        """The one hash that tokens depend on."""
        return "{" + self.prefix + "}:fence"

    @property
    def locks(self) -> str:
        """Prefix of the keys of held locks."""
        return "{" + self.prefix + "}:l:"

    def of(self, name: str) -> tuple[str, str, str, str]:
        """Keys of one lock, in the order the scripts expect."""
        base = "{" + self.prefix + "}:"
        return f"{base}fence", f"{base}l:{name}", f"{base}q:{name}", f"{base}w:{name}"

    def channel(self, client: str) -> str:
        """Where a client hears of its hand-offs."""
        return "{" + self.prefix + "}:c:" + client

    def changes(self, name: str) -> str:
        """Where watchers hear of changes of a lock."""
        return "ev:{" + self.prefix + "}:l:" + name


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request for a lock. Times in ms; `request` makes a repetition harmless."""

    name: str
    owner: str
    request: str
    ttl_ms: int
    wait: bool = False
    shared: bool = False
    reentrant: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes a repetition one: name, owner and request."""
        return self.name, self.owner, self.request

    def argv(
        self, floor: int, channel: str, beat_ms: int, waiters_max: int, wall_ms: int, sent_ms: int
    ) -> tuple[str | int, ...]:
        """Arguments of acquire.lua."""
        return (
            floor, self.owner, self.request, self.ttl_ms, int(self.shared), int(self.reentrant),
            int(self.wait), channel, beat_ms * ALIVE_BEATS, waiters_max, wall_ms, sent_ms,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Granted:
    """The lock is ours for `left_ms` from before the call was sent."""

    token: Token
    left_ms: int
    entries: int
    fence_epoch: int


@dataclass(frozen=True, slots=True)
class Queued:
    """We wait. `left_ms` is how long the holder may keep it without renewing."""

    left_ms: int
    ahead: int
    waiters: int


@dataclass(frozen=True, slots=True)
class Busy:
    """Held, and we did not ask to wait."""

    left_ms: int
    owner: str
    waiters: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not possible now; `cause` is the script's word, `epoch` the fence's, `high_ms` its TTL
    bound."""

    cause: str
    epoch: int = 0
    high_ms: int = 0


Answer = Granted | Queued | Busy | Refusal


def acquired(reply: Any) -> Answer:
    """Read a reply of acquire.lua."""
    tag = reply[0]
    if tag == b"granted":
        token = Token(int(reply[1]), int(reply[2]))
        return Granted(token, int(reply[3]), int(reply[4]), int(reply[5]))
    if tag == b"queued":
        return Queued(int(reply[1]), int(reply[2]), int(reply[3]))
    if tag == b"busy":
        return Busy(int(reply[1]), bytes(reply[2]).decode(), int(reply[3]))
    return refused(reply)


def refused(reply: Any) -> Refusal:
    """Read a refusal of any script."""
    numbers = [int(value) for value in reply[1:3]]
    return Refusal(bytes(reply[0]).decode(), *numbers)


@dataclass(frozen=True, slots=True)
class HandOff:
    """Notification that a waiter has become the holder until `deadline_ms` of its own clock."""

    request: str
    token: Token
    deadline_ms: int


def handed_off(payload: bytes) -> HandOff:
    """Read the notification published by hand_off."""
    request, epoch, counter, ttl, sent = payload.decode().split(" ")
    return HandOff(request, Token(int(epoch), int(counter)), int(sent) + int(ttl))


@dataclass(frozen=True, slots=True)
class Status:
    """The fence as the keeper sees it."""

    role: str
    intact: bool
    epoch: int
    counter: int
    state: str
    pending: bool
    eviction: str


def status(reply: Any) -> Status:
    """Read a reply of status.lua."""
    role, intact, epoch, counter, state, pending, eviction = reply
    return Status(
        bytes(role).decode(), bool(intact), int(epoch), int(counter), bytes(state).decode(),
        bool(pending), bytes(eviction or b"").decode(),
    )  # fmt: skip


def inspected(name: str, reply: Any) -> LockState:
    """Read a reply of inspect.lua."""
    flat, left, waiters, named, now = reply
    fields = {bytes(k).decode(): bytes(v).decode() for k, v in _pairs(flat)}
    found = [_waiter(bytes(packed).decode(), now) for _, packed in _pairs(named) if packed]
    shared = fields.get("mode") == "s"
    return LockState(
        name=name, shared=shared, waiters=waiters, first_waiters=tuple(found),
        holders=_shared(fields, now) if shared else _exclusive(fields, left, now),
    )  # fmt: skip


def _exclusive(fields: dict[str, str], left_ms: int, now: int) -> tuple[Holder, ...]:
    if not fields:
        return ()
    since = int(fields["since"])
    holder = Holder(
        owner=fields["owner"], token=Token(int(fields["epoch"]), int(fields["counter"])),
        expires_in_ms=left_ms, since_ms=since, age_ms=max(0, now - since),
        entries=int(fields["entries"]),
    )  # fmt: skip
    return (holder,)


def _shared(fields: dict[str, str], now: int) -> tuple[Holder, ...]:
    holders = []
    for field, packed in fields.items():
        if not field.startswith("h:"):
            continue
        epoch, counter, expires, _, since, entries, _ = packed.split(" ", 6)
        holder = Holder(
            owner=field[2:], token=Token(int(epoch), int(counter)),
            expires_in_ms=int(expires) - now, since_ms=int(since),
            age_ms=max(0, now - int(since)), entries=int(entries),
        )  # fmt: skip
        if holder.expires_in_ms > 0:
            holders.append(holder)
    return tuple(sorted(holders, key=lambda holder: holder.token))


def _waiter(packed: str, now: int) -> Waiter:
    mode, _, alive_until, since, _, _, owner = packed.split(" ", 6)
    return Waiter(
        owner=owner,
        shared=mode == "s",
        waiting_ms=max(0, now - int(since)),
        alive=int(alive_until) >= now,
    )


def _pairs(flat: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(flat[::2], flat[1::2], strict=True))
