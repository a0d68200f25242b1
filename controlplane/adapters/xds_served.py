"""What an ADS server serves now: the snapshot, and how long ago anybody vouched for it. Pure.

Rules
- Epochs only rise: an older snapshot is refused.
- A confirmation says that the plan was in force at that moment, read from the store with quorum.
  Channels that fail closed are served while it is younger than their staleness bound.
- One `View` is shared by all streams until something in it changes.
"""

from __future__ import annotations

from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.adapters.xds_stream import View


class Served:
    """The snapshot in force. `refreshes` counts the confirmations that renew expiring endpoints."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.refreshes = 0
        self._confirmed_ms: int | None = None
        self._view: View | None = None

    def publish(self, snapshot: Snapshot, confirmed_ms: int | None) -> bool:
        """Take a snapshot, confirmed now or not; False when a newer epoch is served already."""
        if self.snapshot is not None and snapshot.epoch < self.snapshot.epoch:
            return False
        self.snapshot = snapshot
        if confirmed_ms is not None:
            self._confirmed_ms = confirmed_ms
        return True

    def confirm(self, now_ms: int) -> bool:
        """Note a confirmation; tell whether any endpoints must be renewed with it."""
        self._confirmed_ms = now_ms
        if self.snapshot is None or not self.snapshot.envoy.fail_closed:
            return False
        self.refreshes += 1
        return True

    def confirmed(self, now_ms: int) -> bool:
        """Whether all channels that fail closed are served."""
        if self._confirmed_ms is None or self.snapshot is None:
            return False
        return not self.expired_ms(now_ms)

    def expired_ms(self, now_ms: int) -> int:
        """Largest staleness bound that has passed since the last confirmation; 0 when none has."""
        if self._confirmed_ms is None or self.snapshot is None:
            return 0
        return self.snapshot.envoy.expired(now_ms - self._confirmed_ms)

    def bounds_ms(self) -> tuple[int, ...]:
        """Staleness bounds of the channels that fail closed."""
        return tuple(self.snapshot.envoy.closed) if self.snapshot else ()

    def view(self, now_ms: int) -> View | None:
        """Return what streams may be sent now, one object for all of them; None before a plan."""
        snapshot, view = self.snapshot, self._view
        if snapshot is None:
            return None
        confirmed, expired_ms = self._confirmed_ms is not None, self.expired_ms(now_ms)
        if (
            view is None
            or view.snapshot is not snapshot
            or (view.confirmed, view.expired_ms) != (confirmed, expired_ms)
        ):
            view = self._view = View(snapshot, confirmed, expired_ms)
        return view
