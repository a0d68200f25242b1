"""A payment provider as one region sees it: simulated latency, faults on request, outcome counts.

Latency is lognormal through the channel's median and 99th percentile, plus the region's own way to
the provider. Faults add to that: a share of technical errors, a share of declines, more latency.
A call slower than the channel's deadline is a timeout, and as with a real provider the money may
have moved all the same: the caller knows nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.dev.content import DemoChannel, DemoRegion
from controlplane.model.errors import InvalidInputError
from controlplane.model.latency import bucket_of

_Z99 = 2.3263478740408408
"""99th percentile of the standard normal distribution."""
LATENCY_MS_MAX = 60_000
"""Most extra latency a fault may add."""


class Outcome(StrEnum):
    """How a call to the provider ended."""

    OK = "ok"
    ERROR = "error"
    DECLINED = "declined"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What is wrong with a channel: shares 0 to 1 of errors and declines, extra latency in ms."""

    errors: float = 0.0
    declines: float = 0.0
    latency_ms: float = 0.0

    @classmethod
    def parse(cls, raw: Mapping[str, object]) -> Faults:
        """Build from JSON; InvalidInputError names the field that is wrong."""
        limits = {"errors": 1.0, "declines": 1.0, "latency_ms": float(LATENCY_MS_MAX)}
        values: dict[str, float] = {}
        for key, limit in limits.items():
            value = raw.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidInputError(key, f"must be a number, not {value!r}")
            if not 0 <= value <= limit:  # NaN compares false
                raise InvalidInputError(key, f"must be 0 to {limit:g}, not {value!r}")
            values[key] = float(value)
        if values["errors"] + values["declines"] > 1:
            raise InvalidInputError("declines", "errors and declines together must be at most 1")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call: how long it takes the caller and how it ends."""

    outcome: Outcome
    latency_ms: float


@dataclass(slots=True)
class OutcomeCounts:
    """Cumulative since the gateway's boot; latency buckets are those of model.latency."""

    ok: int = 0
    error: int = 0
    declined: int = 0
    latency: dict[int, int] = field(default_factory=dict)

    def add(self, call: Call) -> None:
        """Count one call. Errors have no latency (a fast refusal is not a fast channel), timeouts
        count at their deadline."""
        match call.outcome:
            case Outcome.OK:
                self.ok += 1
            case Outcome.DECLINED:
                self.declined += 1
            case Outcome.ERROR | Outcome.TIMEOUT:
                self.error += 1
        if call.outcome is not Outcome.ERROR:
            bucket = bucket_of(call.latency_ms)
            self.latency[bucket] = self.latency.get(bucket, 0) + 1

    def as_json(self) -> dict[str, object]:
        """As agents read it: bucket numbers are JSON keys, hence strings."""
        latency = {str(bucket): n for bucket, n in sorted(self.latency.items())}
        return {
            "ok": self.ok,
            "error": self.error,
            "declined": self.declined,
            "latency": latency,
        }


class Provider:
    """One channel's provider seen from one region."""

    def __init__(self, channel: DemoChannel, region: DemoRegion, rng: random.Random) -> None:
        self._channel = channel
        self._region = region
        self._rng = rng
        self._mu = math.log(channel.p50_ms)
        self._sigma = math.log(channel.p99_ms / channel.p50_ms) / _Z99
        self.faults = Faults()

    def call(self) -> Call:
        """Draw one call; nothing is waited for here."""
        latency_ms = (
            self._rng.lognormvariate(self._mu, self._sigma)
            + self._region.latency_ms
            + self.faults.latency_ms
        )
        if latency_ms >= self._channel.timeout_ms:
            return Call(outcome=Outcome.TIMEOUT, latency_ms=float(self._channel.timeout_ms))
        dice = self._rng.random()
        if dice < self.faults.errors:
            return Call(outcome=Outcome.ERROR, latency_ms=latency_ms)
        if dice < self.faults.errors + self.faults.declines:
            return Call(outcome=Outcome.DECLINED, latency_ms=latency_ms)
        return Call(outcome=Outcome.OK, latency_ms=latency_ms)
