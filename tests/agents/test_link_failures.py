"""The link when replicas hang, die, fail, lie and come back."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from agents import servers, session
from agents.dialout import Connect, connector
from controlplane.config import TlsSection
from controlplane.dev.process import free_port
from tests.agents.linked import Agent
from tests.agents.plans import plan
from tests.agents.timing import eventually
from tests.support.stepclock import StepClock


@pytest.mark.usefixtures("patient")
async def test_a_killed_replica_is_left_and_returned_to(
    tmp_path: Path, replicas: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Home dies: reports go on at the next replica; home comes back: so does the agent."""
    monkeypatch.setattr(servers, "HOME_CHECK_MS", 50)
    home, away = await replicas(), await replicas()
    async with Agent(tmp_path, [home.address, away.address]).running() as agent:
        await eventually(lambda: home.reports, "reports at home")
        await home.kill()
        await eventually(lambda: away.reports, "reports away")
        assert agent.link.server == away.address
        again = await replicas(home.port)
        await eventually(lambda: again.reports, "home again")
        assert agent.link.server == home.address
    seqs = [r.seq for replica in (home, away, again) for r in replica.reports]
    assert seqs == sorted(set(seqs))


async def test_a_replica_that_stops_answering_is_left(tmp_path: Path, replicas: Callable) -> None:
    """It takes reports, keeps the stream open and answers nothing: 2 s, then the next one."""
    hung, well = await replicas(), await replicas()
    async with Agent(tmp_path, [hung.address, well.address]).running() as agent:
        await eventually(lambda: agent.meter.up, "linked")
        hung.answering = False
        with capture_logs() as logs:
            await eventually(lambda: well.reports, "reports at the next")
    assert any("silent for 2000 ms" in str(log.get("reason")) for log in logs)


async def test_a_stopped_process_is_left(tmp_path: Path, replicas: Callable) -> None:
    """A real process under SIGSTOP: its kernel keeps the connection; silence gives it away."""
    child = subprocess.Popen(  # noqa: ASYNC220 - starting blocks no longer than a fork
        [sys.executable, "-m", "tests.agents.replica", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        port = int(await asyncio.to_thread(child.stdout.readline))
        well = await replicas()
        async with Agent(tmp_path, [f"127.0.0.1:{port}", well.address]).running() as agent:
            await eventually(lambda: agent.meter.up, "linked")
            child.send_signal(signal.SIGSTOP)
            await eventually(lambda: well.reports, "reports at the next")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


async def test_without_the_watchdog_a_hung_replica_keeps_its_agent(
    tmp_path: Path, replicas: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: with silence allowed, the agent stays at the hung replica and is mute for all."""
    monkeypatch.setattr(session, "SILENCE_MS", 3_600_000)
    hung, well = await replicas(), await replicas()
    async with Agent(tmp_path, [hung.address, well.address]).running() as agent:
        await eventually(lambda: agent.meter.up, "linked")
        hung.answering = False
        taken = len(hung.reports)
        # far beyond what the watchdog needs at this rhythm: 200 reports of 20 ms
        await eventually(lambda: len(hung.reports) > taken + 200, "still reporting to it")
        assert not well.reports
        hung.answering = True


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL]
)
async def test_a_failing_report_stream_is_left(
    tmp_path: Path, replicas: Callable, status: grpc.StatusCode
) -> None:
    """Whatever status ends the stream, CANCELLED included, the agent goes to the next replica."""
    ill, well = await replicas(), await replicas()
    ill.report_status = status
    async with Agent(tmp_path, [ill.address, well.address]).running() as agent:
        await eventually(lambda: well.reports, "reports at the next")
        assert agent.link.server == well.address


@pytest.mark.usefixtures("patient")
async def test_all_gone_and_back(tmp_path: Path, replicas: Callable) -> None:
    """With no replica at all the agent keeps its plan, tries on at a bounded rate, says so once,
    and is back as soon as one is."""
    port = free_port()
    with capture_logs() as logs:
        async with Agent(tmp_path, [f"127.0.0.1:{port}"]).running() as agent:
            await agent.applier.offer(plan(3))
            await eventually(lambda: agent.rotation._failures >= 6, "six failures")
            assert agent.applier.applied_epoch == 3
            replica = await replicas(port)
            await eventually(lambda: replica.reports, "back")
    assert [log["event"] for log in logs].count("link_lost") == 1


async def test_garbage_instead_of_answers(tmp_path: Path, replicas: Callable) -> None:
    """A server that answers bytes which are no message is left like any other ill one."""

    async def garbage(requests: AsyncIterator[bytes], _: object) -> AsyncIterator[bytes]:
        async for _request in requests:
            yield b"\xff\xff\xff"

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(garbage)
    service = "controlplane.v1.AgentService"
    generic = grpc.method_handlers_generic_handler(service, {"Report": handler})
    server.add_generic_rpc_handlers((generic,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    well = await replicas()
    try:
        async with Agent(tmp_path, [f"127.0.0.1:{port}", well.address]).running():
            await eventually(lambda: well.reports, "reports at the next")
    finally:
        await server.stop(grace=0)


async def test_agents_that_lose_a_replica_together_do_not_arrive_together(
    tmp_path: Path, replicas: Callable[[int], object]
) -> None:
    """Thirty agents whose replica ends in one instant: none connects to the next one before a pause of its
    own is over (virtual time, seeded), and no tenth of the time has more than a quarter of them."""
    first, second, many, step_ms = await replicas(0), await replicas(0), 30, 10.0
    clock, arrived = StepClock(), {}
    plain, all_arrived = connector(TlsSection()), asyncio.Event()

    @contextlib.asynccontextmanager
    async def held(server: str) -> AsyncIterator[grpc.aio.Channel]:
        await all_arrived.wait()  # whoever reports already sleeps too, and would be counted as due
        async with plain(server) as channel:
            yield channel

    def connect_as(number: int) -> Connect:
        def connect(server: str) -> contextlib.AbstractAsyncContextManager[grpc.aio.Channel]:
            if server == second.address:
                arrived.setdefault(number, clock.now_ms)
                return held(server)
            return plain(server)

        return connect

    agents = [
        Agent(
            tmp_path / str(i), [first.address, second.address], connect=connect_as(i), clock=clock,
            seed=i,
        )
        for i in range(many)
    ]  # fmt: skip
    async with contextlib.AsyncExitStack() as stack:
        for agent in agents:
            await stack.enter_async_context(agent.running())
        await eventually(lambda: all(agent.meter.up for agent in agents), "all report")
        lost_ms = clock.now_ms
        await first.kill()
        await eventually(lambda: not any(a.meter.up for a in agents), "all have lost it")
        await eventually(lambda: clock.sleeping == many, "every pause has begun")
        assert arrived == {}
        while len(arrived) < many:
            waiting = clock.sleeping
            due = clock.advance(step_ms)
            assert due or clock.now_ms - lost_ms < servers.BACKOFF_BASE_MS
            expected = len(arrived) + due
            await eventually(lambda: len(arrived) >= min(many, expected), f"{waiting} waited")  # noqa: B023
        all_arrived.set()
    assert max(arrived.values()) - lost_ms <= servers.BACKOFF_BASE_MS
    assert max(Counter(arrived.values()).values()) <= many // 4
