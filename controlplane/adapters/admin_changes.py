"""AdminService, the changes: what an operator asks for becomes an intent in etcd.

Any replica accepts; no leader is needed to accept, so a command is not lost with one. Here are the
methods and the names they check; `admin_transitions` says what each writes, `admin_change` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import grpc

from controlplane.adapters import admin_transitions as transitions
from controlplane.adapters.admin_change import TTL_DEFAULT_S, Changer
from controlplane.adapters.admin_local import LocalChanger
from controlplane.adapters.admin_ports import Caller, IntentStore, Reads, Stands, WhatIf
from controlplane.adapters.admin_service import AdminReads
from controlplane.adapters.admin_transitions import Change
from controlplane.adapters.rpc_errors import typed_errors
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError, RefusedError
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Phase
from controlplane.v1 import admin_pb2 as pb

HOLD_DEFAULT_S: Final = 10
HOLD_MAX_S: Final = 3_600
WAIT_DEFAULT_MS: Final = 30_000
WAIT_MAX_MS: Final = 300_000
WAIT_POLL_MS: Final = 100
OPERATION_ID_MAX: Final = 64
LAG_MAX_MS: Final = 604_800_000
READINESS_MAX_S: Final = 86_400
"""A measurement older than a day says nothing."""


class AdminService(AdminReads):
    """The whole service: reads and changes."""

    def __init__(
        self,
        reads: Reads,
        *,
        intents: IntentStore,
        what_if: WhatIf,
        stands: Stands,
        progress: Callable[[pb.Operation], pb.Operation],
        caller: Caller,
        speaks_for: Callable[[grpc.aio.ServicerContext], str | None],
        local: LocalChanger,
        clock: Clock,
    ) -> None:
        super().__init__(reads)
        self._speaks_for = speaks_for
        self._stands = stands
        self._intents = intents
        self._progress = progress
        self._clock = clock
        self._changer = Changer(
            intents=intents,
            what_if=what_if,
            progress=progress,
            caller=caller,
            local=local,
            clock=clock,
        )

    # --- the methods --------------------------------------------------------------------------

    @typed_errors
    async def DrainRegion(  # noqa: N802
        self, request: pb.DrainRegionRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Take a region out of service; payments under way finish."""
        region = self._region("region", request.region)
        return await self._changer.make(
            request, context, lambda now: transitions.drain(now, region, "drain")
        )

    @typed_errors
    async def StartFailover(  # noqa: N802
        self, request: pb.StartFailoverRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Move all traffic off a region at once."""
        region = self._region("from_region", request.from_region)
        return await self._changer.make(
            request, context, lambda now: transitions.drain(now, region, "failover")
        )

    @typed_errors
    async def UndrainRegion(  # noqa: N802
        self, request: pb.UndrainRegionRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """End a drain."""
        region = self._region("region", request.region)
        return await self._changer.make(
            request, context, lambda now: transitions.undrain(now, region)
        )

    @typed_errors
    async def StartFailback(  # noqa: N802
        self, request: pb.StartFailbackRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Let a region return now, by ramp."""
        region = self._region("region", request.region)
        stands = await self._stands(region)
        past_gates = "gate" in request.mutation.override_rules
        return await self._changer.make(
            request,
            context,
            lambda now: transitions.failback(now, region, stands, past_gates=past_gates),
        )

    @typed_errors
    async def Freeze(  # noqa: N802
        self, request: pb.FreezeRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Forbid automatic change."""
        reason = request.mutation.reason
        return await self._changer.make(
            request, context, lambda now: transitions.freeze(now, reason)
        )

    @typed_errors
    async def Unfreeze(  # noqa: N802
        self, request: pb.UnfreezeRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Allow automatic change again."""
        return await self._changer.make(request, context, transitions.unfreeze)

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
        return await self._changer.make(
            request, context, lambda now: transitions.override(now, channel, weights)
        )

    @typed_errors
    async def ClearOverride(  # noqa: N802
        self, request: pb.ClearOverrideRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """End an override."""
        channel = self._channel(request.channel)
        return await self._changer.make(
            request, context, lambda now: transitions.clear(now, channel)
        )

    @typed_errors
    async def StartDrill(  # noqa: N802
        self, request: pb.StartDrillRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Fail a region over as an exercise, and bring it back."""
        region = self._region("region", request.region)
        if not 0 <= request.hold_s <= HOLD_MAX_S:
            raise InvalidInputError("hold_s", f"must be 0 (for {HOLD_DEFAULT_S}) to {HOLD_MAX_S}")
        hold_s = request.hold_s or HOLD_DEFAULT_S
        return await self._changer.make(
            request, context, lambda now: transitions.drain(now, region, "drill", hold_s=hold_s)
        )

    @typed_errors
    async def SetReadiness(  # noqa: N802
        self, request: pb.SetReadinessRequest, context: grpc.aio.ServicerContext
    ) -> pb.Operation:
        """Say how far a region's replication lags."""
        region = self._region("region", request.region)
        own = self._speaks_for(context)
        if own is not None and own != region:
            raise InvalidInputError("region", f"the certificate speaks for {own}, not for {region}")
        told = request.HasField("replication_lag_ms")
        lag_ms = request.replication_lag_ms if told else None
        if lag_ms is not None and not 0 <= lag_ms <= LAG_MAX_MS:
            raise InvalidInputError("replication_lag_ms", f"must be 0 to {LAG_MAX_MS}")
        ttl_s = request.mutation.ttl_s or TTL_DEFAULT_S["readiness"]
        if ttl_s > READINESS_MAX_S:
            raise InvalidInputError("mutation.ttl_s", f"must be at most {READINESS_MAX_S} here")
        until_ms = self._clock.wall_ms() + ttl_s * 1000
        return await self._changer.make(
            request, context, lambda now: transitions.readiness(now, region, lag_ms, until_ms)
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
        over = operation.done
        if operation.kind == "failback" and operation.stage != "accepted":
            over = over or (await self._stands(region)).phase is Phase.HEALTHY
        undo: dict[str, Callable[[Intents], Change]] = {
            "drain": lambda now: transitions.undrain(now, region),
            "failover": lambda now: transitions.undrain(now, region),
            "drill": lambda now: transitions.undrain(now, region),
            "override": lambda now: transitions.clear(now, channel),
            "freeze": transitions.unfreeze,
            "failback": lambda now: transitions.abort(now, region, over=over),
            "readiness": lambda now: transitions.readiness(now, region, None, 0),
        }
        if operation.kind not in undo:
            raise RefusedError(
                "cancel", f"a {operation.kind} cannot be taken back; ask for the opposite"
            )
        return await self._changer.make(request, context, undo[operation.kind])

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
