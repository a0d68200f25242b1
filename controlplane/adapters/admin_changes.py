"""AdminService, the changes: what an operator asks for becomes an intent in etcd.

Any replica accepts; no leader is needed to accept, so a command is not lost with one. One
transaction writes the intent, the
operation (which is also the audit record: who, what, why, before and after) and the answer under
the caller's request_id.
A repeat of the request, at whatever replica, reads that answer and changes nothing. Asking for
what already holds changes
nothing either and says so.

What a change would do is computed by the code that will carry it out; a safety rule that says no
is named with its numbers
and the way around it.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import grpc
import structlog

from controlplane.adapters.admin_service import AdminReads, Reads
from controlplane.adapters.rpc_errors import typed_errors
from controlplane.adapters.wire import encode_route, timestamp
from controlplane.clock import Clock
from controlplane.model.errors import (
    AmbiguousError,
    InvalidInputError,
    RefusedError,
    UnavailableError,
)
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.intents import Drain, Freeze, Intents, Override
from controlplane.model.plan import Route
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
}
"""How long an intent holds unless the caller says otherwise; an override must say."""
HOLD_DEFAULT_S: Final = 10
HOLD_MAX_S: Final = 3_600
WAIT_DEFAULT_MS: Final = 30_000
WAIT_MAX_MS: Final = 300_000
WAIT_POLL_MS: Final = 100
OPERATION_TTL_S: Final = TTL_MAX_S
OPERATION_ID_MAX: Final = 64
RACES_MAX: Final = 20
"""How often a change is worked out anew because another came in between."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change worked out: the intents afterwards and the writes that bring them about."""

    kind: str
    target: str
    after: Intents
    puts: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    deletes: tuple[tuple[str, str], ...] = ()
    hold_s: int = 0


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
Caller = Callable[[grpc.aio.ServicerContext], tuple[str, frozenset[str]]]
"""Identity of the caller and its roles."""


