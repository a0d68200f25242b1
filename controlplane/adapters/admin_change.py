"""One change: checked, worked out, judged by the rules, written once, told alike to every repeat.

One transaction writes the intent, the operation (which is also the audit record: who, what, why,
before and after) and the answer under the caller's request_id. A repeat of the request, at
whatever replica, reads that answer and changes nothing. What a change would do is computed by the
code that will carry it out; a safety rule that says no is named with its numbers and the way
around it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import structlog

from controlplane.adapters.admin_local import LocalChanger
from controlplane.adapters.admin_orders import renewed, with_gates, with_overridden
from controlplane.adapters.admin_ports import Caller, EffectView, IntentStore, WhatIf
from controlplane.adapters.admin_rules import describe, fingerprint_of, obey
from controlplane.adapters.admin_transitions import Change
from controlplane.clock import Clock
from controlplane.model.errors import (
    AmbiguousError,
    InvalidInputError,
    RefusedError,
    UnavailableError,
)
from controlplane.model.intents import Intents
from controlplane.model.permissions import RoleName
from controlplane.ports import Compare, Delete, KeyValue, Put
from controlplane.v1 import admin_pb2 as pb

log = structlog.get_logger(__name__)

REASON_MAX: Final = 500
TTL_MAX_S: Final = 604_800
TTL_DEFAULT_S: Final = {
    "drain": 86_400,
    "failover": 86_400,
    "freeze": 14_400,
    "failback": 3_600,
    "override": 0,
    "readiness": 600,
}
"""How long an intent holds unless the caller says otherwise; an override must say."""
OPERATION_TTL_S: Final = TTL_MAX_S
AGENT_OPERATION_TTL_S: Final = 3_600
"""Agents measure, and again the next minute: their words are in the log, and here for an hour."""
NOTHING_MOVES: Final = EffectView(routes=(), regions=())
RACES_MAX: Final = 20
"""How often a change is worked out anew because another came in between."""


class Changer:
    """Makes changes, each once."""

    def __init__(
        self,
        *,
        intents: IntentStore,
        what_if: WhatIf,
        progress: Callable[[pb.Operation], pb.Operation],
        caller: Caller,
        local: LocalChanger,
        clock: Clock,
    ) -> None:
        self._intents = intents
        self._what_if = what_if
        self._progress = progress
        self._caller = caller
        self._local = local
        self._clock = clock

    async def make(
        self, request: Any, context: grpc.aio.ServicerContext, work_out: Callable[[Intents], Change]
    ) -> pb.Operation:
        """Make the change that `work_out` finds for the intents that hold, and answer with it."""
        mutation: pb.Mutation = request.mutation
        self._check(mutation)
        if mutation.local:
            return await self._local.make(request, context, work_out)
        try:
            return await self._make(request, context, work_out)
        except UnavailableError as error:
            if self._local.coordinated:
                raise
            raise UnavailableError(self._local.refusal(), error.retry_after_ms) from error

    async def _make(
        self, request: Any, context: grpc.aio.ServicerContext, work_out: Callable[[Intents], Change]
    ) -> pb.Operation:
        mutation: pb.Mutation = request.mutation
        fingerprint = fingerprint_of(request)
        for _ in range(RACES_MAX):
            try:
                first = await self._first_answer(mutation, fingerprint)
                return first or await self._attempt(mutation, context, work_out, fingerprint)
            except RefusedError as error:
                # somebody else's change came in between: look again, unless the caller minds
                if error.rule != "etag" or mutation.etag:
                    raise
            except AmbiguousError:
                continue  # it may have happened: the record of the request tells
        raise UnavailableError("too many changes at once; repeat with the same request_id", 200)

    async def _first_answer(self, mutation: pb.Mutation, fingerprint: bytes) -> pb.Operation | None:
        """Return the answer this request got before, None when it is new."""
        if mutation.validate_only or await self._intents.answered(mutation.request_id) is None:
            return None
        # `apply` compares the fingerprint and refuses another request under the same id
        done = await self._intents.apply(mutation.request_id, (), b"", fingerprint=fingerprint)
        return self._progress(pb.Operation.FromString(done.answer))

    async def _attempt(
        self,
        mutation: pb.Mutation,
        context: grpc.aio.ServicerContext,
        work_out: Callable[[Intents], Change],
        fingerprint: bytes,
    ) -> pb.Operation:
        seen = await self._intents.generation()
        stored = await self._intents.raw()
        now = await self._intents.read()
        etag = _etag(seen, stored)
        if mutation.etag and mutation.etag != etag:
            raise RefusedError("etag", "it changed since you read it; read again and retry")
        by, roles = self._caller(context)
        orders, wall_ms = self._intents.orders(stored), self._clock.wall_ms()
        change = work_out(now)
        change, ttl_s = renewed(
            change,
            orders,
            mutation,
            roles,
            default_s=TTL_DEFAULT_S.get(change.kind, 3_600),
            wall_ms=wall_ms,
        )
        still = change.informs or change.renews is not None
        view = NOTHING_MOVES if still else await self._what_if(change.after)
        change = with_overridden(change, view, mutation)
        operation = describe(
            change,
            now,
            mutation,
            with_gates(view, orders),
            by=by,
            etag=etag,
            wall_ms=wall_ms,
            ttl_s=ttl_s,
        )
        obey(operation, mutation, roles)
        if mutation.validate_only:
            return operation
        kept_s = OPERATION_TTL_S if roles - {RoleName.AGENT} else AGENT_OPERATION_TTL_S
        effects = await self._effects(change, operation, mutation, by, ttl_s, kept_s)
        compares: tuple[Compare, ...] = ()
        if not change.informs:  # who tells a measurement gets in nobody's way
            unmoved, moved = self._intents.next_generation(seen, operation.id)
            effects, compares = [moved, *effects], (unmoved,)
        if change.renews is not None:  # one that ended meanwhile begins anew, by the rules
            key = self._intents.intent_delete(*change.renews.key).key
            compares += (Compare(key=key, target="mod", op="==", operand=change.renews.revision),)
        applied = await self._intents.apply(
            mutation.request_id,
            effects,
            operation.SerializeToString(),
            fingerprint=fingerprint,
            compares=compares,
        )
        if not applied.repeated:
            log.info(
                "operator_change",
                kind=change.kind,
                target=change.target,
                by=by,
                reason=mutation.reason,
                request_id=mutation.request_id,
                operation=operation.id,
                unchanged=operation.effect.unchanged,
            )
        return self._progress(pb.Operation.FromString(applied.answer))

    def _check(self, mutation: pb.Mutation) -> None:
        if not mutation.validate_only or mutation.request_id:
            try:
                uuid.UUID(mutation.request_id)
            except ValueError:
                raise InvalidInputError(
                    "mutation.request_id", "must be a UUID drawn by the caller, e.g. from uuidgen"
                ) from None
        if not mutation.reason.strip() and not mutation.validate_only:
            raise InvalidInputError("mutation.reason", "is required: say why (--reason '…')")
        if len(mutation.reason) > REASON_MAX or not mutation.reason.isprintable():
            raise InvalidInputError(
                "mutation.reason", f"must be printable and at most {REASON_MAX} characters"
            )
        if not 0 <= mutation.ttl_s <= TTL_MAX_S:
            raise InvalidInputError("mutation.ttl_s", f"must be 0 to {TTL_MAX_S}")

    async def _effects(
        self,
        change: Change,
        operation: pb.Operation,
        mutation: pb.Mutation,
        by: str,
        ttl_s: int,
        kept_s: int,
    ) -> list[Put | Delete]:
        effects: list[Put | Delete] = [
            self._intents.intent_delete(kind, name) for kind, name in change.deletes
        ]
        for kind, name, body in change.puts:
            effects.append(
                await self._intents.intent_put(
                    kind,
                    name,
                    reason=mutation.reason,
                    by=by,
                    ttl_s=ttl_s,
                    operation=operation.id,
                    **body,
                )
            )
        effects.append(
            await self._intents.operation_put(operation.id, operation.SerializeToString(), kept_s)
        )
        return effects


def _etag(seen: int, stored: Sequence[KeyValue]) -> str:
    marks = f"{seen};" + ",".join(f"{kv.key.decode()}@{kv.mod_revision}" for kv in stored)
    return hashlib.sha256(marks.encode()).hexdigest()[:16]
