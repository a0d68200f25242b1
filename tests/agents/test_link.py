"""The link to real gRPC servers that hang, die, refuse, lie and come back."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from agents import servers, session
from agents.apply import Applier
from agents.counters import Counters
from agents.dialout import Connect, connector
from agents.lag import LoopLag
from agents.link import Link
from agents.report import Identity, Reporter
from agents.servers import Rotation
from agents.sources import Queues
from agents.store import PlanFile
from controlplane.clock import Clock, SystemClock
from controlplane.config import TlsSection
from controlplane.dev.process import free_port
from controlplane.model.ids import AgentId, RegionName
from tests.agents.plans import malformed, plan
from tests.agents.replica import Replica
from tests.agents.servers import Authority
from tests.agents.timing import eventually
from tests.support.stepclock import StepClock

IDENTITY = Identity(agent=AgentId("a-0"), region=RegionName("east"), boot=99)


class Meter:
    """Counts what the link says of itself."""

    def __init__(self) -> None:
        self.reports: Counter[str] = Counter()
        self.up = False

    def report(self, result: str) -> None:
        """Count an answer."""
        self.reports[result] += 1

    def set_link_up(self, up: bool) -> None:
        """Note the state."""
        self.up = up


class Agent:
    """A link with everything it needs, but no probes."""

    def __init__(
        self,
        directory: Path,
        addresses: Sequence[str],
        *,
        home: int = 1,
        connect: Connect | None = None,
        clock: Clock | None = None,
        seed: int = 1,
    ) -> None:
        clock = clock or SystemClock()
        self.stop = asyncio.Event()
        self.meter = Meter()
        self.rotation = Rotation(addresses, home, random.Random(seed))
        self.applier = Applier(PlanFile(directory), clock)
        reporter = Reporter(
            IDENTITY, Counters(["alipay"], []), self.applier, LoopLag(), Queues(clock), clock
        )
        self.link = Link(
            self.rotation,
            connect or connector(TlsSection()),
            reporter,
            self.applier,
            clock,
            random.Random(2),
            self.meter,
            interval_ms=20,
        )
        self.ended = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Agent]:
        """Run within the block; ends in order."""
        async with asyncio.TaskGroup() as group:
            applying = group.create_task(self.applier.run())
            linked = group.create_task(self.link.run(self.stop))
            try:
                yield self
            finally:
                self.stop.set()
                await asyncio.wait([linked], timeout=20)
                self.ended = linked.done()
                linked.cancel()
                applying.cancel()


@pytest.fixture
async def replicas() -> AsyncIterator[Callable[[int], object]]:
    """Return a maker of replicas that are gone at the end."""
    made: list[Replica] = []

    async def make(port: int = 0) -> Replica:
        replica = await Replica(port).start()
        made.append(replica)
        return replica

    yield make
    for replica in made:
        await replica.kill()


async def test_reports_flow_and_are_valid(tmp_path: Path, replicas: Callable) -> None:
    """Every report passes the replica's own checks and is numbered without a gap."""
    replica = await replicas()
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: len(replica.reports) >= 5, "five reports")
        assert agent.meter.up
    seqs = [report.seq for report in replica.reports]
    assert seqs == list(range(1, len(seqs) + 1))
    assert {(r.agent, r.region, r.boot) for r in replica.reports} == {("a-0", "east", 99)}
    assert replica.streams == 1


async def test_stopping_sends_a_last_report_and_closes(tmp_path: Path, replicas: Callable) -> None:
    """SIGTERM's path: one more report after the stop, then the stream is closed by the agent."""
    replica = await replicas()
    replica.interval_ms = 60_000  # clamped to a second: the last report is not a regular one
    agent = Agent(tmp_path, [replica.address])
    async with agent.running():
        await eventually(lambda: len(replica.reports) >= 1, "a report")
        before = len(replica.reports)
    assert agent.ended
    assert len(replica.reports) == before + 1
    assert replica.half_closed == 1
    assert not agent.meter.up


