"""What the locks count, for whoever keeps metrics."""

from __future__ import annotations

from typing import Protocol


class LockMetrics(Protocol):
    """Port to the metrics (controlplane.adapters.prometheus)."""

    def lock_grant(self, result: str, wait_s: float | None = None) -> None:
        """Count an acquisition: granted (with its wait in s), held, unavailable, withdrawn."""
        ...

    def set_lock_epoch(self, epoch: int) -> None:
        """Report the epoch in force."""
        ...

    def set_lock_state(self, state: str) -> None:
        """Report where the epoch stands: open, or why nothing is granted."""
        ...

    def lock_token_rejected(self) -> None:
        """Count a token that is not current, met by a guard, a renewal or a release."""
        ...


class NoMetrics:
    """Counts nothing."""

    def lock_grant(self, result: str, wait_s: float | None = None) -> None:
        """Ignore."""

    def set_lock_epoch(self, epoch: int) -> None:
        """Ignore."""

    def set_lock_state(self, state: str) -> None:
        """Ignore."""

    def lock_token_rejected(self) -> None:
        """Ignore."""
