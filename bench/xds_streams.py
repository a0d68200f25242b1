"""A thousand ADS streams on one replica: cost of a push, latency until all have it, memory.

    python -m bench.xds_streams [--streams 1000] [--pushes 20] [--channels 4]

The server is a process of its own; the clients are raw gRPC streams that acknowledge like Envoy, in
this process. Printed: server CPU a subscriber and push (write and ACK), time from `publish` until
the last client has received it (p50, p99, max over pushes; both processes read the same clock),
resident memory a stream. Beside each figure stands that of a bare grpc.aio server that writes the
same bytes and reads the answers without a look: what nobody can do without.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop
from envoy.config.core.v3 import base_pb2
from envoy.service.discovery.v3 import discovery_pb2

from controlplane import garbage
from controlplane.adapters.metric_view import RENDERED
from controlplane.adapters.prometheus import Meters, XdsMeters
from controlplane.adapters.xds_admission import AdsLimits
from controlplane.adapters.xds_ads import (
    ADS_SERVER_OPTIONS,
    SERVICE,
    AdsService,
)
from controlplane.adapters.xds_resources import EDS, cluster_name
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import SystemClock
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Endpoint, RegionEndpoints
from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.plan import Plan, Route
from controlplane.runtime.supervisor import spawn

REGIONS = ("east", "north", "south")
STREAMS_A_LINK = 50
"""Streams that share a connection; every real Envoy has its own, which Python clients cannot."""


def names(channels: int) -> list[str]:
    """Channel names."""
    return [f"channel-{i}" for i in range(channels)]


def snapshot(epoch: int, dataplane: DataPlane) -> Snapshot:
    """Build an epoch whose weights differ from the last one."""
    weights = (("east", 5000 + epoch % 100), ("north", 3000 - epoch % 100), ("south", 2000))
    return Snapshot.build(
        Plan(
            epoch=Epoch(epoch),
            routes=tuple(
                Route(
                    channel=channel.name,
                    weights=tuple((RegionName(name), weight) for name, weight in weights),
                )
                for channel in dataplane.channels
            ),
        ),
        dataplane,
    )


def resident_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_s() -> float:
    """CPU time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Acks(XdsMeters):
    """A replica's own meters, and how many acknowledgements came."""

    count = 0

    def acked(self, type_name: str) -> None:
        """Count one."""
        super().acked(type_name)
        self.count += 1


