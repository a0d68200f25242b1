"""What others count: outcomes of real payments, and queue backlogs, polled as JSON over HTTP.

    outcomes_url  {"boot": 7, "channels": {"alipay": {"ok": 3, "error": 0, "declined": 1,
                   "latency": {"12": 3}}}}      cumulative since the application's boot
    queues_url    {"callbacks": 1.5}            age in seconds of the oldest waiting item

An answer is taken as a whole or not at all. A source that does not answer changes nothing: its
counters stand still, its queue lags are dropped after `STALE_MS` (an old lag would look like a fact
of now). Trouble is logged when it begins and when it ends, not at every poll.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from agents.cadence import first_slot, next_slot
from agents.counters import Counters
from controlplane.clock import Clock
from controlplane.logging import get
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import Outcomes
from controlplane.model.ids import valid_name
from controlplane.model.latency import BUCKETS

MAX_BODY: Final = 4 * 1024 * 1024
MAX_QUEUES: Final = 32
MAX_COUNT: Final = 1 << 62
MAX_LAG_S: Final = 10 * 365 * 86_400.0
STALE_MS: Final = 5_000
TIMEOUT_S: Final = 2.0
"""Deadline of one poll. It may be longer than the interval: polls of one source never overlap."""

log = get("sources")


def parse_outcomes(body: Any) -> tuple[int, dict[str, Outcomes]]:
    """Check an application's answer; returns (boot, outcomes by channel) or InvalidInputError."""
    top = _mapping("", body)
    boot = _count("boot", top.get("boot"))
    channels = _mapping("channels", top.get("channels"))
    return boot, {
        name: _outcomes(f"channels.{name}", _mapping(f"channels.{name}", item))
        for name, item in channels.items()
    }


def parse_queues(body: Any) -> dict[str, float]:
    """Check the answer about queues; returns lag in seconds by queue, or InvalidInputError."""
    queues = _mapping("", body)
    if len(queues) > MAX_QUEUES:
        raise InvalidInputError("queues", f"{len(queues)} of them, at most {MAX_QUEUES}")
    for name, lag_s in queues.items():
        if not valid_name(name):
            raise InvalidInputError(name[:80], "is no name: 1 to 63 of a-z, 0-9, '-' and '_'")
        if isinstance(lag_s, bool) or not isinstance(lag_s, int | float):
            raise InvalidInputError(name, "must be a number of seconds")
        if not (math.isfinite(lag_s) and 0 <= lag_s <= MAX_LAG_S):
            raise InvalidInputError(name, f"{lag_s} is no lag in seconds")
    return {name: float(lag_s) for name, lag_s in queues.items()}


class Source:
    """Polls one URL; hands every good answer to `take`."""

    def __init__(self, name: str, url: str, take: Callable[[Any], None]) -> None:
        self._name = name
        self._url = url
        self._take = take
        self._well = True

    async def run(self, clock: Clock, rng: random.Random, interval_ms: int) -> None:
        """Poll for ever, once an interval."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            slot = first_slot(clock.monotonic_ms(), interval_ms, rng)
            while True:
                await clock.sleep_ms(max(0.0, slot.due_ms - clock.monotonic_ms()))
                await self.poll(session)
                slot = next_slot(slot, clock.monotonic_ms(), interval_ms, rng)

    async def poll(self, session: aiohttp.ClientSession) -> bool:
        """Ask once; tell whether a good answer was taken."""
        try:
            async with session.get(self._url, allow_redirects=False) as answer:
                answer.raise_for_status()
                self._take(json.loads(await _read(answer)))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, InvalidInputError) as error:
            if self._well:
                text = str(error) or type(error).__name__
                log.warning("source_failed", source=self._name, url=self._url, error=text)
            self._well = False
            return False
        except RecursionError:
            self._well = False
            return False
        if not self._well:
            log.info("source_well_again", source=self._name)
        self._well = True
        return True


class Queues:
    """The newest queue lags, dropped when they are old."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lags_s: Mapping[str, float] = {}
        self._taken_ms = 0

    def take(self, body: Any) -> None:
        """Take an answer; InvalidInputError leaves the last one."""
        self._lags_s, self._taken_ms = parse_queues(body), self._clock.monotonic_ms()

    @property
    def lags_s(self) -> Mapping[str, float]:
        """Lag in seconds by queue; empty when unknown."""
        old = self._clock.monotonic_ms() - self._taken_ms > STALE_MS
        return {} if old else self._lags_s


def traffic_into(counters: Counters) -> Callable[[Any], None]:
    """Return a taker of outcomes; channels that are not configured are left out."""

    def take(body: Any) -> None:
        boot, channels = parse_outcomes(body)
        for name in counters.channels & channels.keys():
            counters.counted(name, boot, channels[name])

    return take


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    body = b""
    async for chunk in answer.content.iter_chunked(65_536):
        body += chunk
        if len(body) > MAX_BODY:
            raise InvalidInputError("body", f"more than {MAX_BODY} bytes")
    return body


def _outcomes(path: str, item: Mapping[str, Any]) -> Outcomes:
    latency = _mapping(f"{path}.latency", item.get("latency", {}))
    buckets: dict[int, int] = {}
    for key, count in latency.items():
        if not key.isascii() or not key.isdigit() or int(key) >= BUCKETS:
            raise InvalidInputError(f"{path}.latency", f"{key[:80]!r} is no bucket (0 to 65)")
        buckets[int(key)] = _count(f"{path}.latency.{key}", count)
    return Outcomes(
        ok=_count(f"{path}.ok", item.get("ok", 0)),
        error=_count(f"{path}.error", item.get("error", 0)),
        declined=_count(f"{path}.declined", item.get("declined", 0)),
        latency=buckets,
    )


def _mapping(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(path or "body", "must be a JSON object")
    return value


def _count(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise InvalidInputError(path, "must be a whole number of at least 0")
    return value
