"""Reports that one replica takes in: rate and CPU a report, beside a bare grpc.aio server.

    python bench/reports.py [--agents 100] [--reports 20000] [--rounds 5]

The server is a process of its own with the real service and inbox on the demo's topology; the
clients are one stream an agent, the next report after the last answer, from this process. The bare
server reads the same bytes, writes one answer for each and looks at nothing: what nobody can do
without. Rounds alternate; medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import grpc.aio
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane import garbage
from controlplane.adapters.agent_service import AgentService
from controlplane.adapters.wire_evidence import encode_report
from controlplane.clock import SystemClock
from controlplane.model.evidence import CellCounters, IngressView, Outcomes, Report
from controlplane.model.ids import AgentId, Epoch, RegionName, ReplicaId
from controlplane.runtime.inbox import Inbox
from controlplane.simulation.demo import demo_topology
from controlplane.v1 import agent_pb2, agent_pb2_grpc

SERVICE: Final = "controlplane.v1.AgentService"
EAST: Final = RegionName("east")
AGENTS_A_LINK: Final = 10
"""Agents that share a connection; every real one has its own."""


class Uncounted:
    """Where the service counts."""

    def report(self, region: str, result: str) -> None:
        """Count nothing; a report that is refused would spoil the figures."""
        assert result == "accepted", (region, result)


async def bare(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    """Answer each report without a look at it."""
    answer = agent_pb2.ReportResponse(seq=1, plan_epoch=7, interval_ms=500).SerializeToString()
    async for _ in requests:
        yield answer


async def serve(agents: int, *, is_bare: bool) -> None:
    """Server process: answers each line on stdin with its CPU seconds so far."""
    server = grpc.aio.server()
    if is_bare:
        handlers = {"Report": grpc.stream_stream_rpc_method_handler(bare)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    else:
        inbox = Inbox(demo_topology(), ReplicaId("east-0"), EAST, 1, agents)
        service = AgentService(
            inbox,
            SystemClock(),
            Uncounted(),
            lambda: Epoch(7),
            lambda: 500,
            regions=lambda: frozenset({"east", "north", "south"}),
            plan_confirmed=lambda: True,
            may_report_for=lambda _context: None,
            max_streams=agents,
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    garbage.settle()  # as a replica does
    print(port, flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while await lines.readline():
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(usage.ru_utime + usage.ru_stime, flush=True)


def report(agent: int) -> agent_pb2.ReportRequest:
    """Return a first report of about 1 kB: four channels, three phases' worth of buckets."""
    outcomes = Outcomes(ok=90_000, error=120, latency={b: 1000 + b for b in range(20, 42)})
    return encode_report(
        Report(
            agent=AgentId(f"agent-{agent}"),
            region=EAST,
            boot=1,
            seq=1,
            cells=tuple(
                CellCounters(channel=channel.name, traffic=outcomes, probe=Outcomes(ok=4000))
                for channel in demo_topology().channels
            ),
            ingress=tuple(
                IngressView(target=RegionName(name), ok=4000, last_success_age_ms=120)
                for name in ("north", "south")
            ),
            applied_epoch=Epoch(7),
            highest_epoch=Epoch(7),
        )
    )


async def reporting(link: grpc.aio.Channel, agent: int, count: int) -> None:
    """One agent: `count` reports, each after the last answer."""
    call = link.stream_stream(f"/{SERVICE}/Report")()
    message = report(agent)
    for seq in range(1, count + 1):
        message.seq = seq
        await call.write(message.SerializeToString())
        await call.read()
    call.cancel()


async def measure(agents: int, reports: int, *kind: str) -> tuple[float, float]:
    """Return reports a second and the server's CPU in us a report."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--serve", *kind, "--agents", str(agents),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin
    assert server.stdout
    port = int(await server.stdout.readline())

    async def cpu_s() -> float:
        server.stdin.write(b"\n")
        return float(await server.stdout.readline())

    options = (("grpc.use_local_subchannel_pool", 1),)
    links = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        for _ in range(-(-agents // AGENTS_A_LINK))
    ]
    before, began = await cpu_s(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for agent in range(agents):
            link = links[agent % len(links)]
            group.create_task(reporting(link, agent, reports // agents))
    took_s, used_s = time.perf_counter() - began, await cpu_s() - before
    for link in links:
        await link.close()
    server.kill()
    await server.wait()
    return reports / took_s, used_s / reports * 1e6


def main() -> None:
    """Parse arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--reports", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.agents, is_bare=options.bare))
        return
    kinds: dict[str, tuple[str, ...]] = {"weir": (), "bare_grpc": ("--bare",)}
    rounds = [
        {
            name: uvloop.run(measure(options.agents, options.reports, *kind))
            for name, kind in kinds.items()
        }
        for _ in range(options.rounds)
    ]
    found: dict[str, Any] = {"bytes_a_report": report(1).ByteSize(), "agents": options.agents}
    for at, what in enumerate(("reports_a_second", "server_cpu_us_a_report")):
        found[what] = {
            name: round(statistics.median(row[name][at] for row in rounds), 1) for name in kinds
        }
        ratios = [row["weir"][at] / row["bare_grpc"][at] for row in rounds]
        found[what]["ratio"] = round(statistics.median(ratios), 2)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