class Bare:
    """The least that grpc.aio can do: the same bytes to every stream, whatever it answers.

    What this costs nobody can save: it is printed beside our figures as the limit.
    """

    def __init__(self, acks: Acks) -> None:
        self._acks, self._body = acks, b""
        self._wakes: set[asyncio.Event] = set()

    def register(self, server: grpc.aio.Server) -> None:
        """Add the service."""
        handler = grpc.stream_stream_rpc_method_handler(self.stream)
        handlers = {"StreamAggregatedResources": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def publish(self, snapshot: Snapshot) -> None:
        """Send an epoch to all."""
        self._body = snapshot.envoy.types[EDS].body(None) + b"\x2a\x011"
        for wake in self._wakes:
            wake.set()

    async def stream(self, _requests: Any, context: Any) -> None:
        """Serve one stream."""
        wake = asyncio.Event()
        await context.read()
        await context.write(self._body)
        self._wakes.add(wake)
        reading = spawn(self._read(context), "bare reader")
        try:
            while not reading.done():
                await wake.wait()
                wake.clear()
                await context.write(self._body)
        finally:
            self._wakes.discard(wake)
            reading.cancel()

    async def _read(self, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            self._acks.count += 1


async def serve(channels: int, *, bare: bool) -> None:
    """Server process: answers lines on stdin (`publish N`, `stat`) with one line of JSON each."""
    dataplane = DataPlane(
        regions=tuple(
            RegionEndpoints(
                region=RegionName(name), endpoints=(Endpoint(host="10.0.0.1", port=port),)
            )
            for port, name in enumerate(REGIONS, 1)
        ),
        channels=tuple(ChannelTraffic(name=ChannelName(name)) for name in names(channels)),
    )
    acks = Acks(Meters("replica", "0", RENDERED))
    limits = AdsLimits(admit_per_s=100_000, admit_burst=100_000)
    service = AdsService(clock=SystemClock(), limits=limits, metrics=acks)
    ads: Bare | AdsService = Bare(acks) if bare else service
    server = grpc.aio.server(options=ADS_SERVER_OPTIONS)
    ads.register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    ads.publish(snapshot(1, dataplane))
    garbage.settle()  # as a replica does
    print(json.dumps({"port": port}), flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := (await lines.readline()).decode().split():
        answer: dict[str, Any] = {"cpu_s": cpu_s(), "rss": resident_bytes()}
        if line[0] == "publish":
            made = snapshot(int(line[1]), dataplane)
            answer = {"at_ns": time.perf_counter_ns()}
            ads.publish(made)
        else:
            answer["acks"] = acks.count
        print(json.dumps(answer), flush=True)


class Clients:
    """All streams. They work on bytes: a thousand Python clients on the other core must not be
    what is measured."""

    def __init__(self, count: int, channels: int) -> None:
        self.count, self.wanted = count, [cluster_name(name) for name in names(channels)]
        self.at_ns = list[int]()
        self.all = asyncio.Event()
        self._answers: dict[bytes, bytes] = {}

    async def run(self, link: grpc.aio.Channel, number: int) -> None:
        """One stream: subscribe, acknowledge everything."""
        call = link.stream_stream(f"/{SERVICE}/StreamAggregatedResources")()
        request = discovery_pb2.DiscoveryRequest(
            node=base_pb2.Node(id=f"n{number}", user_agent_name="envoy"),
            type_url=EDS,
            resource_names=self.wanted,
        )
        await call.write(request.SerializeToString())
        while (response := await call.read()) is not grpc.aio.EOF:
            self.at_ns.append(time.perf_counter_ns())
            if len(self.at_ns) == self.count:
                self.all.set()
            await call.write(self.answer(response))

    def answer(self, response: bytes) -> bytes:
        """Return the ACK; every stream gets the same bytes in a push, so it is made once."""
        made = self._answers.get(response)
        if made is None:
            read = discovery_pb2.DiscoveryResponse.FromString(response)
            made = discovery_pb2.DiscoveryRequest(
                type_url=EDS,
                resource_names=self.wanted,
                version_info=read.version_info,
                response_nonce=read.nonce,
            ).SerializeToString()
            self._answers = {response: made}
        return made

    async def wait(self) -> list[int]:
        """Wait for one response on every stream; return their times."""
        await self.all.wait()
        self.all.clear()
        found, self.at_ns = self.at_ns, []
        return found


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure(streams: int, pushes: int, channels: int, *kind: str) -> dict[str, float]:
    """Run both sides; return the figures."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.xds_streams", "--serve", *kind, "--channels", str(channels),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert server.stdin
    assert server.stdout

    async def say(text: str) -> dict[str, Any]:
        server.stdin.write(text.encode() + b"\n")
        answer: dict[str, Any] = json.loads(await server.stdout.readline())
        return answer

    port = json.loads(await server.stdout.readline())["port"]
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_concurrent_streams", 1000))
    links = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        for _ in range(-(-streams // STREAMS_A_LINK))
    ]
    clients = Clients(streams, channels)
    empty = await say("stat")
    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(clients.run(links[number % len(links)], number))
            for number in range(streams)
        ]
        await clients.wait()
        await settled(say, streams)
        garbage.settle()  # what is measured is the server, not this process looking for garbage
        full = await say("stat")
        latencies: list[list[float]] = []
        cpu = [(await say("stat"))["cpu_s"]]
        for epoch in range(2, pushes + 2):
            sent = await say(f"publish {epoch}")
            found = await clients.wait()
            latencies.append([(at - sent["at_ns"]) / 1e6 for at in found])
            await settled(say, streams * epoch)
            cpu.append((await say("stat"))["cpu_s"])
        for task in running:
            task.cancel()
    server.kill()
    await server.wait()
    costs = [(b - a) / streams * 1e6 for a, b in itertools.pairwise(cpu)]
    last = [max(row) for row in latencies]
    every = [value for row in latencies for value in row]
    return {
        "streams": streams,
        "pushes": pushes,
        "server_cpu_us_a_subscriber_and_push_p50": percentile(costs, 0.5),
        "server_cpu_us_a_subscriber_and_push_max": max(costs),
        "received_p50_ms": percentile(every, 0.5),
        "received_p99_ms": percentile(every, 0.99),
        "all_received_p50_ms": percentile(last, 0.5),
        "all_received_p99_ms": percentile(last, 0.99),
        "memory_kb_a_stream": (full["rss"] - empty["rss"]) / streams / 1000,
    }


async def settled(say: Any, acks: int) -> None:
    """Wait until every ACK has arrived."""
    for _ in range(400):
        if (await say("stat"))["acks"] >= acks:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("acknowledgements missing after 8 s")


def main() -> None:
    """Parse arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.channels, bare=options.bare))
        return
    arguments = (options.streams, options.pushes, options.channels)
    weir, bare = (uvloop.run(measure(*arguments, *kind)) for kind in ((), ("--bare",)))
    rows = {
        name: {
            "weir": round(value, 2),
            "bare_grpc": round(bare[name], 2),
            "ratio": round(value / bare[name], 2),
        }
        for name, value in weir.items()
        if name not in {"streams", "pushes"}
    }
    print(json.dumps({"streams": options.streams, "pushes": options.pushes, **rows}, indent=2))


if __name__ == "__main__":
    main()
