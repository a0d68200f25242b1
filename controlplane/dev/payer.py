"""The demo's payer: an open-loop stream of payments through Envoy, and what became of each.

Rules
- Open loop: payments start on schedule whether or not earlier ones were answered, and latency
  counts from the time a payment was due, so that a slow server cannot slow its own measurement.
- A payment whose fate is unknown is never sent again. Nothing is: one payment, one request.
- `succeeded` and `declined` are answers. `failed` is known not to be charged: refused, never sent,
  or a provider's clear error. Everything else is `unknown`.

Statistics are read on a loopback port (`GET /stats`); what did not succeed is written line by line
to a file, with time and reason.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import uvloop
from aiohttp import web

from controlplane.clock import Clock, SystemClock, rfc3339, seeded
from controlplane.dev.content import DemoChannel, load_content
from controlplane.model.latency import bucket_of, quantile_ms

IN_FLIGHT_MAX = 4000
"""Payments under way at once; more are counted as failed without being sent."""
MARGIN_S = 2.0
"""How much longer than the channel's own deadline the payer waits."""
DRAIN_S = 1.0
"""How long the demo waits at its end for payments that are under way."""
HISTORY_S = 120
"""Seconds of history kept for the view."""
RECENT_S = 10
"""Window of the shown quantiles and success rate."""
OUTCOME_HEADER = "x-weir-outcome"
"""Set by Envoy where it answers by itself: not_sent or unknown."""
_HTTP_OK = 200


@dataclass(slots=True)
class Second:
    """What happened to the payments that ended in one second."""

    at_s: int
    counts: Counter[str] = field(default_factory=Counter)
    regions: Counter[str] = field(default_factory=Counter)
    latency: Counter[int] = field(default_factory=Counter)


class Statistics:
    """Totals since the start, and a bounded history by second."""

    def __init__(self) -> None:
        self.sent = 0
        self.in_flight = 0
        self.totals: Counter[str] = Counter()
        self.regions: Counter[str] = Counter()
        self.history: deque[Second] = deque(maxlen=HISTORY_S)

    def add(self, at_ms: int, outcome: str, region: str, latency_ms: float) -> None:
        """Count one payment that ended."""
        at_s = at_ms // 1000
        if not self.history or self.history[-1].at_s != at_s:
            self.history.append(Second(at_s))
        second = self.history[-1]
        self.totals[outcome] += 1
        second.counts[outcome] += 1
        if region:
            self.regions[region] += 1
            second.regions[region] += 1
        if outcome in {"succeeded", "declined"}:
            second.latency[bucket_of(latency_ms)] += 1

    def as_json(self, now_ms: int) -> dict[str, Any]:
        """Totals, the last seconds merged, and the success rate of every second kept."""
        now_s = now_ms // 1000
        recent = [s for s in self.history if now_s - RECENT_S <= s.at_s < now_s]
        latency: Counter[int] = sum((s.latency for s in recent), Counter())
        counts: Counter[str] = sum((s.counts for s in recent), Counter())
        regions: Counter[str] = sum((s.regions for s in recent), Counter())
        by_second = {s.at_s: s for s in self.history}
        first = max(now_s - HISTORY_S, min(by_second, default=now_s))
        return {
            "sent": self.sent,
            "in_flight": self.in_flight,
            "totals": dict(self.totals),
            "regions": dict(self.regions),
            "recent": {
                "window_s": RECENT_S,
                "counts": dict(counts),
                "regions": dict(regions),
                "p50_ms": quantile_ms(latency, 0.5),
                "p99_ms": quantile_ms(latency, 0.99),
            },
            "seconds": [dict(by_second[s].counts) if s in by_second else {} for s in
                        range(first, now_s)],
        }  # fmt: skip


def classify(status: int, headers: Mapping[str, str], body: bytes) -> tuple[str, str, str]:
    """Return (outcome, region, reason) of an answer."""
    try:
        told = json.loads(body)
        region, said = str(told["region"]), str(told["status"])
    except (ValueError, KeyError, TypeError):  # not a gateway's answer but Envoy's own
        text = body[:200].decode(errors="replace")
        never_sent = headers.get(OUTCOME_HEADER) == "not_sent"
        return ("failed" if never_sent else "unknown"), "", f"{status} {text}"
    if status == _HTTP_OK and said in {"succeeded", "declined"}:
        return said, region, ""
    return ("failed" if said == "failed" else "unknown"), region, f"{status} {said}"


