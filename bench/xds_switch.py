"""From `publish` to payments at the new region, through a real Envoy on this machine.

    python -m bench.xds_switch [--switches 200] [--rate 500]

An open-loop client pays through Envoy while the plan moves everything between two regions. Printed,
in ms after `publish` (p50, p99, max): the ACK, the first arrival at the new region, the last
arrival at the old one, and how many payments failed (none should).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import aiohttp
import uvloop

from controlplane.adapters.xds_admission import NoMetrics
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.dev.servers import scratch_root
from tests.xds.lab import Gateway, Lab, eventually, plan

PAUSE_S = 0.25
"""Between switches: far above the longest straggler seen."""


class Acks(NoMetrics):
    """Notes when the first acknowledgement of endpoints came."""

    def __init__(self) -> None:
        self.came, self.at_ns = asyncio.Event(), 0

    def acked(self, type_name: str) -> None:
        """Note it."""
        if type_name == "eds" and not self.at_ns:
            self.at_ns = time.perf_counter_ns()
            self.came.set()


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def pay(lab: Lab, http: aiohttp.ClientSession, rate: float, failed: list[int]) -> None:
    """Pay on schedule for ever."""
    loop = asyncio.get_running_loop()
    start, number = loop.time(), 0
    url = f"http://127.0.0.1:{lab.envoys[0].port}/v1/channels/alipay/payments"

    async def one() -> None:
        async with http.post(url) as answer:
            region = (await answer.json())["region"] if answer.status == 200 else ""
        if not region:
            failed.append(answer.status)

    async with asyncio.TaskGroup() as group:
        while True:
            number += 1
            await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
            group.create_task(one())


async def measure(switches: int, rate: float) -> dict[str, object]:
    """Run both sides; return the figures."""
    with tempfile.TemporaryDirectory(dir=scratch_root()) as name:
        lab = await Lab(Path(name)).start()
        arrivals: dict[str, list[int]] = {}
        for region, gateway in lab.gateways.items():
            arrivals[region] = []
            _listen(gateway, arrivals[region])
        failed: list[int] = []
        rows: list[tuple[float, float, float]] = []
        try:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector) as http:
                dataplane = lab.dataplane()
                lab.ads.publish(Snapshot.build(plan(1, {"east": 10_000, "north": 0}), dataplane))
                envoy = await lab.envoy()
                await envoy.ready(http)
                async with asyncio.TaskGroup() as group:
                    paying = group.create_task(pay(lab, http, rate, failed))
                    for epoch in range(2, switches + 2):
                        await asyncio.sleep(PAUSE_S)
                        new, old = ("north", "east") if epoch % 2 == 0 else ("east", "north")
                        snapshot = Snapshot.build(plan(epoch, {new: 10_000, old: 0}), dataplane)
                        for seen in arrivals.values():
                            seen.clear()
                        rows.append(await _switch(lab, snapshot, arrivals, new, old))
                    paying.cancel()
        finally:
            await lab.stop()
    columns = list(zip(*rows, strict=True))
    labels = ("ack_ms", "first_at_new_ms", "last_at_old_ms")
    figures: dict[str, object] = {
        label: {
            "p50": round(percentile(list(column), 0.5), 2),
            "p99": round(percentile(list(column), 0.99), 2),
            "max": round(max(column), 2),
        }
        for label, column in zip(labels, columns, strict=True)
    }
    return {"switches": switches, "rate_per_s": rate, "failed": len(failed), **figures}


def _listen(gateway: Gateway, seen: list[int]) -> None:
    """Note the time of every arrival: `arrivals` is updated once a payment."""
    counter = gateway.arrivals

    class Noting(type(counter)):  # type: ignore[misc]
        def __setitem__(self, key: str, value: int) -> None:
            seen.append(time.perf_counter_ns())
            super().__setitem__(key, value)

    gateway.arrivals = Noting(counter)


async def _switch(
    lab: Lab, snapshot: Snapshot, arrivals: dict[str, list[int]], new: str, old: str
) -> tuple[float, float, float]:
    acks = Acks()
    lab.ads._metrics = acks  # noqa: SLF001 - each switch has its own
    at = time.perf_counter_ns()
    lab.ads.publish(snapshot)
    await acks.came.wait()
    acked_ns = acks.at_ns
    await eventually(lambda: bool(arrivals[new]), "a payment at the new region")
    await asyncio.sleep(PAUSE_S)
    last = max((seen for seen in arrivals[old] if seen > at), default=at)
    return tuple((moment - at) / 1e6 for moment in (acked_ns, arrivals[new][0], last))  # type: ignore[return-value]


def main() -> None:
    """Parse arguments and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=200)
    parser.add_argument("--rate", type=float, default=500)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(measure(options.switches, options.rate)), indent=2))


if __name__ == "__main__":
    main()
