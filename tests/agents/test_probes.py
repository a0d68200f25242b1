"""Probes against real servers: what each tells apart, and that nothing gets out of `observe`."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.probes import observe
from agents.probes.dns import Resolver
from agents.probes.observation import Observation, Reason, Trace
from controlplane.dev.process import free_port
from tests.agents.servers import (
    DEADLINE_MS,
    Authority,
    answering,
    grpc_health,
    resetting,
    serving,
    silent,
    target,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HANG_MS = 150.0
"""Deadline where the target is known to hang: the test waits for exactly this long."""


@pytest.fixture
def resolver() -> Resolver:
    """Return a resolver without memory."""
    return Resolver()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return a fresh certificate authority."""
    return Authority(tmp_path)


async def at_a_hung_server(resolver: Resolver, kind: str = "http", **values: object) -> Observation:
    """Probe a server that takes what it gets and never answers. A starved machine may need the whole
    deadline to get that far: then once more, with a longer one."""
    deadline_ms, taken = HANG_MS, asyncio.Event()

    async def taking(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            taken.set()

    while True:
        async with serving(taking) as port:
            wanted = target(port, kind, deadline_ms=deadline_ms, **values)
            seen = await observe(wanted, resolver)
        if taken.is_set():
            assert seen.total_ms >= deadline_ms - 2
            return seen
        deadline_ms *= 2


async def test_http_ok_measures_tcp_and_first_byte(resolver: Resolver) -> None:
    """A good answer is ok; tcp and first byte are timed, dns is not for an address."""
    async with serving(answering(OK, delay_s=0.02)) as port:
        seen = await observe(target(port), resolver)
    assert seen.ok, seen
    assert set(seen.phases) == {"tcp", "first_byte"}
    assert seen.phases["first_byte"] >= 19.0
    assert seen.total_ms >= seen.phases["first_byte"]


async def test_http_against_aiohttp_with_host_path_and_status(resolver: Resolver) -> None:
    """A real application server understands the request: path, Host header, closing."""
    got: list[tuple[str, str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        got.append((request.host, request.path_qs, request.headers["Connection"]))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/health/deep", handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    wanted = target(
        port, path="/health/deep?x=1", host_header="pay.example", expect_status=(204, 204)
    )
    try:
        seen = await observe(wanted, resolver)
        missing = await observe(target(port, path="/none"), resolver)
    finally:
        await runner.cleanup()
    assert seen.ok, seen
    assert got == [("pay.example", "/health/deep?x=1", "close")]
    assert missing.reason is Reason.STATUS
    assert "404" in missing.detail


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", Reason.STATUS),
        (b"HTTP/1.1 101 Switching\r\n\r\n" * 5, Reason.PROTOCOL),
        (b"", Reason.RESET),
        (b"HTTP/1.1 200 OK\r\nHalf", Reason.PROTOCOL),
        (b"SSH-2.0-OpenSSH\r\n\r\n", Reason.PROTOCOL),
        (b"HTTP/1.1 20 OK\r\n\r\n", Reason.PROTOCOL),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", Reason.PROTOCOL),
        (b"HTTP/1.1\r\n\r\n", Reason.PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000, Reason.PROTOCOL),
    ],
)
async def test_http_wrong_answers(resolver: Resolver, answer: bytes, reason: Reason) -> None:
    """Whatever a server answers is an outcome with the right reason; the header is bounded."""
    async with serving(answering(answer)) as port:
        seen = await observe(target(port), resolver)
    assert seen.reason is reason, seen