async def test_a_refused_report_is_counted_and_the_stream_goes_on(
    tmp_path: Path, replicas: Callable
) -> None:
    """A replica that refuses reports keeps its agent; it is said once and counted every time."""
    replica = await replicas()
    replica.refuse = "cells[0].channel: unknown channel"
    with capture_logs() as logs:
        async with Agent(tmp_path, [replica.address]).running() as agent:
            await eventually(lambda: agent.meter.reports["invalid"] >= 5, "five refusals")
            replica.refuse = ""
            await eventually(lambda: agent.meter.reports["accepted"] >= 1, "accepted again")
    assert replica.streams == 1
    assert [log["event"] for log in logs].count("report_refused") == 1


async def test_plans_are_applied_and_acknowledged(tmp_path: Path, replicas: Callable) -> None:
    """A pushed plan is applied and acknowledged under the agent's name; the next report says so."""
    replica = await replicas()
    await replica.publish(plan(3))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: ("east/a-0", 3, "") in replica.acks, "acknowledged 3")
        await replica.publish(plan(4, 0))
        await eventually(lambda: ("east/a-0", 4, "") in replica.acks, "acknowledged 4")
        assert agent.applier.message == plan(4, 0)
        await eventually(lambda: replica.reports[-1].applied_epoch == 4, "reported 4")
    assert replica.watches[0].kind == "agent"
    assert replica.watches[0].subscriber == "east/a-0"


@pytest.mark.parametrize("what", ["empty", "sum", "failed region with weight", "unsorted"])
async def test_a_malformed_plan_is_refused_with_its_reason(
    tmp_path: Path, replicas: Callable, what: str
) -> None:
    """The replica learns why; the agent keeps its plan, its stream, and takes the next good one."""
    replica = await replicas()
    await replica.publish(plan(5))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: ("east/a-0", 5, "") in replica.acks, "acknowledged 5")
        await replica.publish(malformed()[what])
        await eventually(lambda: any(error for _, _, error in replica.acks), "refused")
        assert agent.applier.message == plan(5)
        await replica.publish(plan(11))
        await eventually(lambda: ("east/a-0", 11, "") in replica.acks, "acknowledged 11")
    refusals = [(name, epoch) for name, epoch, error in replica.acks if error]
    assert refusals == [("east/a-0", 5)]
    assert replica.streams == 1


async def test_a_lower_epoch_is_not_applied(tmp_path: Path, replicas: Callable) -> None:
    """Incident 1: a late, older plan is refused by the subscriber itself."""
    replica = await replicas()
    await replica.publish(plan(9))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: ("east/a-0", 9, "") in replica.acks, "acknowledged 9")
        await replica.publish(plan(8, 0))
        await eventually(lambda: any("not above 9" in e for _, _, e in replica.acks), "refused")
        assert agent.applier.message == plan(9)
        assert replica.streams == 1


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


