"""What the admin service needs. Reads: what a replica knows, and how old it is. Changes: a store of
intents, a way to ask what if, and who is asking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from controlplane.clock import Clock
from controlplane.model.evidence import Digest, Evidence, Subscriber
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.intents import Intents, Order
from controlplane.model.plan import Plan, Route, RuleStep, Standing
from controlplane.model.topology import Region, Topology
from controlplane.ports import Compare, Delete, KeyValue, Put
from controlplane.v1 import admin_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A safety rule that says no, with the numbers and the way around."""

    rule: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectView:
    """What a change would do: routes afterwards, per region (name, before bp, after bp,
    utilisation bp)."""

    routes: tuple[Route, ...]
    regions: tuple[tuple[str, int, int, int], ...]
    refusals: tuple[Refusal, ...] = ()


class Applied(Protocol):
    """Outcome of writing a change."""

    @property
    def answer(self) -> bytes:
        """The recorded answer."""
        ...

    @property
    def repeated(self) -> bool:
        """Whether it was recorded before."""
        ...


class IntentStore(Protocol):
    """Where intents and operations live (adapters.etcd_intents)."""

    async def read(self) -> Intents:
        """Linearizable read of the intents."""
        ...

    async def raw(self) -> Sequence[KeyValue]:
        """Return the intents as stored."""
        ...

    def orders(self, stored: Sequence[KeyValue]) -> Sequence[Order]:
        """Return who asked for what of the intents as stored."""
        ...

    async def generation(self) -> int:
        """Return the revision of the last change."""
        ...

    def next_generation(self, seen: int, by: str) -> tuple[Compare, Put]:
        """Make the condition that nothing changed since, and the write that says it did now."""
        ...

    async def intent_put(
        self, kind: str, name: str, *, reason: str, by: str, ttl_s: int, **body: Any
    ) -> Put:
        """Make the write of an intent."""
        ...

    def intent_delete(self, kind: str, name: str) -> Delete:
        """Make the deletion of an intent."""
        ...

    async def operation_put(self, op_id: str, value: bytes, ttl_s: int) -> Put:
        """Make the write of an operation."""
        ...

    async def operation(self, op_id: str) -> KeyValue | None:
        """Read an operation."""
        ...

    async def answered(self, request_id: str) -> bytes | None:
        """Return the recorded answer of a request."""
        ...

    async def apply(
        self,
        request_id: str,
        effects: Sequence[Put | Delete],
        answer: bytes,
        *,
        fingerprint: bytes = b"",
        compares: Sequence[Compare] = (),
    ) -> Applied:
        """Write effects and answer once per request_id."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderView:
    """Who leads as far as this replica knows; `heartbeat_age_ms` is None when never seen."""

    replica: str = ""
    region: str = ""
    term: int = 0
    heartbeat_age_ms: int | None = None
    coordinated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteView:
    """One vantage's opinion of a region."""

    vantage: str
    opinion: str
    last_success_age_ms: int | None
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """What the decision state tells of the regions: where their load is going, and what is said of
    them. `old_ms` as in `Reads.old_ms`."""

    goal: Mapping[RegionName, int]
    votes: Mapping[RegionName, Sequence[VoteView]]
    old_ms: int | None


class EventSource(Protocol):
    """Events and failovers (the journal)."""

    @property
    def age_ms(self) -> int:
        """Age of what is remembered, -1 when nothing is."""
        ...

    async def events(
        self, limit: int, before: int | None
    ) -> tuple[Sequence[admin_pb2.Event], int | None, int | None]:
        """Newest first, the `before` of the next page, and as in `Reads.old_ms`."""
        ...

    async def failovers(self, limit: int) -> Sequence[admin_pb2.Failover]:
        """Newest first."""
        ...

    def follow(self, backlog: int) -> AsyncIterator[admin_pb2.Event]:
        """Yield the last `backlog` events, oldest first, then new ones for ever."""
        ...

    def running_failover(self) -> admin_pb2.Failover | None:
        """Return the running failover, None while there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What the read side looks at; each is asked anew for every call."""

    cluster: str
    replica: str
    region: str
    topology: Callable[[], Topology]
    plan: Callable[[], Plan | None]
    served: Callable[[], Plan | None]
    """What subscribers follow: the plan, or a local override of it."""
    entries: Callable[[], Sequence[tuple[Digest, int]]]
    subscribers: Callable[[], Sequence[Subscriber]]
    silent: Callable[[], Sequence[Subscriber]]
    """Who was behind when last heard of, and is not live any more."""
    leader: Callable[[], LeaderView]
    evidence: Callable[[], Evidence | None]
    insight: Callable[[], Awaitable[Insight]]
    explain: Callable[[ChannelName], Awaitable[tuple[Sequence[RuleStep], int | None]]]
    """The steps, and as in `old_ms`."""
    configured: Callable[[], dict[str, tuple[str, str]]]
    alarms: Callable[[], Sequence[str]]
    journal: EventSource
    unwritten: Callable[[], Sequence[admin_pb2.Operation]]
    """What this replica did by itself and etcd does not have yet, oldest first."""
    orders: Callable[[], Sequence[Order]]
    """What stands by an operator's word, as last read."""
    lag_ms: Callable[[Region], float | None]
    old_ms: Callable[[], int | None]
    """None while etcd answers this replica, else how long ago it last did, -1 for never."""
    clock: Clock


WhatIf = Callable[[Intents], Awaitable[EffectView]]
Stands = Callable[[RegionName], Awaitable[Standing]]
"""Where a region stands by the decision's own clock."""
Caller = Callable[[grpc.aio.ServicerContext], tuple[str, frozenset[str]]]
"""Identity of the caller and its roles."""
