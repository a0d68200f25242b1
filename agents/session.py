"""One session with one replica: reports out, answers and plans in.

Three conversations share a connection: the report stream, WatchPlan, and AckPlan. The report stream
is the pulse: every report is answered, so `SILENCE_MS` without an answer ends the session. That is
how a hung replica is found, whose kernel keeps the socket open and answers keepalives. WatchPlan
may be silent for days; that it is stuck shows when the answers name an epoch which it does not
bring.

A refused report is logged, counted and not repeated: the next one says everything again.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final, Protocol

import grpc

from agents.apply import Applier, Verdict
from agents.report import Reporter
from agents.servers import Rotation, backoff_ms
from controlplane.clock import Clock
from controlplane.logging import get
from controlplane.model.errors import WeirError
from controlplane.v1 import agent_pb2, agent_pb2_grpc, routing_pb2, routing_pb2_grpc

SILENCE_MS: Final = 2_000
"""Longest wait for an answer; also for the first, so it bounds connecting too."""
PLAN_LAG_MS: Final = 2_000
"""Longest time an epoch may be announced and not brought."""
ACK_TIMEOUT_S: Final = 2.0
WATCH_TRIES: Final = 5
"""Failures of WatchPlan in a row after which the replica is given up."""
INTERVAL_FACTOR_MAX: Final = 4
"""A replica may slow reports down or speed them up by this factor, no more."""

log = get("link")


class SessionOver(WeirError):  # noqa: N818 - an end, not always an error
    """The session has ended; `homeward` when it was given up for the home replica."""

    def __init__(self, reason: str, *, homeward: bool = False) -> None:
        super().__init__(reason)
        self.homeward = homeward


class LinkMetrics(Protocol):
    """What is counted of the link."""

    def report(self, result: str) -> None:
        """Count an answer: accepted, invalid or refused."""
        ...

    def set_link_up(self, up: bool) -> None:
        """Set whether a replica answers."""
        ...


class Session:
    """Talks to the replica behind `channel` until something ends it."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        reporter: Reporter,
        applier: Applier,
        clock: Clock,
        rng: random.Random,
        metrics: LinkMetrics,
        *,
        interval_ms: int,
    ) -> None:
        self._agent = agent_pb2_grpc.AgentServiceStub(channel)
        self._routing = routing_pb2_grpc.RoutingServiceStub(channel)
        self._reporter = reporter
        self._applier = applier
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._base_interval_ms = interval_ms
        self._interval_ms = interval_ms
        self._refusal = ""
        self._served_epoch = 0
        self._seen_epoch = 0
        self._behind_since_ms: int | None = None
        self._acked_epoch = 0
        self._answer = asyncio.Event()
        self.up_since_ms: int | None = None

    async def run(self, stop: asyncio.Event, rotation: Rotation, look: Any) -> None:
        """Report and follow plans; always ends by raising SessionOver (in a group)."""
        call = self._agent.Report()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send(call, stop), name="report-send")
            group.create_task(self._receive(call, stop), name="report-receive")
            group.create_task(self._watch(), name="plan-watch")
            group.create_task(self._acknowledge(), name="plan-ack")
            if not rotation.at_home:
                group.create_task(self._look_home(rotation, look), name="look-home")

    # --- reports -------------------------------------------------------------------------------

    async def _send(self, call: Any, stop: asyncio.Event) -> None:
        try:
            while not stop.is_set():
                await call.write(self._reporter.build())
                await _wait(stop, self._interval_ms)
            await call.write(self._reporter.build())
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise SessionOver(_reason(error)) from error

    async def _receive(self, call: Any, stop: asyncio.Event) -> None:
        while True:
            try:
                async with asyncio.timeout(SILENCE_MS / 1000):
                    answer = await _read(call)
            except TimeoutError as error:
                raise SessionOver(f"silent for {SILENCE_MS} ms") from error
            if answer is None:
                raise SessionOver("stopped" if stop.is_set() else "stream closed by the replica")
            self._take(answer)

    def _take(self, answer: agent_pb2.ReportResponse) -> None:
        now_ms = self._clock.monotonic_ms()
        if self.up_since_ms is None:
            self.up_since_ms = now_ms
            self._metrics.set_link_up(True)
        self._count(answer)
        if answer.interval_ms > 0:
            low = self._base_interval_ms // INTERVAL_FACTOR_MAX
            high = min(self._base_interval_ms * INTERVAL_FACTOR_MAX, SILENCE_MS // 2)
            self._interval_ms = max(low, min(high, answer.interval_ms))
        self._served_epoch = answer.plan_epoch
        if answer.plan_confirmed:
            self._applier.confirm(answer.plan_epoch)
        self._judge_watch(now_ms)
        self._answer.set()

    def _count(self, answer: agent_pb2.ReportResponse) -> None:
        if not answer.HasField("error"):
            self._metrics.report("accepted")
            self._refusal = ""
            return
        invalid = answer.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        self._metrics.report("invalid" if invalid else "refused")
        if answer.error.message != self._refusal:  # said once, counted every time
            self._refusal = answer.error.message
            log.error("report_refused", seq=answer.seq, error=self._refusal[:500])

    def _judge_watch(self, now_ms: int) -> None:
        if self._served_epoch <= max(self._seen_epoch, self._applier.accepted_epoch):
            self._behind_since_ms = None
        elif self._behind_since_ms is None:
            self._behind_since_ms = now_ms
        elif now_ms - self._behind_since_ms > PLAN_LAG_MS:
            raise SessionOver(f"announces epoch {self._served_epoch} and does not bring it")

    # --- plans ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        identity = self._reporter.identity
        failures = 0
        while True:
            call = self._routing.WatchPlan(
                routing_pb2.WatchPlanRequest(
                    subscriber=identity.subscriber,
                    region=identity.region,
                    after_epoch=self._applier.accepted_epoch,
                    kind="agent",
                )
            )
            try:
                while (plan := await _read(call)) is not None:
                    failures = 0
                    self._seen_epoch = max(self._seen_epoch, plan.epoch)
                    verdict = await self._applier.offer(plan)
                    await self._acknowledge_one(verdict)
                reason = "closed"
            except SessionOver as error:
                reason = str(error)
            finally:
                call.cancel()
            failures += 1
            if failures >= WATCH_TRIES:
                raise SessionOver(f"WatchPlan fails: {reason}")
            await self._clock.sleep_ms(backoff_ms(failures, self._rng))

    async def _acknowledge(self) -> None:
        """Say what is applied whenever this replica may not know it: after connecting, after a
        lost acknowledgement, and when a sink took the plan late."""
        while True:
            await self._answer.wait()
            self._answer.clear()
            applied = self._applier.applied_epoch
            if self._acked_epoch < applied <= self._served_epoch:
                await self._acknowledge_one(Verdict(epoch=applied))

    async def _acknowledge_one(self, verdict: Verdict) -> None:
        request = routing_pb2.AckPlanRequest(
            subscriber=self._reporter.identity.subscriber,
            epoch=verdict.epoch,
            error=verdict.error,
        )
        try:
            await self._routing.AckPlan(request, timeout=ACK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("ack_failed", epoch=verdict.epoch, error=_reason(error))
        else:
            if not verdict.error:
                self._acked_epoch = verdict.epoch

    # --- home ----------------------------------------------------------------------------------

    async def _look_home(self, rotation: Rotation, look: Any) -> None:
        while True:
            await self._clock.sleep_ms(rotation.home_check_ms)
            if rotation.looked(await look(rotation.home)):
                raise SessionOver("the home replica answers again", homeward=True)


async def _read(call: Any) -> Any:
    """Return the next message, None at the end; SessionOver when the stream broke."""
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as error:
        raise SessionOver(_reason(error)) from error
    except asyncio.CancelledError as error:
        # grpc raises it also for a status CANCELLED sent by the server: then it is not for us
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise SessionOver("cancelled by the replica") from error
    return None if message is grpc.aio.EOF else message


async def _wait(event: asyncio.Event, timeout_ms: float) -> bool:
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__
