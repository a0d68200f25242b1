"""The laboratory's payer: the demo's open-loop payer, with a line for every payment.

    python -m tests.fabric.payer TARGET RATE FILE [everywhere]

`everywhere` pays only on channels that every region serves.

Each line: due_ms, end_ms, outcome, region, channel, key, reason. Times are the machine's boot clock,
which every process of the laboratory shares.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from controlplane.clock import SystemClock, seeded
from controlplane.dev.payer import Payer


class LabPayer(Payer):
    """Writes down every payment; ends when each has its answer."""

    drain_s = 12.0
    """Above the longest deadline of a channel and its margin."""

    def everywhere(self) -> None:
        """Pay only on channels that every region serves."""
        most = max(len(channel.regions) for channel in self._channels)
        self._channels = tuple(c for c in self._channels if len(c.regions) == most)
        self._mix = [channel.mix_pct for channel in self._channels]

    def _end(
        self, outcome: str, region: str, reason: str, channel: str, key: str, due_ms: float
    ) -> None:
        line = [round(due_ms), self._clock.monotonic_ms(), outcome, region, channel, key, reason]
        self._journal.write(json.dumps(line) + "\n")


async def main(target: str, rate: float, path: Path, *, everywhere: bool) -> None:
    """Pay until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with path.open("w", buffering=1) as journal:
        payer = LabPayer(target, rate, journal, clock=SystemClock(), rng=seeded())
        if everywhere:
            payer.everywhere()
        await payer.run(stop)


if __name__ == "__main__":
    uvloop.run(
        main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]), everywhere=len(sys.argv) > 4)
    )
