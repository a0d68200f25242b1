"""What the runtime needs of the outside world. Adapters implement these; tests may too."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from controlplane.model.ids import Term
from controlplane.model.intents import Intents
from controlplane.model.plan import Event, FailoverRecord, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """One key as etcd holds it."""

    key: bytes
    value: bytes
    mod_revision: int
    create_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """One condition of a transaction: `target` is mod, create, version or value; `op` is ==, !=, <
    or >."""

    key: bytes
    target: str
    op: str
    operand: int | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Write one key, optionally under a lease."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete one key, or the range up to `range_end`."""

    key: bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Get:
    """Read one key, or the range up to `range_end`, within a transaction."""

    key: bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TxnResult:
    """Outcome of a transaction: whether the conditions held, the revision, and the keys read, one
    list per Get."""

    succeeded: bool
    revision: int
    reads: tuple[tuple[KeyValue, ...], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One change; `value` is None for a deletion."""

    key: bytes
    value: bytes | None
    mod_revision: int


class KeyValueStore(Protocol):
    """A linearizable key-value store (etcd).

    Every call is bounded in time and raises UnavailableError when no member answered,
    AmbiguousError when a write that was not guarded may have happened.
    """

    async def get(self, key: bytes) -> KeyValue | None:
        """Linearizable read of one key."""
        ...

    async def get_prefix(self, prefix: bytes) -> tuple[Sequence[KeyValue], int]:
        """Linearizable read of a prefix, with the revision it was read at."""
        ...

    async def get_range(
        self, start: bytes, end: bytes, *, limit: int, descending: bool = False
    ) -> tuple[Sequence[KeyValue], bool]:
        """Linearizable read of at most `limit` keys of [start, end) in key order, and whether
        there are more."""
        ...

    async def revision(self) -> int:
        """Return the current revision; linearizable, so it proves that a quorum answers."""
        ...

    async def txn(
        self,
        compares: Sequence[Compare],
        success: Sequence[Put | Delete | Get],
        failure: Sequence[Put | Delete | Get] = (),
    ) -> TxnResult:
        """One transaction. Retried by itself only when `compares` make a repetition harmless."""
        ...

    def watch(
        self, prefix: bytes, start_revision: int
    ) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """Yield changes below a prefix from a revision on, each exactly once; CompactedError when
        history is gone."""
        ...

    async def grant_lease(self, ttl_s: int) -> int:
        """Grant a lease and return its id."""
        ...

    async def keepalive(self, lease: int) -> int:
        """Renew a lease once; return the TTL left in s (0 when it is gone)."""
        ...

    async def revoke_lease(self, lease: int) -> None:
        """Revoke a lease and delete its keys."""
        ...

    async def compact(self, revision: int) -> None:
        """Drop history below a revision."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What was read back from etcd: the plan in force, the decision state stored with it, and its
    revision."""

    plan: Plan
    state: bytes
    revision: int
    failovers: tuple[FailoverRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leadership:
    """Proof of leadership. `term` is the mod_revision of the leader key; every write compares
    it."""

    term: Term
    replica: str
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderKeyState:
    """What one linearizable read saw: who leads (term 0: nobody), the revision of the leader's
    last write, and etcd's revision."""

    term: Term = Term(0)
    replica: str = ""
    region: str = ""
    heartbeat_revision: int = 0
    revision: int = 0


class LeaderKey(Protocol):
    """The leader key, as the election needs it. Errors as in `KeyValueStore`."""

    async def observe(self) -> LeaderKeyState:
        """Linearizable read of leader key and heartbeat."""
        ...

    async def claim(
        self, replica: str, region: str, lease: int, seen: LeaderKeyState
    ) -> Leadership | None:
        """Take the key if it and the heartbeat still are what was seen; None when they are not."""
        ...

    async def release(self, leadership: Leadership) -> None:
        """Delete the key if it still carries this term."""
        ...

    def changes(self, after_revision: int) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """Yield changes of the key, for ever: a hint to observe at once."""
        ...

    async def grant_lease(self, ttl_s: int) -> int:
        """Grant a lease."""
        ...

    async def keepalive(self, lease: int) -> int:
        """Renew a lease; 0 when it is gone."""
        ...

    async def revoke_lease(self, lease: int) -> None:
        """Revoke a lease."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat: number of the tick, and the same moment in attentive and wall ms."""

    tick: int
    attentive_ms: int
    wall_ms: int


class PlanStore(Protocol):
    """Where the leader commits and everybody reads."""

    async def load(self) -> Committed | None:
        """Linearizable read of the plan in force."""
        ...

    async def commit(
        self,
        leadership: Leadership,
        plan: Plan,
        state: bytes,
        events: Sequence[Event] = (),
        failovers: Sequence[FailoverRecord] = (),
    ) -> Committed:
        """Write plan, state, events and changed failovers in one transaction guarded by the term.

        `plan` is stamped with term and `committed_at_ms`; its `decided_at_ms` anchors the attentive
        times of events and failovers. Raises DeposedError when the term is not current any more or
        the epoch would not rise, Alarm when the plan breaks an invariant.
        """
        ...

    async def heartbeat(
        self,
        leadership: Leadership,
        beat: Beat,
        state: bytes | None = None,
        events: Sequence[Event] = (),
        failovers: Sequence[FailoverRecord] = (),
    ) -> None:
        """Say that the leader is alive, guarded by the term; the tick's write when no plan changes.

        With `state` the decision state is checkpointed; events and failovers as in `commit`.
        """
        ...

    def follow(self) -> AsyncIterator[Committed]:
        """Every committed plan, newest wins, for ever; reconnects by itself."""
        ...

    async def intents(self) -> Intents:
        """Return what operators asked for."""
        ...


Labels = Mapping[str, str]
