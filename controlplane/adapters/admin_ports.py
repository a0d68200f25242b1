"""What the changes need: a store of intents, a way to ask what if, and who is asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from controlplane.model.ids import RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Route, Standing
from controlplane.ports import Compare, Delete, KeyValue, Put


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


WhatIf = Callable[[Intents], Awaitable[EffectView]]
Stands = Callable[[RegionName], Awaitable[Standing]]
"""Where a region stands by the decision's own clock."""
Caller = Callable[[grpc.aio.ServicerContext], tuple[str, frozenset[str]]]
"""Identity of the caller and its roles."""