async def test_an_announced_plan_that_never_comes_ends_the_session(
    tmp_path: Path, replicas: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WatchPlan may be silent for days, but not while the answers name a newer epoch."""
    monkeypatch.setattr(session, "PLAN_LAG_MS", 100)
    stuck, well = await replicas(), await replicas()
    await well.publish(plan(6))
    stuck.announced = 6
    async with Agent(tmp_path, [stuck.address, well.address]).running() as agent:
        await eventually(lambda: agent.applier.applied_epoch == 6, "plan from the next")
        assert agent.link.server == well.address


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


@pytest.mark.parametrize("status", [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE])
async def test_a_replica_without_plan_stream_is_left(
    tmp_path: Path, replicas: Callable, status: grpc.StatusCode
) -> None:
    """A replica that takes reports but serves no plans is tried a few times, then left."""
    ill, well = await replicas(), await replicas()
    ill.watch_status = status
    await well.publish(plan(2))
    async with Agent(tmp_path, [ill.address, well.address]).running() as agent:
        await eventually(lambda: agent.applier.applied_epoch == 2, "plan from the next")
    assert len(ill.watches) == session.WATCH_TRIES


async def test_a_lost_acknowledgement_is_repeated(tmp_path: Path, replicas: Callable) -> None:
    """The replica is told again until it has heard which epoch is applied."""
    replica = await replicas()
    replica.ack_status = grpc.StatusCode.UNAVAILABLE
    await replica.publish(plan(3))
    async with Agent(tmp_path, [replica.address]).running() as agent:
        await eventually(lambda: agent.applier.applied_epoch == 3, "applied")
        replica.ack_status = None
        await eventually(lambda: ("east/a-0", 3, "") in replica.acks, "acknowledged at last")


async def test_a_new_replica_learns_what_is_applied(tmp_path: Path, replicas: Callable) -> None:
    """After a move the next replica hears the epoch without a new plan, and streams none again."""
    first, second = await replicas(), await replicas()
    for replica in (first, second):
        await replica.publish(plan(3))
    second.watching = False
    async with Agent(tmp_path, [first.address, second.address]).running():
        await eventually(lambda: ("east/a-0", 3, "") in first.acks, "first knows")
        await first.kill()
        await eventually(lambda: ("east/a-0", 3, "") in second.acks, "second knows")
    assert second.watches[0].after_epoch == 3


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


async def test_the_replica_sets_the_rhythm_within_bounds(
    tmp_path: Path, replicas: Callable
) -> None:
    """A replica may slow its agents down, never to silence; a nonsense interval is clamped."""
    replica = await replicas()
    replica.interval_ms = 2_000_000_000
    async with Agent(tmp_path, [replica.address]).running():
        await eventually(lambda: len(replica.reports) >= 4, "reports in spite of it")
        replica.interval_ms = -1
        taken = len(replica.reports)
        await eventually(lambda: len(replica.reports) >= taken + 3, "and with a negative one")
    assert replica.streams == 1


async def test_mutual_tls(tmp_path: Path, replicas: Callable) -> None:
    """With certificates of one authority the link works; a foreign one gets no report through."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    authority, foreign = Authority(ours), Authority(theirs)
    chain, key = authority.issue("replica", "127.0.0.1")
    replica = await Replica().start((chain, key, authority.ca_file))
    try:
        mine = authority.issue("agent", "agent.east")
        tls = TlsSection(ca_file=authority.ca_file, cert_file=mine[0], key_file=mine[1])
        agent = Agent(tmp_path, [replica.address], connect=connector(tls))
        async with agent.running():
            await eventually(lambda: replica.reports, "reports over TLS")
        taken = len(replica.reports)
        wrong = foreign.issue("agent", "agent.east")
        bad = TlsSection(ca_file=authority.ca_file, cert_file=wrong[0], key_file=wrong[1])
        for connect in (connector(bad), connector(TlsSection())):
            stranger = Agent(tmp_path, [replica.address], connect=connect)
            async with stranger.running():
                await eventually(lambda s=stranger: s.rotation._failures >= 2, "refused twice")
        assert len(replica.reports) == taken
    finally:
        await replica.kill()


async def test_renewed_certificates_are_used_at_the_next_session(
    tmp_path: Path, replicas: Callable
) -> None:
    """A missing certificate is trouble like any other: when the file is there, the link comes up."""
    authority = Authority(tmp_path)
    chain, key = authority.issue("replica", "127.0.0.1")
    replica = await Replica().start((chain, key, authority.ca_file))
    mine = authority.issue("agent", "agent.east")
    kept = mine[1].read_bytes()
    mine[1].unlink()
    tls = TlsSection(ca_file=authority.ca_file, cert_file=mine[0], key_file=mine[1])
    agent = Agent(tmp_path, [replica.address], connect=connector(tls))
    try:
        with capture_logs() as logs:
            async with agent.running():
                await eventually(lambda: agent.rotation._failures >= 2, "no key")
                mine[1].write_bytes(kept)
                await eventually(lambda: replica.reports, "reports with the renewed key")
        assert any("No such file" in str(log.get("reason")) for log in logs)
    finally:
        await replica.kill()


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
