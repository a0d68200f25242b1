"""What bounds an ADS server, and where it counts.

A herd of data planes that restarts with its machines, or reconnects after an outage, is let in at a
rate the replica can serve; who is refused is told so, and comes again with its own backoff.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from controlplane.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class AdsLimits:
    """Bounds of one server. Times in ms."""

    streams_max: int = 4000
    admit_per_s: int = 200
    admit_burst: int = 400
    write_timeout_ms: int = 5000
    remember_ms: int = 60_000


class Admission:
    """A token bucket: `per_s` streams a second, `burst` at once."""

    def __init__(self, clock: Clock, per_s: int, burst: int) -> None:
        self._clock, self._per_s, self._burst = clock, per_s, burst
        self._tokens = float(burst)
        self._at_ms = clock.monotonic_ms()

    def admit(self) -> bool:
        """Take a place; False when there is none at the moment."""
        now_ms = self._clock.monotonic_ms()
        gained = (now_ms - self._at_ms) * self._per_s / 1000
        self._tokens, self._at_ms = min(self._burst, self._tokens + gained), now_ms
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class XdsMetrics(Protocol):
    """Where the server counts. `type_name` is cds, eds, lds or rds; `reason` is a fixed word."""

    def acked(self, type_name: str) -> None:
        """Count one acknowledgement."""
        ...

    def nacked(self, type_name: str) -> None:
        """Count one refusal by a data plane."""
        ...

    def pushed(self, type_name: str, payload_bytes: int) -> None:
        """Count one message written."""
        ...

    def streams(self, kind: str, count: int) -> None:
        """Set the number of open streams of a kind."""
        ...

    def refused(self, reason: str) -> None:
        """Count a stream that was not admitted, or dropped."""
        ...


class NoMetrics:
    """Counts nothing."""

    def acked(self, type_name: str) -> None:
        """Count nothing."""

    def nacked(self, type_name: str) -> None:
        """Count nothing."""

    def pushed(self, type_name: str, payload_bytes: int) -> None:
        """Count nothing."""

    def streams(self, kind: str, count: int) -> None:
        """Count nothing."""

    def refused(self, reason: str) -> None:
        """Count nothing."""
