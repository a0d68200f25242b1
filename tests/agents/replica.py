"""A replica as agents see it: real gRPC servers whose moods the tests set.

Run as a program it serves on the port given as argument until it is killed, so that a test can stop
it with SIGSTOP.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from google.rpc import code_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from controlplane.adapters.wire_evidence import decode_report
from controlplane.dev.process import free_port
from controlplane.model.evidence import Report
from controlplane.v1 import agent_pb2, agent_pb2_grpc, common_pb2, routing_pb2, routing_pb2_grpc


class Replica(agent_pb2_grpc.AgentServiceServicer, routing_pb2_grpc.RoutingServiceServicer):
    """Takes reports, serves plans, notes everything."""

    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()  # one that comes back must find its port free
        self.reports: list[Report] = []
        self.watches: list[routing_pb2.WatchPlanRequest] = []
        self.acks: list[tuple[str, int, str]] = []
        self.streams = 0
        self.plan: common_pb2.Plan | None = None
        self.announced: int | None = None
        self.interval_ms = 20
        self.answering = True
        self.refuse = ""
        self.ack_status: grpc.StatusCode | None = None
        self.watch_status: grpc.StatusCode | None = None
        self.report_status: grpc.StatusCode | None = None
        self.watching = True
        self.half_closed = 0
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    async def start(self, tls: tuple[Path, Path, Path] | None = None) -> Replica:
        """Listen; `tls` is (chain, key, ca) for mutual TLS."""
        self._server = server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, server)
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(self, server)
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        target = f"127.0.0.1:{self.port}"
        if tls is None:
            self.port = server.add_insecure_port(target)
        else:
            chain, key, ca = (path.read_bytes() for path in tls)
            credentials = grpc.ssl_server_credentials([(key, chain)], ca, True)
            self.port = server.add_secure_port(target, credentials)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        await server.start()
        return self

    async def kill(self) -> None:
        """End at once; every stream breaks."""
        if self._server is not None:
            await self._server.stop(grace=0)
            self._server = None

    async def publish(self, plan: common_pb2.Plan) -> None:
        """Serve another plan from now on."""
        async with self._changed:
            self.plan = plan
            self._changed.notify_all()

    async def Report(  # noqa: N802
        self,
        request_iterator: AsyncIterator[agent_pb2.ReportRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[agent_pb2.ReportResponse]:
        """Answer every report, unless told otherwise."""
        self.streams += 1
        async for request in request_iterator:
            if self.report_status is not None:
                await context.abort(self.report_status, "as told")
            self.reports.append(decode_report(request))
            if not self.answering:
                continue
            epoch = self.plan.epoch if self.plan else 0
            response = agent_pb2.ReportResponse(
                seq=request.seq,
                plan_epoch=epoch if self.announced is None else self.announced,
                interval_ms=self.interval_ms,
                plan_confirmed=True,
            )
            if self.refuse:
                response.error.code = code_pb2.INVALID_ARGUMENT
                response.error.message = self.refuse
            yield response
        self.half_closed += 1

    async def WatchPlan(  # noqa: N802
        self, request: routing_pb2.WatchPlanRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[common_pb2.Plan]:
        """Serve every plan that is published, whatever its epoch."""
        self.watches.append(request)
        if self.watch_status is not None:
            await context.abort(self.watch_status, "as told")
        sent: common_pb2.Plan | None = None
        while True:
            async with self._changed:
                while not self.watching or self.plan is None or self.plan is sent:
                    await self._changed.wait()
                sent = self.plan
            yield sent

    async def AckPlan(  # noqa: N802
        self, request: routing_pb2.AckPlanRequest, context: grpc.aio.ServicerContext
    ) -> routing_pb2.AckPlanResponse:
        """Note the acknowledgement."""
        if self.ack_status is not None:
            await context.abort(self.ack_status, "as told")
        self.acks.append((request.subscriber, request.epoch, request.error))
        return routing_pb2.AckPlanResponse()


async def _main(port: int) -> None:
    replica = await Replica(port).start()
    sys.stdout.write(f"{replica.port}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
