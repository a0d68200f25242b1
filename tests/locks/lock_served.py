"""LockService on a free port of this process."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import grpc
from lock_lab import PATIENT, Lab

from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.locks.audit import AuditLog
from controlplane.locks.manager import LockManager
from controlplane.v1 import lock_pb2, lock_pb2_grpc

TTL = 30_000


class Served:
    """A manager behind a gRPC server that a test may stop."""

    def __init__(
        self,
        manager: LockManager,
        server: grpc.aio.Server,
        port: int,
        servicer: LockServiceServicer,
    ) -> None:
        self.manager = manager
        self.server = server
        self.address = f"127.0.0.1:{port}"
        self.servicer = servicer

    async def waiters(self, count: int) -> None:
        """Wait until so many wait for "a"."""
        async with asyncio.timeout(20):
            while (await self.manager.inspect("a")).waiters != count:
                await asyncio.sleep(0.002)


class Older(LockServiceServicer):
    """A server from before sessions."""

    async def Session(self, requests: Any, context: Any) -> None:  # noqa: N802
        """Not known."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


async def serve(lab: Lab, kind: type[LockServiceServicer] = LockServiceServicer) -> Served:
    """Start one."""
    manager = await lab.manager(limits=PATIENT)
    audit = AuditLog(await lab.store(), f"/weir/{lab.prefix}/audit/".encode())
    server = grpc.aio.server()
    servicer = kind(manager, audit)
    lock_pb2_grpc.add_LockServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return Served(manager, server, port, servicer)


def acquire(number: int, **fields: Any) -> lock_pb2.SessionCall:
    """A call with a good request, changed."""
    good = {"name": "a", "owner": "o", "ttl_ms": TTL, "request_id": str(uuid.uuid4())}
    return lock_pb2.SessionCall(id=number, acquire=lock_pb2.AcquireRequest(**(good | fields)))


class Raw:
    """A session without a client: one call at a time, each answered before the next."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._stream: Any = None

    async def ask(self, *calls: lock_pb2.SessionCall) -> lock_pb2.SessionAnswer:
        """Send calls of which one is answered."""
        if self._stream is None:
            self._stream = lock_pb2_grpc.LockServiceStub(self._channel).Session()
        await self._stream.write(lock_pb2.SessionRequest(calls=calls))
        response = await self._stream.read()
        answer: lock_pb2.SessionAnswer = response.answers[0]
        return answer
