"""Who may call what: every method against every role, over real mutual TLS."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.discovery.v3 import ads_pb2

from controlplane.adapters.identity import NOBODY, parse_spiffe
from controlplane.adapters.tls import TlsFiles, server_credentials
from controlplane.clock import SystemClock
from controlplane.dev.ca import DevelopmentCa
from controlplane.model.permissions import RULES, RoleName, allowed
from controlplane.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    agent_pb2,
    agent_pb2_grpc,
    lock_pb2,
    peer_pb2,
    routing_pb2,
)
from controlplane.v1 import admin_pb2 as pb
from tests.operate.lab import Lab, half_close, report

MODULES = (admin_pb2, agent_pb2, lock_pb2, peer_pb2, routing_pb2, ads_pb2)
METHODS = [
    (f"/{service.full_name}/{method.name}", method)
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_every_method_of_the_api_has_a_rule() -> None:
    """A new method without a rule fails here, and nobody may call it meanwhile."""
    assert {name for name, _ in METHODS} <= set(RULES)
    assert not allowed("/controlplane.v1.AdminService/Invented", frozenset(RoleName))


@pytest.mark.parametrize(
    ("uri", "role", "region"),
    [
        ("spiffe://weir.dev/weir/agent/east/a-0", "agent", "east"),
        ("spiffe://weir.dev/weir/operator/alice@example.com", "operator", None),
        ("spiffe://weir.dev/weir/agent/a-0", None, None),
        ("spiffe://weir.dev/weir/operator/east/alice", None, None),
        ("spiffe://weir.dev/weir/root/alice", None, None),
        ("https://weir.dev/weir/operator/alice", None, None),
        ("spiffe://weir.dev/weir/operator/alice/../breakglass", None, None),
    ],
)
def test_identities_are_read_strictly(uri: str, role: str | None, region: str | None) -> None:
    """Only URIs of exactly our form give a role; agents and replicas must name their region."""
    found = parse_spiffe(uri) or NOBODY
    assert found.roles == ({RoleName(role)} if role else frozenset())
    assert found.region == region


async def _code(
    channel: grpc.aio.Channel, name: str, method: Any, *, denied: bool
) -> grpc.StatusCode:
    """Call a method with an empty message and return how it ended.

    An admitted stream may have nothing to say; a refusal is waited for, however slow the machine.
    """
    empty = b""
    try:
        async with asyncio.timeout(90 if denied else 2):
            if method.server_streaming and method.client_streaming:
                call = channel.stream_stream(name)()
                await half_close(call)
                await call.read()
            elif method.server_streaming:
                await channel.unary_stream(name)(empty).read()
            else:
                await channel.unary_unary(name)(empty)
    except grpc.aio.AioRpcError as error:
        return error.code()
    except TimeoutError:
        return grpc.StatusCode.OK  # admitted, and waiting for something to say
    return grpc.StatusCode.OK


async def test_every_method_against_every_role(tls_lab: Lab) -> None:
    """The server refuses with PERMISSION_DENIED exactly what the table forbids."""
    assert tls_lab.ca is not None
    wrong: list[str] = []
    for role in RoleName:
        names = ("east", "x") if role in (RoleName.AGENT, RoleName.REPLICA) else ("x",)
        async with tls_lab.channel("east", tls_lab.ca.issue(role, *names)) as channel:
            codes = await asyncio.gather(
                *(
                    _code(channel, n, m, denied=not allowed(n, frozenset({role})))
                    for n, m in METHODS
                )
            )
        for (name, _), code in zip(METHODS, codes, strict=True):
            denied = code is grpc.StatusCode.PERMISSION_DENIED
            if denied == allowed(name, frozenset({role})):
                wrong.append(f"{role} {name}: {code}")
    assert not wrong


async def test_strangers_are_refused_and_counted(tls_lab: Lab, tmp_path: Path) -> None:
    """No certificate, a foreign CA, an expired certificate, or one without an identity: no answer."""
    ca = tls_lab.ca
    assert ca is not None
    foreign = DevelopmentCa(tmp_path / "foreign", SystemClock()).issue("operator", "mallory")
    expired = ca.issue("operator", "late", expired=True)
    nameless = ca.issue("nobody", "x")
    root = ca.ca_file.read_bytes()

    async def status(credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
        async with grpc.aio.secure_channel(tls_lab.address(), credentials) as channel:
            try:
                await admin_pb2_grpc.AdminServiceStub(channel).GetStatus(
                    pb.GetStatusRequest(), timeout=60
                )
            except grpc.aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    def pair(who: Any) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(root, who.key.read_bytes(), who.cert.read_bytes())

    no_answer = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert await status(grpc.ssl_channel_credentials(root)) in no_answer
    assert await status(pair(foreign)) in no_answer
    assert await status(pair(expired)) in no_answer
    assert await status(pair(nameless)) is grpc.StatusCode.UNAUTHENTICATED
    counted = tls_lab.replicas["east"].metrics.exposition()[0].decode()
    assert 'weir_calls_denied_total{reason="identity"} 1.0' in counted


async def test_an_agent_speaks_for_its_own_region_only(tls_lab: Lab) -> None:
    """A report for another region than the certificate's is refused; the stream goes on."""
    assert tls_lab.ca is not None
    who = tls_lab.ca.issue("agent", "north", "north-agent-9")
    async with tls_lab.channel("east", who) as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Report()
        await call.write(report("east", ["north"], 1, 1))
        refused = await call.read()
        assert "certificate speaks for north" in refused.error.message
        await call.write(report("north", ["east"], 1, 2))
        assert not (await call.read()).error.message


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    """The server follows its files; a broken renewal keeps the last good certificate."""
    ca = DevelopmentCa(tmp_path / "ca", SystemClock())
    first, second = ca.issue("replica", "east", "one"), ca.issue("replica", "east", "two")
    client = ca.issue("operator", "x")
    files = TlsFiles(ca=ca.ca_file, cert=tmp_path / "c.pem", key=tmp_path / "k.pem")

    def install(cert: bytes, key: bytes) -> None:
        for path, data in ((files.key, key), (files.cert, cert)):
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.rename(path)

    install(first.cert.read_bytes(), first.key.read_bytes())
    reloads: list[bool] = []
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(files, reloads.append))
    await server.start()
    credentials = grpc.ssl_channel_credentials(
        ca.ca_file.read_bytes(), client.key.read_bytes(), client.cert.read_bytes()
    )

    async def connect() -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            async with asyncio.timeout(90):
                await channel.channel_ready()

    await connect()
    install(second.cert.read_bytes(), second.key.read_bytes())
    await connect()
    assert reloads == [True]
    install(b"half a certif", b"and no key")
    await connect()
    assert reloads[-1] is False
    await server.stop(0)


async def test_a_flood_of_calls_is_slowed_down(lab: Lab) -> None:
    """One identity may not take the replica for itself: beyond the burst calls are refused."""
    async with lab.admin() as stub:
        started = time.perf_counter()
        codes = []
        for _ in range(30):
            answers = await asyncio.gather(
                *(stub.GetStatus(pb.GetStatusRequest()) for _ in range(50)), return_exceptions=True
            )
            codes += [a.code() for a in answers if isinstance(a, grpc.aio.AioRpcError)]
            if codes:
                break
        took_s = time.perf_counter() - started
        # 1500 calls are more than burst and refill together unless this machine needs 10 s for them
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes or took_s > 10