class AdminService(AdminReads):
    """The whole service: reads and changes."""

    def __init__(
        self,
        reads: Reads,
        *,
        intents: IntentStore,
        what_if: WhatIf,
        progress: Callable[[pb.Operation], pb.Operation],
        caller: Caller,
        clock: Clock,
    ) -> None:
        super().__init__(reads)
        self._intents = intents
        self._what_if = what_if
        self._progress = progress
        self._caller = caller
        self._clock = clock

    # --- the methods --------------------------------------------------------------------------

    @typed_errors
    async def DrainRegion(  # noqa: N802
        self, request: pb.DrainRegionRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Take a region out of service gradually."""
        region = self._region("region", request.region)
        return await self._change(request, context, lambda now: _drain(now, region, "drain"))

    @typed_errors
    async def StartFailover(  # noqa: N802
        self, request: pb.StartFailoverRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Move all traffic off a region at once."""
        region = self._region("from_region", request.from_region)
        return await self._change(request, context, lambda now: _drain(now, region, "failover"))

    @typed_errors
    async def UndrainRegion(  # noqa: N802
        self, request: pb.UndrainRegionRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """End a drain."""
        region = self._region("region", request.region)
        return await self._change(request, context, lambda now: _undrain(now, region))

    @typed_errors
    async def StartFailback(  # noqa: N802
        self, request: pb.StartFailbackRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Let a region return now, by ramp."""
        region = self._region("region", request.region)
        return await self._change(request, context, lambda now: _failback(now, region))

    @typed_errors
    async def Freeze(  # noqa: N802
        self, request: pb.FreezeRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Forbid automatic change."""
        reason = request.mutation.reason
        return await self._change(request, context, lambda now: _freeze(now, reason))

    @typed_errors
    async def Unfreeze(  # noqa: N802
        self, request: pb.UnfreezeRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Allow automatic change again."""
        return await self._change(request, context, _unfreeze)

    @typed_errors
    async def SetOverride(  # noqa: N802
        self, request: pb.SetOverrideRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Fix one channel's weights until the override expires."""
        weights = self._weights(request)
        if request.mutation.ttl_s <= 0:
            raise InvalidInputError(
                "mutation.ttl_s", "is required: an override expires (weir override … --for 30m)"
            )
        channel = ChannelName(request.channel)
        return await self._change(request, context, lambda now: _override(now, channel, weights))

    @typed_errors
    async def ClearOverride(  # noqa: N802
        self, request: pb.ClearOverrideRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """End an override."""
        channel = self._channel(request.channel)
        return await self._change(request, context, lambda now: _clear(now, channel))

    @typed_errors
    async def StartDrill(  # noqa: N802
        self, request: pb.StartDrillRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Fail a region over as an exercise, and bring it back."""
        region = self._region("region", request.region)
        if not 0 <= request.hold_s <= HOLD_MAX_S:
            raise InvalidInputError("hold_s", f"must be 0 (for {HOLD_DEFAULT_S}) to {HOLD_MAX_S}")
        hold_s = request.hold_s or HOLD_DEFAULT_S
        return await self._change(
            request, context, lambda now: _drain(now, region, "drill", hold_s=hold_s)
        )

    @typed_errors
    async def GetOperation(  # noqa: N802
        self, request: pb.GetOperationRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Tell how far an operation has come."""
        del context
        return await self._operation(request.id)

    @typed_errors
    async def WaitOperation(  # noqa: N802
        self, request: pb.WaitOperationRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Wait until an operation is done, for a bounded time."""
        del context
        if not 0 <= request.timeout_ms <= WAIT_MAX_MS:
            raise InvalidInputError("timeout_ms", f"must be 0 to {WAIT_MAX_MS}")
        end_ms = self._clock.monotonic_ms() + (request.timeout_ms or WAIT_DEFAULT_MS)
        while True:
            operation = await self._operation(request.id)
            if operation.done or self._clock.monotonic_ms() >= end_ms:
                return operation
            await self._clock.sleep_ms(WAIT_POLL_MS)

    @typed_errors
    async def CancelOperation(  # noqa: N802
        self, request: pb.CancelOperationRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Take back what an operation asked for."""
        operation = await self._operation(request.id)
        region, channel = RegionName(operation.target), ChannelName(operation.target)
        undo: dict[str, Callable[[Intents], Change]] = {
            "drain": lambda now: _undrain(now, region),
            "failover": lambda now: _undrain(now, region),
            "drill": lambda now: _undrain(now, region),
            "override": lambda now: _clear(now, channel),
            "freeze": _unfreeze,
            "failback": lambda now: _drain(now, region, "drain"),
        }
        if operation.kind not in undo:
            raise RefusedError(
                "cancel", f"a {operation.kind} cannot be taken back; ask for the opposite"
            )
        return await self._change(request, context, undo[operation.kind])

    # --- one change ---------------------------------------------------------------------------

    async def _change(
        self, request: Any, context: grpc.aio.ServicerContext, work_out: Callable[[Intents], Change]
    ) -> pb.Operation:
        mutation: pb.Mutation = request.mutation
        self._check(mutation)
        fingerprint = request.SerializeToString(deterministic=True)
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
        change = work_out(now)
        by, roles = self._caller(context)
        operation = await self._describe(change, now, mutation, by, etag)
        self._obey_rules(operation, mutation, roles)
        if mutation.validate_only:
            return operation
        unmoved, moved = self._intents.next_generation(seen, operation.id)
        effects = [moved, *await self._effects(change, operation, mutation, by)]
        applied = await self._intents.apply(
            mutation.request_id,
            effects,
            operation.SerializeToString(),
            fingerprint=fingerprint,
            compares=(unmoved,),
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

    async def _describe(
        self, change: Change, now: Intents, mutation: pb.Mutation, by: str, etag: str
    ) -> pb.Operation:
        view = await self._what_if(change.after)
        wall_ms = self._clock.wall_ms()
        unchanged = not change.puts and not change.deletes
        operation = pb.Operation(
            id=f"op-{uuid.uuid4()}",
            kind=change.kind,
            target=change.target,
            stage="completed" if unchanged else "accepted",
            done=unchanged,
            by=by,
            reason=mutation.reason,
            created_at=timestamp(wall_ms),
            etag=etag,
            validate_only=mutation.validate_only,
            hold_s=change.hold_s,
            commit_ms=-1,
            converge_ms=-1,
            message="already so; nothing changed" if unchanged else "",
            effect=pb.Effect(
                routes=[encode_route(route) for route in view.routes],
                regions=[
                    pb.RegionEffect(
                        region=name,
                        load_before_bp=before,
                        load_after_bp=after,
                        utilisation_after_bp=used,
                    )
                    for name, before, after, used in view.regions
                ],
                refusals=[
                    pb.RuleRefusal(rule=r.rule, message=r.message, remedy=r.remedy)
                    for r in view.refusals
                ],
                unchanged=unchanged or change.after == now,
            ),
        )
        ttl_s = self._ttl(change, mutation)
        if change.puts and ttl_s:
            operation.expires_at.CopyFrom(timestamp(wall_ms + ttl_s * 1000))
        return operation

    def _obey_rules(
        self, operation: pb.Operation, mutation: pb.Mutation, roles: frozenset[str]
    ) -> None:
        """Refuse what a safety rule forbids, unless it is overridden by somebody who may."""
        if operation.effect.unchanged:
            return
        if mutation.override_rules and "breakglass" not in roles:
            raise RefusedError("breakglass", "overriding a safety rule needs the role breakglass")
        standing = [r for r in operation.effect.refusals if r.rule not in mutation.override_rules]
        if standing and not mutation.validate_only:
            first = standing[0]
            remedy = f" {first.remedy}" if first.remedy else ""
            raise RefusedError(
                first.rule,
                f"{first.message}.{remedy} To override: --override-rule {first.rule}"
                " (role breakglass); the change then expires",
            )

    @staticmethod
    def _ttl(change: Change, mutation: pb.Mutation) -> int:
        return mutation.ttl_s or TTL_DEFAULT_S.get(change.kind, 3_600)

    async def _effects(
        self, change: Change, operation: pb.Operation, mutation: pb.Mutation, by: str
    ) -> list[Put | Delete]:
        ttl_s = self._ttl(change, mutation)
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
            await self._intents.operation_put(
                operation.id, operation.SerializeToString(), OPERATION_TTL_S
            )
        )
        return effects

    async def _operation(self, op_id: str) -> pb.Operation:
        if not op_id.startswith("op-") or len(op_id) > OPERATION_ID_MAX or not op_id.isprintable():
            raise InvalidInputError("id", "is no operation; they look like op-1234abcd…")
        kv = await self._intents.operation(op_id)
        if kv is None:
            raise InvalidInputError("id", f"no operation {op_id}; they are kept for a week")
        return self._progress(pb.Operation.FromString(kv.value))

    # --- names --------------------------------------------------------------------------------

    def _region(self, field: str, name: str) -> RegionName:
        known = [str(region.name) for region in self._reads.topology().regions]
        if name not in known:
            raise InvalidInputError(
                field, f"unknown region {name[:64]!r}; known: {', '.join(known)}"
            )
        return RegionName(name)

    def _channel(self, name: str) -> ChannelName:
        known = [str(channel.name) for channel in self._reads.topology().channels]
        if name not in known:
            raise InvalidInputError(
                "channel", f"unknown channel {name[:64]!r}; known: {', '.join(known)}"
            )
        return ChannelName(name)

    def _weights(self, request: pb.SetOverrideRequest) -> tuple[tuple[RegionName, int], ...]:
        channel = self._reads.topology().channel(self._channel(request.channel))
        weights: dict[RegionName, int] = dict.fromkeys(channel.regions, 0)
        for item in request.weights:
            name = RegionName(item.region)
            if name not in weights:
                raise InvalidInputError(
                    "weights.region",
                    f"{item.region[:64]!r} does not serve {request.channel}; "
                    f"it is served by {', '.join(channel.regions)}",
                )
            if item.weight_bp < 0:
                raise InvalidInputError("weights.weight_bp", "must be at least 0")
            weights[name] = item.weight_bp
        total = sum(weights.values())
        if total != FULL_BP:
            raise InvalidInputError("weights", f"must sum to {FULL_BP} basis points, not {total}")
        return tuple(sorted(weights.items()))


def _etag(seen: int, stored: Sequence[KeyValue]) -> str:
    marks = f"{seen};" + ",".join(f"{kv.key.decode()}@{kv.mod_revision}" for kv in stored)
    return hashlib.sha256(marks.encode()).hexdigest()[:16]


# --- changes as functions of the intents that hold now ------------------------------------------


def _drain(now: Intents, region: RegionName, kind: str, *, hold_s: int = 0) -> Change:
    held = next((d for d in now.drains if d.region == region), None)
    immediate, drill = kind != "drain", kind == "drill"
    if held is not None and held.immediate >= immediate and not drill:
        return Change(kind=kind, target=region, after=now)
    drain = Drain(region=region, reason="", immediate=immediate, drill=drill)
    others = tuple(d for d in now.drains if d.region != region)
    after = replace(
        now,
        drains=tuple(sorted((*others, drain), key=lambda d: d.region)),
        failback=tuple(r for r in now.failback if r != region),
    )
    return Change(
        kind=kind,
        target=region,
        after=after,
        puts=(("drain", region, {"immediate": immediate, "drill": drill, "hold_s": hold_s}),),
        deletes=(("failback", region),) if region in now.failback else (),
        hold_s=hold_s,
    )


def _undrain(now: Intents, region: RegionName) -> Change:
    if all(d.region != region for d in now.drains):
        return Change(kind="undrain", target=region, after=now)
    after = replace(now, drains=tuple(d for d in now.drains if d.region != region))
    return Change(kind="undrain", target=region, after=after, deletes=(("drain", region),))


def _failback(now: Intents, region: RegionName) -> Change:
    if region in now.failback and all(d.region != region for d in now.drains):
        return Change(kind="failback", target=region, after=now)
    after = replace(
        now,
        drains=tuple(d for d in now.drains if d.region != region),
        failback=tuple(sorted({*now.failback, region})),
    )
    return Change(
        kind="failback",
        target=region,
        after=after,
        puts=(("failback", region, {}),),
        deletes=(("drain", region),) if any(d.region == region for d in now.drains) else (),
    )


def _freeze(now: Intents, reason: str) -> Change:
    if now.freeze is not None:
        return Change(kind="freeze", target="", after=now)
    after = replace(now, freeze=Freeze(reason=reason))
    return Change(kind="freeze", target="", after=after, puts=(("freeze", "all", {}),))


def _unfreeze(now: Intents) -> Change:
    if now.freeze is None:
        return Change(kind="unfreeze", target="", after=now)
    return Change(
        kind="unfreeze", target="", after=replace(now, freeze=None), deletes=(("freeze", "all"),)
    )


def _override(
    now: Intents, channel: ChannelName, weights: tuple[tuple[RegionName, int], ...]
) -> Change:
    if any(o.channel == channel and o.weights == weights for o in now.overrides):
        return Change(kind="override", target=channel, after=now)
    others = tuple(o for o in now.overrides if o.channel != channel)
    added = Override(channel=channel, weights=weights, reason="")
    after = replace(now, overrides=tuple(sorted((*others, added), key=lambda o: o.channel)))
    body = {"weights": {str(region): bp for region, bp in weights}}
    return Change(kind="override", target=channel, after=after, puts=(("override", channel, body),))


def _clear(now: Intents, channel: ChannelName) -> Change:
    if all(o.channel != channel for o in now.overrides):
        return Change(kind="clear_override", target=channel, after=now)
    after = replace(now, overrides=tuple(o for o in now.overrides if o.channel != channel))
    return Change(
        kind="clear_override", target=channel, after=after, deletes=(("override", channel),)
    )
