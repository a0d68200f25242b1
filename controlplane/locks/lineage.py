"""What this process knows of the epoch in force, and how callers wait for it to change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Lineage:
    """`floor` is the highest epoch ever seen here: no script of ours grants below it."""

    floor: int = 0
    epoch: int = 0
    state: str = "starting"
    """open, or why nothing is granted: starting, lost, stale, quarantine, exhausted, replica,
    unreachable."""
    on_change: Callable[[], None] = lambda: None
    _turn: asyncio.Event = field(default_factory=asyncio.Event)

    def saw(self, epoch: int) -> None:
        """Remember an epoch that was seen somewhere."""
        self.floor = max(self.floor, epoch)

    def settle(self, epoch: int, state: str) -> bool:
        """Take over what the keeper found; True when it changed. A change wakes `changed`."""
        self.saw(epoch)
        if (epoch, state) == (self.epoch, self.state):
            return False
        self.epoch, self.state = epoch, state
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()
        self.on_change()
        return True

    @property
    def turn(self) -> asyncio.Event:
        """Set at the next change."""
        return self._turn
