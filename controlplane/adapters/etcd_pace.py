"""How patient to be with etcd: from how long its answers took lately. Pure; times in ms.

Theory. On a slow disk an answer takes seconds. To give up before it comes asks for the same work
again and never learns the outcome, so nothing is ever committed although etcd commits. To be
patient without having seen a late answer would lengthen every outage. So patience follows the
answers that came, late ones included, and nothing else: silence teaches nothing.

Rules
- A member is left for the next after `attempt_ms`, or twice the median of recent answers, at most
  `SLOWER_MAX` times as long. Leaving it does not take the question back (`etcd_links`).
- A call ends after `call_ms`, or twice the longest recent answer, at most `SLOWER_MAX` times as
  long.
- Recent are the last `KEPT` answers, none older than `KEPT_MS`: one late answer is soon forgotten.
"""

from __future__ import annotations

from collections import deque
from statistics import median_low
from typing import Final

SLOWER_MAX: Final = 4
SLOWER_FACTOR: Final = 2
KEPT: Final = 32
KEPT_MS: Final = 30_000


class Pace:
    """What recent answers say; one for all members, since every write waits for most of them."""

    def __init__(self, attempt_ms: int, call_ms: int) -> None:
        self._attempt_ms = attempt_ms
        self._call_ms = call_ms
        self._took: deque[tuple[int, int]] = deque(maxlen=KEPT)

    def answered(self, now_ms: int, took_ms: int) -> None:
        """Take in an answer, whatever it said."""
        self._took.append((now_ms, took_ms))

    def attempt_ms(self, now_ms: int) -> int:
        """How long to wait for a member before another is asked as well."""
        usual_ms = median_low(self._recent(now_ms))
        return _between(self._attempt_ms, SLOWER_FACTOR * usual_ms)

    def call_ms(self, now_ms: int) -> int:
        """How long a call may last in all."""
        return _between(self._call_ms, SLOWER_FACTOR * max(self._recent(now_ms)))

    def _recent(self, now_ms: int) -> list[int]:
        return [took for at, took in self._took if now_ms - at <= KEPT_MS] or [0]


def _between(least_ms: int, wanted_ms: int) -> int:
    return max(least_ms, min(wanted_ms, SLOWER_MAX * least_ms))
