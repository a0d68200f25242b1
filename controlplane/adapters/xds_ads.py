"""The ADS server: every replica (or agent, as relay) serves the committed plan to data planes.

Theory. `publish` replaces one reference and wakes the streams; each stream writes what it has not
sent yet. Nothing is queued per stream: a slow one finds the newest snapshot when it is done. All
state of the protocol is in `xds_stream`, who may come in `xds_admission`, what is served in
`xds_served`, who has applied it in `xds_session` and `xds_roster`; here are only gRPC, tasks and
timers.

Rules
- Epochs only rise: publishing an older one is refused.
- A channel that fails closed is served only while somebody confirmed, within its staleness bound,
  that the plan is still in force (`confirm`); each confirmation renews their endpoints at the data
  planes. Without it they are closed here too. All other channels fail open, for ever.
- New streams are admitted at a bounded rate and number, so that a restart herd is spread out.
- A subscriber that does not take a message within `write_timeout_ms` is dropped with a reason. One
  timer watches all writes: a timer for each would cost as much as the protocol does.

Failure modes. A data plane that vanished or hangs is noticed by the server's keep-alive within 4 s
(`ADS_SERVER_OPTIONS`); its age grows from the first push it does not answer, before and after. What
it has applied is what it acknowledged: it is never taken for converged (`runtime.book`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from envoy.service.discovery.v3 import discovery_pb2

from controlplane.adapters.xds_admission import Admission, AdsLimits, NoMetrics, XdsMetrics
from controlplane.adapters.xds_delta import DeltaStream
from controlplane.adapters.xds_resources import SHORT
from controlplane.adapters.xds_roster import REMEMBERED_MAX, Roster
from controlplane.adapters.xds_served import Served
from controlplane.adapters.xds_session import Machine, Session, mark_slow
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.adapters.xds_stream import Outgoing, Receipt, SotwStream
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import Subscriber
from controlplane.model.plan import Event, Severity

__all__ = ["ADS_SERVER_OPTIONS", "REMEMBERED_MAX", "SERVICE", "AdsService"]

log = structlog.get_logger(__name__)

SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ADS_SERVER_OPTIONS: Final = (
    # data planes ping to notice a hung replica; the defaults would answer with too_many_pings
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 250),
    ("grpc.keepalive_permit_without_calls", 1),
    # and the replica pings to notice a data plane that vanished, or hangs with its connection open;
    # the latter by ping_timeout alone (its default is 60 s): the kernel still answers for it
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),  # what gRPC really waits for the answer; default 60 s
)
_LEVELS: Final = {
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.CRITICAL: logging.ERROR,
}
REFUSE_S: Final = 1.0
"""How long a refused peer may take to hear why."""

IDLE_MS: Final = 1000
"""How often staleness is looked for while no channel fails closed, times four."""


class AdsService:
    """Serves snapshots. `publish` and `confirm` are called on the server's event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        limits: AdsLimits | None = None,
        metrics: XdsMetrics | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._clock = clock
        self._limits = limits or AdsLimits()
        self._metrics: XdsMetrics = metrics or NoMetrics()
        self._on_event = on_event or _log_event
        self._admission = Admission(clock, self._limits.admit_per_s, self._limits.admit_burst)
        self._roster = Roster(self._limits.remember_ms)
        self._sessions = self._roster.sessions
        self._served = Served()
        self._kinds: Counter[str] = Counter()
        self._watch: asyncio.TimerHandle | None = None

    # -- what is served ---------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot | None:
        """What is served now; None until the first `publish`."""
        return self._served.snapshot

    def publish(self, snapshot: Snapshot, *, confirmed: bool = True) -> bool:
        """Serve a snapshot from now on; False when a newer epoch is served already.

        Pass `confirmed=False` for a plan that was read from disk and not from the store.
        """
        confirmed_ms = self._clock.monotonic_ms() if confirmed else None
        if not self._served.publish(snapshot, confirmed_ms):
            return False
        self._wake_all()
        return True

    def confirm(self) -> None:
        """Say that the served plan is still in force, just read from the store with quorum."""
        if self._served.confirm(self._clock.monotonic_ms()):
            self._wake_all()

    @property
    def confirmed(self) -> bool:
        """Whether all channels that fail closed are served."""
        return self._served.confirmed(self._clock.monotonic_ms())

    async def run(self) -> None:
        """Close what fails closed when confirmations stop; runs until cancelled."""
        closed_ms = 0
        while True:
            await self._clock.sleep_ms(min(self._served.bounds_ms(), default=IDLE_MS) / 4)
            expired_ms = self._served.expired_ms(self._clock.monotonic_ms())
            if expired_ms > closed_ms:
                self._event(
                    "xds_unconfirmed",
                    f"no confirmation for {expired_ms} ms: channels that fail closed stop here",
                )
                self._wake_all()
            closed_ms = expired_ms

    def _wake_all(self) -> None:
        for session in self._sessions:
            session.wake.set()

    # -- who applied what -------------------------------------------------------------------

    def subscribers(self) -> tuple[Subscriber, ...]:
        """Every data plane that has endpoints, and those that left lately, sorted by name.

        `age_ms` is 0 while everything sent is acknowledged, else the time since the oldest
        unanswered push, or since the subscriber left. With several streams of one name, the
        oldest epoch counts.
        """
        return self._roster.subscribers(self._clock.monotonic_ms())

    def laggards(self) -> tuple[Subscriber, ...]:
        """Return the subscribers that have not applied the served epoch."""
        served = self._served.snapshot
        if served is None:
            return ()
        return tuple(s for s in self.subscribers() if s.applied_epoch < served.epoch)

    # -- streams ----------------------------------------------------------------------------

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service to a server made with `ADS_SERVER_OPTIONS`."""
        handlers = {
            "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
                self.stream,
                request_deserializer=discovery_pb2.DiscoveryRequest.FromString,
                response_serializer=None,
            ),
            "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                self.delta,
                request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString,
                response_serializer=None,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def stream(self, _requests: Any, context: Any) -> None:
        """Serve one state-of-the-world stream."""
        await self._serve(SotwStream(), context)

    async def delta(self, _requests: Any, context: Any) -> None:
        """Serve one incremental stream."""
        await self._serve(DeltaStream(), context)

    async def _serve(self, machine: Machine, context: Any) -> None:
        if len(self._sessions) >= self._limits.streams_max:
            await self._refuse(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "full",
                f"{self._limits.streams_max} data planes are connected; use another replica",
            )
        if not self._admission.admit():
            await self._refuse(
                context,
                grpc.StatusCode.UNAVAILABLE,
                "admission",
                f"more than {self._limits.admit_per_s} new streams a second; try again",
            )
        task = asyncio.current_task()
        assert task is not None
        session = Session(machine, task, refreshes=self._served.refreshes)
        self._sessions.add(session)
        error: _DropError | None = None
        try:
            # before any message: gRPC cannot abort a call whose first write is still under way
            await context.send_initial_metadata(())
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(session, context))
                await self._write(session, context)
        except* _DropError as dropped:
            first = dropped.exceptions[0]
            error = first if isinstance(first, _DropError) else None
        finally:
            self._leave(session)
        if error is not None:
            await self._refuse(context, error.code, error.reason, str(error))

    async def _refuse(self, context: Any, code: grpc.StatusCode, reason: str, message: str) -> None:
        self._metrics.refused(reason)
        self._event("xds_refused", message, Severity.WARNING)
        # a peer that reads nothing does not read its status either; when the handler ends without
        # one, the call is reset
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REFUSE_S):
                await context.abort(code, message)

    def _leave(self, session: Session) -> None:
        self._roster.leave(session, self._clock.monotonic_ms())
        if session.kind:
            self._count(session.kind, -1)

    def _count(self, kind: str, change: int) -> None:
        self._kinds[kind] += change
        self._metrics.streams(kind, self._kinds[kind])

    async def _read(self, session: Session, context: Any) -> None:
        machine = session.machine
        while True:
            request = await context.read()
            if request is grpc.aio.EOF:
                session.ended = True
                session.wake.set()
                return
            try:
                receipt, type_url = machine.receive(request)
            except InvalidInputError as error:
                raise _DropError(grpc.StatusCode.INVALID_ARGUMENT, "invalid", str(error)) from error
            if not session.kind:
                session.kind = machine.peer.kind
                self._count(session.kind, 1)
            self._note(session, receipt, type_url)
            if machine.asked:
                session.wake.set()

    def _note(self, session: Session, receipt: Receipt, type_url: str) -> None:
        session.answered()
        machine = session.machine
        if receipt is Receipt.ACK:
            self._metrics.acked(SHORT[type_url])
        elif receipt is Receipt.NACK:
            self._metrics.nacked(SHORT[type_url])
            self._event(
                "xds_nack",
                f"{machine.peer.name or 'a data plane'} refuses {SHORT[type_url]}:"
                f" {machine.error(type_url)}",
                Severity.CRITICAL,
            )

    async def _write(self, session: Session, context: Any) -> None:
        while not session.ended:
            await session.wake.wait()
            session.wake.clear()
            view = self._served.view(self._clock.monotonic_ms())
            if view is None:
                continue
            for message in session.due(view, self._served.refreshes):
                await self._send(session, context, message)

    async def _send(self, session: Session, context: Any, message: Outgoing) -> None:
        session.writing(self._clock.monotonic_ms())
        if self._watch is None:
            self._watch_writes(self._limits.write_timeout_ms)
        cancelling = session.task.cancelling()
        try:
            await context.write(message.payload)
        except asyncio.CancelledError:
            if not session.slow or session.task.uncancel() > cancelling:
                raise
            raise _DropError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "slow",
                f"{session.machine.peer.name}: took no message for"
                f" {self._limits.write_timeout_ms} ms; reconnect",
            ) from None
        finally:
            session.written()
        self._metrics.pushed(SHORT[message.type_url], len(message.payload))

    def _watch_writes(self, after_ms: int) -> None:
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(after_ms / 1000, self._drop_slow)

    def _drop_slow(self) -> None:
        """End the writes that take too long; come back when the next one might."""
        now_ms, limit_ms = self._clock.monotonic_ms(), self._limits.write_timeout_ms
        self._watch = None
        slow, next_ms = mark_slow(self._sessions, now_ms, limit_ms)
        for session in slow:
            session.task.cancel()
        if next_ms is not None:
            self._watch_writes(next_ms)

    def _event(self, kind: str, message: str, severity: Severity = Severity.WARNING) -> None:
        self._on_event(Event(kind=kind, message=message, severity=severity))


def _log_event(event: Event) -> None:
    """Write an event to the log, where nobody else takes it."""
    log.log(_LEVELS[event.severity], event.kind, message=event.message)


class _DropError(Exception):
    """End one stream with a status and a reason."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason
