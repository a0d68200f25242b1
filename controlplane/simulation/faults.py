"""Faults: what happens in a scenario, as a list of plain values.

A fault holds from `start_ms` until `end_ms` of virtual time. `kind` is one of `KINDS`:

    crash      the region's agents, replica and ingress are gone (hang and crash look the same)
    agents     the region's agents are gone, its ingress and replica are well (blind)
    ingress    the region's ingress answers nobody, its agents report (black hole)
    loss       a part `rate` of the probes towards the region's ingress is lost (brown-out)
    cut        nothing passes from `region` to `peer` (one way)
    isolate    nothing passes between the region and any other
    errors     a part `rate` of the calls of `channel` fails, from `region` or everywhere
    slow       calls of `channel` take `rate` times as long, from `region` or everywhere
    liar       the region's agents say that every probe of `peer` (or of everybody) failed
    pause      the leader's process stands still
    leader     the leader's process dies at `start_ms`, wherever it is; its region is well
    capacity   the region's capacity is `rate` of what is configured
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FOREVER_MS: Final = 1 << 50

KINDS: Final = frozenset(
    {
        "crash",
        "agents",
        "ingress",
        "loss",
        "cut",
        "isolate",
        "errors",
        "slow",
        "liar",
        "pause",
        "leader",
        "capacity",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong for a while."""

    kind: str
    region: str = ""
    peer: str = ""
    channel: str = ""
    start_ms: int = 0
    end_ms: int = FOREVER_MS
    rate: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a kind that nobody simulates."""
        if self.kind not in KINDS:
            raise ValueError(
                f"kind: {self.kind!r} is unknown; use one of {', '.join(sorted(KINDS))}"
            )

    def holds(self, at_ms: int) -> bool:
        """Tell whether the fault is there at `at_ms`."""
        return self.start_ms <= at_ms < self.end_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Weather: losses in bursts, pauses and late reports that are no failure.

    Every link is in a burst now and then, in which `burst_loss` of everything is lost; a regional
    burst takes all links of a region at once. `floor_loss` is lost always.
    """

    floor_loss: float = 0.002
    burst_loss: float = 0.8
    burst_ms: float = 8000.0
    # mean time between two bursts of one link, and of one region; 0 for none
    between_ms: float = 0.0
    regional_between_ms: float = 0.0
    # agents standing still (collections, migrations), mean time between and length
    pause_between_ms: float = 0.0
    pause_ms: float = 2500.0
    # the leader standing still
    leader_pause_between_ms: float = 0.0


CALM: Final = Noise()
MEAN_5_PERCENT: Final = Noise(
    between_ms=130_000.0,
    regional_between_ms=7_200_000.0,
    pause_between_ms=600_000.0,
    leader_pause_between_ms=1_800_000.0,
)
"""About 5 % of all probes lost: links in an 80 % burst 6 % of the time, every
region every other hour."""
