"""AgentService: reports come in, each is answered once and in order.

A malformed report is answered with its error, counted, and changes nothing; the stream goes on,
since one bad field must not cost a region its voice. A report from too far in the future is refused
as malformed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import grpc
import structlog

from controlplane.adapters.rpc_errors import abort, to_status
from controlplane.adapters.wire import unix_ms
from controlplane.adapters.wire_evidence import decode_report
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError
from controlplane.model.evidence import Report
from controlplane.model.ids import Epoch
from controlplane.v1 import agent_pb2, agent_pb2_grpc

log = structlog.get_logger(__name__)

FUTURE_MS: Final = 300_000
"""A report dated later than this is refused: the signature window of the channels is 300 s."""


class ReportSink(Protocol):
    """Where checked reports go (runtime.inbox)."""

    def accept(self, report: Report, now_ms: int) -> bool:
        """Count a report; False for a repetition."""
        ...


class ReportMetrics(Protocol):
    """What is counted of reports."""

    def report(self, region: str, result: str) -> None:
        """Count a report: accepted, duplicate, invalid or refused."""
        ...


class AgentService(agent_pb2_grpc.AgentServiceServicer):
    """Serves the agents of this region, and of any other whose own replica is gone."""

    def __init__(
        self,
        sink: ReportSink,
        clock: Clock,
        metrics: ReportMetrics,
        plan_epoch: Callable[[], Epoch],
        interval_ms: Callable[[], int],
        *,
        regions: Callable[[], frozenset[str]],
        plan_confirmed: Callable[[], bool],
        may_report_for: Callable[[grpc.aio.ServicerContext], str | None],
        max_streams: int,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._metrics = metrics
        self._plan_epoch = plan_epoch
        self._interval_ms = interval_ms
        self._regions = regions
        self._plan_confirmed = plan_confirmed
        self._may_report_for = may_report_for
        self._max_streams = max_streams
        self._streams = 0

    async def Report(  # noqa: N802 - the name is the API's
        self,
        request_iterator: AsyncIterator[agent_pb2.ReportRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[agent_pb2.ReportResponse]:
        """Answer every report once, in order."""
        if self._streams >= self._max_streams:
            await abort(
                context,
                UnavailableError(
                    f"this replica takes at most {self._max_streams} agents; use another one", 5000
                ),
            )
        self._streams += 1
        own = self._may_report_for(context)
        try:
            async for request in request_iterator:
                yield self._answer(request, own)
        finally:
            self._streams -= 1

    def _answer(
        self, request: agent_pb2.ReportRequest, own: str | None
    ) -> agent_pb2.ReportResponse:
        response = agent_pb2.ReportResponse(
            seq=request.seq,
            plan_epoch=self._plan_epoch(),
            interval_ms=self._interval_ms(),
            plan_confirmed=self._plan_confirmed(),
        )
        # the label of an unknown region must not come from the network
        region = request.region if request.region in self._regions() else "unknown"
        try:
            if own is not None and request.region != own:
                raise InvalidInputError(
                    "region", f"the certificate speaks for {own}, not for {request.region[:64]!r}"
                )
            ahead_ms = unix_ms(request.sent_at) - self._clock.wall_ms()
            if ahead_ms > FUTURE_MS:
                raise InvalidInputError(
                    "sent_at", f"lies {ahead_ms} ms in the future; set the agent's clock"
                )
            fresh = self._sink.accept(decode_report(request), self._clock.monotonic_ms())
            self._metrics.report(region, "accepted" if fresh else "duplicate")
        except WeirError as error:
            result = "invalid" if isinstance(error, InvalidInputError) else "refused"
            self._metrics.report(region, result)
            log.warning(
                "report_refused", region=region, agent=request.agent_id[:64], error=str(error)
            )
            response.error.CopyFrom(to_status(error))
        return response
