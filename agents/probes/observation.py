"""What one probe saw: its outcome, its reason when it failed, and the time in each phase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from controlplane.clock import precise_ms
from controlplane.model.errors import WeirError


class Reason(StrEnum):
    """Why a probe failed: a closed set, since it labels a metric."""

    DNS = "dns"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    TIMEOUT = "timeout"
    TLS = "tls"
    PROTOCOL = "protocol"
    STATUS = "status"
    NOT_SERVING = "not_serving"
    INTERNAL = "internal"


class ProbeFailedError(WeirError):
    """The target gave a wrong answer, or none."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One measurement. `reason` is None when the target answered well; times in ms.

    `phases` holds the phases entered, the one that failed included. `detail` is for the log.
    """

    total_ms: float
    reason: Reason | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the target answered well."""
        return self.reason is None


class Trace:
    """Stopwatch of one probe: time in each phase, and the phase it is in."""

    def __init__(self) -> None:
        self.started_ms = precise_ms()
        self.phases: dict[str, float] = {}
        self.current = "dns"

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure one phase; counted also when it fails, since a hang is what we look for."""
        self.current = name
        started_ms = precise_ms()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + precise_ms() - started_ms

    @property
    def total_ms(self) -> float:
        """Time since the probe began."""
        return precise_ms() - self.started_ms
