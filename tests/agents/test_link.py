"""The link to real gRPC servers: reports, their rhythm, and certificates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agents.dialout import connector
from controlplane.config import TlsSection
from tests.agents.linked import Agent
from tests.agents.replica import Replica
from tests.agents.servers import Authority
from tests.agents.timing import eventually


@pytest.mark.usefixtures("patient")
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


@pytest.mark.usefixtures("patient")
async def test_stopping_sends_a_last_report_and_closes(tmp_path: Path, replicas: Callable) -> None:
    """SIGTERM's path: one more report after the stop, then the stream is closed by the agent."""
    replica = await replicas()
    replica.interval_ms = 0  # not set
    agent = Agent(tmp_path, [replica.address], interval_ms=300_000)
    async with agent.running():
        await eventually(lambda: agent.meter.up, "the first report is answered")
    assert agent.ended
    assert len(replica.reports) == 2  # the next regular one would be due in five minutes
    assert replica.half_closed == 1
    assert not agent.meter.up


@pytest.mark.usefixtures("patient")
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


@pytest.mark.usefixtures("patient")
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
