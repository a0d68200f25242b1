"""The link to the control plane: always to one replica, to another one when that fails.

See `servers` for the order and the pauses, `session` for what ends a session. The link never gives
up and never fails: with no replica in reach the agent goes on by itself, and says so at a bounded
rate.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agents.apply import Applier
from agents.dialout import Connect
from agents.report import Reporter
from agents.servers import Rotation
from agents.session import LinkMetrics, Session, SessionOver
from controlplane.clock import Clock
from controlplane.logging import get

LOOK_TIMEOUT_S: Final = 1.0
REMIND_MS: Final = 30_000
"""While no replica answers it is said this often."""

log = get("link")


class Link:
    """Keeps a session with the best replica that answers."""

    def __init__(
        self,
        rotation: Rotation,
        connect: Connect,
        reporter: Reporter,
        applier: Applier,
        clock: Clock,
        rng: random.Random,
        metrics: LinkMetrics,
        *,
        interval_ms: int,
    ) -> None:
        self._rotation = rotation
        self._connect = connect
        self._reporter = reporter
        self._applier = applier
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._interval_ms = interval_ms
        self._said_ms: int | None = None
        self._attempts = 0
        self.server: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Report and follow plans until `stop` is set; the last report is sent after it."""
        while not stop.is_set():
            server = self._rotation.current
            over, lasted_ms = await self._session(server, stop)
            self.server = None
            self._metrics.set_link_up(False)
            if stop.is_set():
                return
            if over.homeward:
                log.info("link_returns_home", server=self._rotation.current)
                continue
            pause_ms = self._rotation.lost(lasted_ms)
            self._say(server, over, lasted_ms)
            await self._pause(stop, pause_ms)

    async def _session(self, server: str, stop: asyncio.Event) -> tuple[SessionOver, int]:
        session: Session | None = None
        over = SessionOver("ended")
        try:
            async with self._connect(server) as channel:
                session = Session(
                    channel,
                    self._reporter,
                    self._applier,
                    self._clock,
                    self._rng,
                    self._metrics,
                    interval_ms=self._interval_ms,
                )
                self.server = server
                # a task of its own: a TaskGroup that ends by a child's error leaves its task marked
                # as being cancelled, and before Python 3.11.3 no timeout works in such a task
                await asyncio.ensure_future(session.run(stop, self._rotation, self._answers))
        except* SessionOver as group:
            over = _first(group)
        except* OSError as group:  # certificates that cannot be read
            over = SessionOver(str(group.exceptions[0]))
        up_since_ms = session.up_since_ms if session else None
        lasted_ms = 0 if up_since_ms is None else self._clock.monotonic_ms() - up_since_ms
        return over, lasted_ms

    async def _answers(self, server: str) -> bool:
        """Tell whether a replica says SERVING on a fresh connection."""
        try:
            async with self._connect(server) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=LOOK_TIMEOUT_S)
        except (grpc.aio.AioRpcError, OSError):
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _pause(self, stop: asyncio.Event, pause_ms: float) -> None:
        """Wait out the pause, or until the end."""
        waits = {
            asyncio.ensure_future(self._clock.sleep_ms(pause_ms)),
            asyncio.ensure_future(stop.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

    def _say(self, server: str, over: SessionOver, lasted_ms: int) -> None:
        now_ms = self._clock.monotonic_ms()
        self._attempts = 1 if lasted_ms > 0 else self._attempts + 1
        if lasted_ms > 0 or self._said_ms is None or now_ms - self._said_ms >= REMIND_MS:
            self._said_ms = now_ms
            log.warning(
                "link_lost",
                server=server,
                reason=str(over),
                attempts=self._attempts,
                next=self._rotation.current,
            )


def _first(group: BaseExceptionGroup[SessionOver]) -> SessionOver:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf if isinstance(leaf, SessionOver) else SessionOver(str(leaf))
