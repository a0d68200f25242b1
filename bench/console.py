"""What open consoles cost a replica, and how soon they show a change, on a real `weir dev`.

Usage: python bench/console.py [STREAMS] [SECONDS]   (default 100 30)

The CPU time of one replica's process is read from /proc before and after, without and with the
streams open, several rounds in turn; the difference is the price of the consoles. Then a drain is
asked for, and each stream's first status with a newer epoch is timed against the plan's commit.
Both clocks are this machine's, so the difference holds.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.clock import SystemClock
from tests.console.browser import chromium
from tests.support.dev_run import DevRun, eventually, running, weir

CLOCK = SystemClock()
ROUNDS = 3
OPENINGS = 10
TICKS_S = os.sysconf("SC_CLK_TCK")
SETTLE_S = 2.0


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


async def used(pid: int, seconds: float) -> float:
    """Share of a core that a process uses."""
    began, at_ms = cpu_s(pid), CLOCK.monotonic_ms()
    await asyncio.sleep(seconds)
    return (cpu_s(pid) - began) / ((CLOCK.monotonic_ms() - at_ms) / 1000)


class Console:
    """One open page as the replica sees it: reads its stream, keeps when it learnt of an epoch."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: dict[int, tuple[float, float]] = {}
        self.octets = 0

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Read until cancelled; a line is looked into only as far as needed."""
        async with session.get(self.url) as answer:
            kind = b""
            async for line in answer.content:
                self.octets += len(line)
                if line.startswith(b"event: "):
                    kind = line
                elif kind == b"event: status\n" and line.startswith(b"data: "):
                    self.note(line)

    def note(self, line: bytes) -> None:
        """Keep (wall ms of arrival, wall ms of commit) of a new epoch."""
        at = line.find(b'"plan_epoch":') + 13
        epoch = int(line[at : line.find(b",", at)])
        if epoch not in self.seen:
            wall_ms = CLOCK.wall_ms()
            told = json.loads(line[6:])["committed_at"]
            self.seen[epoch] = (wall_ms, datetime.fromisoformat(told).timestamp() * 1000)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that the streams bring."""
    while not condition():  # noqa: ASYNC110 - a bench reads many sources
        await asyncio.sleep(0.05)


async def streams_of(session: aiohttp.ClientSession, url: str, count: int) -> Any:
    """Open consoles and return them with their tasks."""
    consoles = [Console(url) for _ in range(count)]
    tasks = [asyncio.ensure_future(console.run(session)) for console in consoles]
    await until(lambda: all(console.seen for console in consoles))
    return consoles, tasks


async def measure(dev: DevRun, count: int, seconds: float) -> None:
    """Print the table."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    print("replica   role      idle    open    consoles cost   per console")
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        leader = (
            dev.plans()
            and json.loads(
                await (
                    await session.get(f"http://{dev.topology['replicas'][0]['http']}/api/status")
                ).text()
            )["leader"]
        )
        for replica in dev.topology["replicas"][:2]:
            url = f"http://{replica['http']}/api/events"
            idle, busy, octets = [], [], 0
            for _ in range(ROUNDS):
                idle.append(await used(replica["pid"], seconds / ROUNDS))
                consoles, tasks = await streams_of(session, url, count)
                await asyncio.sleep(SETTLE_S)
                before = sum(console.octets for console in consoles)
                busy.append(await used(replica["pid"], seconds / ROUNDS))
                octets = sum(console.octets for console in consoles) - before
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.sleep(SETTLE_S)
            cost = statistics.median(busy) - statistics.median(idle)
            role = "leader" if replica["id"] == leader else "follower"
            rate = octets / count / (seconds / ROUNDS) / 1024
            shares = f"{statistics.median(idle):6.1%}  {statistics.median(busy):6.1%}"
            print(
                f"{replica['id']:9} {role:9}{shares}   {cost:10.1%} of a core   {rate:5.1f} KiB/s"
            )
        await change(dev, session, count)


async def change(dev: DevRun, session: aiohttp.ClientSession, count: int) -> None:
    """Time how soon every console of every replica knows a committed plan."""
    pages, tasks = [], []
    for replica in dev.topology["replicas"]:
        found, started = await streams_of(
            session, f"http://{replica['http']}/api/events", count // 3 or 1
        )
        pages += found
        tasks += started
    known = max(epoch for page in pages for epoch in page.seen)
    server = dev.topology["replicas"][0]["grpc"]
    order = ("--server", server, "drain", "south", "--reason", "bench", "--yes")
    answer = await asyncio.to_thread(weir, *order)
    assert answer.returncode == 0, answer.stderr
    await until(lambda: all(max(page.seen) > known for page in pages))
    await asyncio.sleep(SETTLE_S)
    delays = sorted(
        arrived - committed
        for page in pages
        for epoch, (arrived, committed) in page.seen.items()
        if epoch > known
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(
        f"commit -> {len(pages)} consoles: median {statistics.median(delays):.0f} ms, "
        f"p99 {delays[int(len(delays) * 0.99) - 1]:.0f} ms, max {delays[-1]:.0f} ms"
    )


def opening(dev: DevRun) -> None:
    """Print how soon a page that is opened shows the regions, in Chromium without a cache."""
    url = f"http://{dev.topology['replicas'][1]['http']}/"
    took = []
    with chromium() as browser:
        for _ in range(OPENINGS):
            context = browser.new_context()
            page = context.new_page()
            page.goto(url, wait_until="commit")
            page.wait_for_selector("[data-region] .load-now")
            took.append(page.evaluate("performance.now()"))  # since the navigation began
            context.close()
    took.sort()
    print(
        f"opened -> regions shown: median {statistics.median(took):.0f} ms, max {took[-1]:.0f} ms"
    )


def main() -> None:
    """Run a topology and measure it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    with (
        tempfile.TemporaryDirectory() as state,
        running(Path(state) / "state", "--load", "20") as dev,
    ):
        dev.until_ready()
        eventually(dev.settled, "everything runs")
        opening(dev)
        asyncio.run(measure(dev, count, seconds))


if __name__ == "__main__":
    main()
