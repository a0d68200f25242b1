"""Removals: how many regions may be taken out, and when none may.

Rules
- Never below `min_regions`; at most half of the regions in `removal_window_ms`.
- Nobody is failed when `max_failovers_per_h` regions were failed by evidence within the hour; then
  an operator decides about fencing. Weight still leaves on suspicion and stays away while it lasts,
  so a dead region carries nothing whatever the hour has seen. Moves on suspicion do not count: they
  are bounded by damping, and weather must not use up what a dead region needs.
- While frozen, while the leader is cut off or coordination itself is ill, nothing is taken out.
- What is withheld is said: each refusal is the text of an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controlplane.model.ids import RegionName
from controlplane.model.topology import Policy

HOUR_MS: Final = 3_600_000


@dataclass(slots=True, kw_only=True)
class Removals:
    """What may still be taken out in this tick. Mutable within one step only."""

    policy: Policy
    now_ms: int
    count: int
    log: list[tuple[int, RegionName]]
    failures: list[tuple[int, RegionName]]
    serving: set[RegionName]
    hold: str = ""

    def refusal(self, region: RegionName, *, moved: bool) -> str:
        """Say why `region` may not be taken out now; empty when it may."""
        if self.hold:
            return self.hold
        if moved:
            return ""
        if len(self.serving - {region}) < self.policy.min_regions:
            return f"fewer than {self.policy.min_regions} regions would be left"
        window_ms = self.policy.removal_window_ms
        recent = {r for at, r in self.log if self.now_ms - at < window_ms and r != region}
        if len(recent) >= max(1, self.count // 2):
            return f"{len(recent)} of {self.count} regions left within {window_ms // 1000} s"
        return ""

    def refusal_to_fail(self, region: RegionName, *, moved: bool) -> str:
        """Say why `region` may not be failed now; empty when it may."""
        if reason := self.refusal(region, moved=moved):
            return reason
        hour = [at for at, _ in self.failures if self.now_ms - at < HOUR_MS]
        limit = self.policy.max_failovers_per_h
        if len(hour) >= limit:
            return (
                f"{len(hour)} failovers within the hour, max_failovers_per_h allows {limit}: "
                "an operator decides"
            )
        return ""

    def fail(self, region: RegionName) -> None:
        """Record that evidence has failed `region`."""
        self.failures.append((self.now_ms, region))

    def take(self, region: RegionName) -> None:
        """Record that weight has left `region`."""
        self.log.append((self.now_ms, region))
        self.serving.discard(region)
