"""What the command line says when its certificates are missing, unreadable or not trusted."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from controlplane.adapters.grpc_server import add_standard_services
from controlplane.adapters.tls import TlsFiles, server_credentials
from controlplane.cli.client import Client, Credentials
from controlplane.cli.exits import UNREACHABLE, CallError
from controlplane.clock import SystemClock
from controlplane.dev.ca import DevelopmentCa
from controlplane.v1 import admin_pb2, admin_pb2_grpc


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A server that wants certificates of the CA in tmp_path/ca."""
    own = DevelopmentCa(tmp_path / "ca", SystemClock()).issue("replica", "one", "east")
    files = TlsFiles(ca=own.ca, cert=own.cert, key=own.key)
    server = grpc.aio.server()
    add_standard_services(server, lambda: True)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def told(address: str, credentials: Credentials) -> CallError:
    """The error of one call, made in a thread: the server lives in this loop."""

    def call() -> None:
        client = Client([address], credentials)
        client.call(admin_pb2_grpc.AdminServiceStub, "GetStatus", admin_pb2.GetStatusRequest(), 30)

    with pytest.raises(CallError) as caught:
        await asyncio.to_thread(call)
    return caught.value


async def test_a_failed_handshake_is_named(address: str, tmp_path: Path) -> None:
    """Neither plaintext, nor a foreign client certificate, nor the wrong CA is told as "nobody
    answers": somebody does, and wants certificates."""
    other = DevelopmentCa(tmp_path / "foreign", SystemClock()).issue("operator", "mallory")
    for credentials in (
        Credentials(),
        Credentials(ca_file=tmp_path / "ca/ca.pem", cert_file=other.cert, key_file=other.key),
        Credentials(ca_file=other.ca, cert_file=other.cert, key_file=other.key),
    ):
        error = await told(address, credentials)
        assert error.exit_code == UNREACHABLE
        assert "--ca-file" in str(error)


@pytest.mark.parametrize("option", ["--ca-file", "--cert-file", "--key-file"])
def test_a_missing_file_is_a_usage_error(tmp_path: Path, option: str) -> None:
    """One line that names option and file, no traceback."""
    there = tmp_path / "there.pem"
    there.write_text("")
    files = {name: str(there) for name in ("--ca-file", "--cert-file", "--key-file")}
    files[option] = str(tmp_path / "gone.pem")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "controlplane.cli.main", "--server", "127.0.0.1:1"]
        + [word for pair in files.items() for word in pair]
        + ["status"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"weir: {option}: ")
    assert "gone.pem" in done.stderr
    assert done.stderr.count("\n") == 1


def test_who_does_not_answer_costs_one_attempt_not_one_at_every_call(lab_address: str) -> None:
    """A wait makes many calls: the replica that answered is asked first from then on."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        client = Client([f"127.0.0.1:{hung.getsockname()[1]}", lab_address], Credentials())
        for _ in range(3):
            client.call(health_pb2_grpc.HealthStub, "Check", health_pb2.HealthCheckRequest(), 2)
        hung.setblocking(False)
        hung.accept()[0].close()
        with pytest.raises(BlockingIOError):
            hung.accept()


@pytest.fixture
def lab_address() -> Iterator[str]:
    """A server with the standard services, without TLS."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)
