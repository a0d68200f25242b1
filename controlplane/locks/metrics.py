"""What the locks count, for whoever keeps metrics."""

from __future__ import annotations

from typing import Protocol


class LockMetrics(Protocol):
    """Port to the metrics; `result` is one of a handful of words."""

    def lock_grant(self, result: str) -> None:
        """Count an acquisition: granted, handed_off, held, unavailable, withdrawn, lost."""
        ...

    def set_lock_epoch(self, epoch: int) -> None:
        """Report the epoch in force."""
        ...

    def lock_token_rejected(self) -> None:
        """Count a token that is not current, met by a guard, a renewal or a release."""
        ...


class NoMetrics:
    """Counts nothing."""

    def lock_grant(self, result: str) -> None:
        """Ignore."""

    def set_lock_epoch(self, epoch: int) -> None:
        """Ignore."""

    def lock_token_rejected(self) -> None:
        """Ignore."""