class Payer:
    """Sends payments to one Envoy listener."""

    drain_s = DRAIN_S

    def __init__(
        self, target: str, rate_per_s: float, journal: TextIO, *, clock: Clock, rng: random.Random
    ) -> None:
        self._url = f"http://{target}"
        self._rate_per_s = rate_per_s
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._channels = load_content().channels
        self._mix = [channel.mix_pct for channel in self._channels]
        self.statistics = Statistics()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until `stop`, then wait up to `drain_s` for what is under way."""
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None) as limit, asyncio.TaskGroup() as tg:
                    await self._send_on_schedule(session, tg, stop)
                    limit.reschedule(asyncio.get_running_loop().time() + self.drain_s)

    async def _send_on_schedule(
        self, session: aiohttp.ClientSession, tg: asyncio.TaskGroup, stop: asyncio.Event
    ) -> None:
        start_ms = self._clock.monotonic_ms()
        number = 0
        while not stop.is_set():
            due_ms = start_ms + 1000 * number / self._rate_per_s
            delay_ms = due_ms - self._clock.monotonic_ms()
            if delay_ms > 0:
                await self._clock.sleep_ms(delay_ms)
            number += 1
            channel = self._rng.choices(self._channels, self._mix)[0]
            tg.create_task(self._pay(session, channel, due_ms))

    async def _pay(
        self, session: aiohttp.ClientSession, channel: DemoChannel, due_ms: float
    ) -> None:
        stats = self.statistics
        if stats.in_flight >= IN_FLIGHT_MAX:
            self._end("failed", "", "too many under way: not sent", channel.name, "", due_ms)
            return
        key = str(uuid.uuid4())
        stats.sent += 1
        stats.in_flight += 1
        try:
            outcome, region, reason = await self._send(session, channel, key)
        finally:
            stats.in_flight -= 1
        self._end(outcome, region, reason, channel.name, key, due_ms)

    async def _send(
        self, session: aiohttp.ClientSession, channel: DemoChannel, key: str
    ) -> tuple[str, str, str]:
        url = f"{self._url}/v1/channels/{channel.name}/payments"
        body = {"amount": self._rng.randrange(100, 100_000), "currency": "CNY"}
        timeout = aiohttp.ClientTimeout(total=channel.timeout_ms / 1000 + MARGIN_S)
        try:
            async with session.post(
                url, json=body, headers={"Idempotency-Key": key}, timeout=timeout
            ) as answer:
                return classify(answer.status, answer.headers, await answer.read())
        except aiohttp.ClientConnectorError as exc:
            return "failed", "", f"never sent: {type(exc).__name__}"
        except (aiohttp.ClientError, TimeoutError) as exc:
            return "unknown", "", type(exc).__name__

    def _end(
        self, outcome: str, region: str, reason: str, channel: str, key: str, due_ms: float
    ) -> None:
        now_ms = self._clock.monotonic_ms()
        self.statistics.add(now_ms, outcome, region, now_ms - due_ms)
        if outcome in {"failed", "unknown"}:
            line = {
                "at": rfc3339(self._clock.wall_ms()),
                "outcome": outcome,
                "channel": channel,
                "region": region,
                "key": key,
                "waited_ms": round(now_ms - due_ms),
                "reason": reason,
            }
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()


async def _serve(args: argparse.Namespace) -> None:
    clock = SystemClock()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with args.journal.open("a") as journal:
        payer = Payer(args.target, args.rate, journal, clock=clock, rng=seeded(args.seed))

        async def stats(_: web.Request) -> web.Response:
            return web.json_response(payer.statistics.as_json(clock.monotonic_ms()))

        app = web.Application()
        app.router.add_get("/stats", stats)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", args.port, shutdown_timeout=1.0).start()
        try:
            await payer.run(stop)
        finally:
            await runner.cleanup()


def main() -> None:
    """Run the payer process."""
    parser = argparse.ArgumentParser(description="Demo payer: open-loop load through Envoy")
    parser.add_argument("--target", required=True, help="Envoy's listener, host:port")
    parser.add_argument("--rate", type=float, required=True, help="payments per second")
    parser.add_argument("--port", type=int, required=True, help="where statistics are read")
    parser.add_argument("--journal", type=Path, required=True, help="file of what did not succeed")
    parser.add_argument("--seed", type=int)
    uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