async def test_http_skips_interim_answers(resolver: Resolver) -> None:
    """Early hints do not count as the answer."""
    async with serving(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n", OK)) as port:
        assert (await observe(target(port), resolver)).ok


async def test_http_hung_server_times_out_at_the_deadline(resolver: Resolver) -> None:
    """A server that accepts and never answers costs exactly the deadline, in the right phase."""
    seen = await at_a_hung_server(resolver)
    assert seen.reason is Reason.TIMEOUT
    assert "first_byte" in seen.detail
    assert seen.phases["first_byte"] > 0


async def test_http_reset(resolver: Resolver) -> None:
    """A reset connection is told apart from a refused one."""
    async with serving(resetting) as port:
        seen = await observe(target(port), resolver)
    assert seen.reason is Reason.RESET, seen


@pytest.mark.parametrize("kind", ["http", "https", "tcp", "grpc"])
async def test_refused(resolver: Resolver, kind: str) -> None:
    """Nobody listens: refused, for every kind, long before the deadline."""
    seen = await observe(target(free_port(), kind), resolver)
    assert seen.reason is Reason.REFUSED, seen
    assert seen.total_ms < DEADLINE_MS / 2


async def test_full_backlog_times_out_in_tcp(resolver: Resolver) -> None:
    """A stopped process whose accept queue is full: the connection hangs, the phase says so."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            assert filler.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
            fillers.append(filler)
        seen = await observe(target(port, deadline_ms=HANG_MS), resolver)
        for filler in fillers:
            filler.close()
    assert seen.reason is Reason.TIMEOUT
    assert "tcp" in seen.detail


async def test_tcp_proves_only_that_something_listens(resolver: Resolver) -> None:
    """A hung server passes the tcp probe and fails the http probe: the docstring's warning."""
    async with serving(silent) as port:
        by_tcp = await observe(target(port, "tcp"), resolver)
        by_http = await observe(target(port, deadline_ms=HANG_MS), resolver)
    assert by_tcp.ok
    assert set(by_tcp.phases) == {"tcp"}
    assert not by_http.ok


async def test_https_measures_tls(resolver: Resolver, authority: Authority) -> None:
    """A certificate of the configured authority for the configured name is accepted."""
    async with serving(answering(OK), authority.server_context("pay.example")) as port:
        good = target(port, "https", ca_file=authority.ca_file, server_name="pay.example")
        seen = await observe(good, resolver)
    assert seen.ok, seen
    assert set(seen.phases) == {"tcp", "tls", "first_byte"}


async def test_https_refuses_wrong_name_and_unknown_authority(
    resolver: Resolver, authority: Authority
) -> None:
    """A wrong name or an unknown issuer is a TLS failure, not a success and not a crash."""
    async with serving(answering(OK), authority.server_context("pay.example")) as port:
        wrong = target(port, "https", ca_file=authority.ca_file, server_name="other.example")
        seen_wrong = await observe(wrong, resolver)
        seen_unknown = await observe(target(port, "https", server_name="pay.example"), resolver)
    assert seen_wrong.reason is Reason.TLS, seen_wrong
    assert seen_unknown.reason is Reason.TLS, seen_unknown
    assert "CERTIFICATE_VERIFY_FAILED" in seen_unknown.detail


async def test_https_against_plaintext_and_against_silence(
    resolver: Resolver, authority: Authority
) -> None:
    """A server that does not speak TLS fails in TLS; one that hangs in the handshake times out."""
    async with serving(answering(OK)) as port:
        plain = target(port, "https", ca_file=authority.ca_file, deadline_ms=HANG_MS)
        seen_plain = await observe(plain, resolver)
    seen_hung = await at_a_hung_server(resolver, "https", ca_file=authority.ca_file)
    assert seen_plain.reason in (Reason.TLS, Reason.TIMEOUT), seen_plain
    assert seen_hung.reason is Reason.TIMEOUT
    assert "tls" in seen_hung.detail


async def test_https_missing_ca_file_is_an_outcome(resolver: Resolver, tmp_path: Path) -> None:
    """A CA file that is not there fails the probe with its name, and nothing else."""
    async with serving(answering(OK)) as port:
        seen = await observe(target(port, "https", ca_file=tmp_path / "none.pem"), resolver)
    assert not seen.ok
    assert "No such file" in seen.detail


async def test_grpc_health_by_service(resolver: Resolver) -> None:
    """SERVING is ok for the asked service only; the others say why."""
    async with grpc_health(server="SERVING", pay="NOT_SERVING") as port:
        whole = await observe(target(port, "grpc", path=""), resolver)
        pay = await observe(target(port, "grpc", path="pay"), resolver)
        none = await observe(target(port, "grpc", path="none"), resolver)
    assert whole.ok, whole
    assert set(whole.phases) == {"tcp", "first_byte"}
    assert pay.reason is Reason.NOT_SERVING
    assert none.reason is Reason.NOT_SERVING


async def test_grpc_over_tls(resolver: Resolver, authority: Authority) -> None:
    """TLS with the configured authority and name works; with an unknown authority it fails."""
    chain = authority.issue("grpc", "pay.example")
    async with grpc_health(chain, server="SERVING") as port:
        wanted = target(
            port,
            "grpc",
            path="",
            tls=True,
            ca_file=authority.ca_file,
            server_name="pay.example",
        )
        good = await observe(wanted, resolver)
        bad = await observe(target(port, "grpc", path="", tls=True), resolver)
    assert good.ok, good
    assert set(good.phases) == {"tls", "first_byte"}
    assert not bad.ok


async def test_grpc_hung_and_not_grpc(resolver: Resolver) -> None:
    """A server that accepts and is silent times out; one that answers HTTP/1 fails."""
    async with serving(silent) as port:
        hung = await observe(target(port, "grpc", deadline_ms=HANG_MS), resolver)
    async with serving(answering(OK)) as port:
        http1 = await observe(target(port, "grpc", deadline_ms=500.0), resolver)
    assert hung.reason is Reason.TIMEOUT, hung
    assert not http1.ok


async def test_grpc_server_without_health_service(resolver: Resolver) -> None:
    """A gRPC server that does not offer health is not taken for healthy."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    seen = await observe(target(port, "grpc"), resolver)
    await server.stop(grace=0)
    assert seen.reason is Reason.PROTOCOL, seen


async def test_anything_unexpected_is_an_outcome(resolver: Resolver) -> None:
    """A bug in a probe, or an unknown kind, is a failed probe and never an exception."""

    async def buggy(*_: object) -> None:
        raise ZeroDivisionError("oops")

    seen = await observe(target(1, "http"), resolver, {"http": buggy})
    unknown = await observe(target(1, "telepathy"), resolver)
    assert seen.reason is Reason.INTERNAL
    assert "ZeroDivisionError" in seen.detail
    assert unknown.reason is Reason.INTERNAL


async def test_cancellation_gets_through(resolver: Resolver) -> None:
    """Only cancellation leaves `observe`, so that an agent can stop."""
    async with serving(silent) as port:
        task = asyncio.ensure_future(observe(target(port), resolver))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_no_connection_is_reused(resolver: Resolver) -> None:
    """Each probe dials anew: a kept connection would hide a dead route."""
    peers: list[int] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[1])
        await answering(OK)(reader, writer)

    async with serving(handle) as port:
        for _ in range(3):
            assert (await observe(target(port), resolver)).ok
    assert len(set(peers)) == 3


async def test_the_next_address_is_tried(resolver: Resolver) -> None:
    """A name with a dead and a live address is reachable, as it is for a payment."""
    both = Resolver(lambda _: ["127.0.0.2", "127.0.0.1"])
    async with serving(answering(OK)) as port:
        seen = await observe(target(port, host="pay.example"), both)
    assert seen.ok, seen
    assert set(seen.phases) == {"dns", "tcp", "first_byte"}


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(answer=st.binary(max_size=300))
def test_arbitrary_bytes_never_escape(answer: bytes) -> None:
    """Property: whatever bytes a server sends, `observe` returns an observation in bounded time."""

    async def run() -> None:
        async with serving(answering(answer)) as port:
            seen = await observe(target(port), Resolver())
        assert seen.reason in (Reason.PROTOCOL, Reason.RESET, Reason.STATUS, None)

    asyncio.run(run())


async def test_trace_counts_failed_phases() -> None:
    """The phase in which a probe failed is timed too."""
    trace = Trace()
    with pytest.raises(OSError, match="boom"), trace.phase("tls"):
        raise OSError("boom")
    assert trace.phases["tls"] >= 0
    assert trace.current == "tls"
