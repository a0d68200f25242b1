"""Per-name statistics of one replica, for as many names as are worth remembering."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

NAMES_MAX: Final = 1_000
"""Names remembered; the one least recently used is forgotten."""


@dataclass(slots=True)
class NameStatistics:
    """Counts since the name was first seen by this replica. Times in ms."""

    granted: int = 0
    refused: int = 0
    renewed: int = 0
    released: int = 0
    lost: int = 0
    waited_ms: int = 0
    waited_ms_max: int = 0


class Statistics:
    """The counts by name."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, NameStatistics] = OrderedDict()

    def of(self, name: str) -> NameStatistics:
        """Return the counts of a name, remembered from now on."""
        found = self._names.get(name)
        if found is None:
            found = self._names[name] = NameStatistics()
            if len(self._names) > NAMES_MAX:
                self._names.popitem(last=False)
        else:
            self._names.move_to_end(name)
        return found

    def granted(self, name: str, waited_ms: int) -> None:
        """Count a grant and the wait before it."""
        counts = self.of(name)
        counts.granted += 1
        counts.waited_ms += waited_ms
        counts.waited_ms_max = max(counts.waited_ms_max, waited_ms)

    def refused(self, name: str) -> None:
        """Count an attempt that found the lock held until its wait was over."""
        self.of(name).refused += 1

    def renewed(self, name: str) -> None:
        """Count a renewal."""
        self.of(name).renewed += 1

    def released(self, name: str) -> None:
        """Count a release."""
        self.of(name).released += 1

    def lost(self, name: str) -> None:
        """Count a renewal that came too late."""
        self.of(name).lost += 1
