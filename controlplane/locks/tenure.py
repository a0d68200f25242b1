"""The time of a lock in hand, without a clock or any I/O.

May one still act, when to renew next, and what does an answer to a renewal mean? Both kinds of
`hold`, for tasks and for threads, ask this.

Rules. The lock is renewed when a third of its time is over. While nobody answers, that is tried
again until `margin_ms` before the deadline: then the lock is lost, *before* somebody else can be
granted it. An answer that it is not held any more ends it at once. What is lost stays lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from controlplane.locks.errors import LockLostError
from controlplane.locks.grant import Grant
from controlplane.model.errors import UnavailableError

RENEW_PAUSE_MS: Final = 50
"""Pause before a failed renewal is tried again (less for very short TTLs)."""


@dataclass(slots=True)
class Tenure:
    """One lock in hand. `now_ms` is the clock that the deadline of the grant is on."""

    grant: Grant
    margin_ms: int
    lost: bool = False
    why: str = "its time is over"

    def remaining_ms(self, now_ms: int) -> int:
        """Return how long one may still act; 0 when not at all."""
        if self.lost:
            return 0
        return max(0, self.grant.deadline_ms - self.margin_ms - now_ms)

    def over(self, now_ms: int) -> bool:
        """Tell whether it is lost, which it is from now on if its time is over."""
        if not self.remaining_ms(now_ms):
            self.lost = True  # never back: another thread may have learnt of a loss meanwhile
        return self.lost

    def error(self) -> LockLostError:
        """Return what to raise when it is lost."""
        return LockLostError(self.grant.name, self.why)

    def pause_ms(self, now_ms: int) -> int:
        """Return how long to wait before the next renewal, never beyond the time that is left."""
        grant = self.grant
        due = grant.deadline_ms - grant.ttl_ms * 2 // 3 - now_ms
        pause = max(due, min(RENEW_PAUSE_MS, grant.ttl_ms // 10))
        return min(pause, self.remaining_ms(now_ms))

    def renewed(self, fresh: Grant) -> None:
        """Take over what a renewal gave: more time under the same token."""
        self.grant = replace(
            self.grant, deadline_ms=fresh.deadline_ms, ttl_ms=fresh.ttl_ms, verified=fresh.verified
        )

    def failed(self, error: Exception) -> None:
        """Take a failed renewal: nobody answered, so try again; anything else, and it is lost."""
        if isinstance(error, UnavailableError | TimeoutError):
            self.why = f"it could not be renewed in time: {str(error) or 'no answer'}"
        else:
            self.lost, self.why = True, str(error)
