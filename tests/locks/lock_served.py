"""LockService on a free port of this process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from lock_lab import PATIENT, Lab

from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.locks.audit import AuditLog
from controlplane.locks.manager import LockManager
from controlplane.v1 import lock_pb2_grpc


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
