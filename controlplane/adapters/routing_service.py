"""RoutingService: the committed plan for data planes, sidecars and SDKs. Works without etcd from
the last good plan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import grpc
import structlog

from controlplane.adapters.rpc_errors import typed_errors, typed_stream_errors
from controlplane.adapters.wire import encode_plan
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.ids import Epoch
from controlplane.model.plan import Plan
from controlplane.v1 import common_pb2, routing_pb2, routing_pb2_grpc

log = structlog.get_logger(__name__)

KINDS = ("agent", "watch")
"""Kinds a subscriber may name."""


class Board(Protocol):
    """The plan in force (runtime.board)."""

    @property
    def plan(self) -> Plan | None:
        """The plan, None before the first."""
        ...

    @property
    def served(self) -> Plan | None:
        """What subscribers follow, with the time left of a local override."""
        ...

    def watch(self, after_epoch: int = 0) -> AsyncIterator[Plan]:
        """Yield newer plans for ever."""
        ...


class Registry(Protocol):
    """Who follows the plan (runtime.subscribers)."""

    def open(self, kind: str, name: str, region: str, now_ms: int) -> None:
        """Count a stream."""
        ...

    def close(self, name: str) -> None:
        """Forget a stream."""
        ...

    def ack(self, name: str, epoch: Epoch, now_ms: int) -> None:
        """Note an applied epoch."""
        ...

    def refuse(self, name: str, error: str, now_ms: int) -> None:
        """Note why a plan was refused."""
        ...


class RoutingService(routing_pb2_grpc.RoutingServiceServicer):
    """Serves the plan this replica has read back from etcd."""

    def __init__(self, board: Board, registry: Registry, clock: Clock) -> None:
        self._board = board
        self._registry = registry
        self._clock = clock

    @typed_errors
    async def GetPlan(  # noqa: N802
        self, request: routing_pb2.GetPlanRequest, context: grpc.aio.ServicerContext
    ) -> common_pb2.Plan:
        """Return the committed plan: whoever asks once would not learn of an override's end."""
        del request, context
        plan = self._board.plan
        if plan is None:
            raise UnavailableError(
                "no plan yet: no leader has committed one, or etcd is not reachable"
            )
        return encode_plan(plan)

    @typed_stream_errors
    async def WatchPlan(  # noqa: N802
        self, request: routing_pb2.WatchPlanRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[common_pb2.Plan]:
        """Yield the plan at once, then every newer one."""
        if request.after_epoch < 0:
            raise InvalidInputError("after_epoch", "must be at least 0")
        del context
        kind = request.kind or "watch"
        if kind not in KINDS:
            raise InvalidInputError("kind", f"must be one of {', '.join(KINDS)}")
        self._registry.open(kind, request.subscriber, request.region, self._clock.monotonic_ms())
        try:
            async for plan in self._board.watch(request.after_epoch):
                yield encode_plan(self._now(plan))
        finally:
            self._registry.close(request.subscriber)

    def _now(self, plan: Plan) -> Plan:
        """Return an override with the time it has left now."""
        served = self._board.served
        if plan.local is None or served is None or served.local is None:
            return plan
        return served if served.epoch == plan.epoch else plan

    @typed_errors
    async def AckPlan(  # noqa: N802
        self, request: routing_pb2.AckPlanRequest, context: grpc.aio.ServicerContext
    ) -> routing_pb2.AckPlanResponse:
        """Note what a subscriber has applied, or why it refused."""
        del context
        if request.epoch < 0:
            raise InvalidInputError("epoch", "must be at least 0")
        if not request.subscriber:
            raise InvalidInputError("subscriber", "is required: the name used in WatchPlan")
        if request.error:
            log.warning(
                "plan_refused_by_subscriber",
                subscriber=request.subscriber[:128],
                epoch=request.epoch,
                error=request.error[:500],
            )
            now_ms = self._clock.monotonic_ms()
            self._registry.refuse(request.subscriber, request.error, now_ms)
            return routing_pb2.AckPlanResponse()
        plan = self._board.plan
        if plan is None or request.epoch > plan.epoch:
            raise InvalidInputError("epoch", "was never served by this replica")
        self._registry.ack(request.subscriber, Epoch(request.epoch), self._clock.monotonic_ms())
        return routing_pb2.AckPlanResponse()
