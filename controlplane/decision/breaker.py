"""A breaker: pybreaker's state machine over our memory and our clock.

Theory. pybreaker decides which state follows which; *whether* a cell is bad is decided by a
sequential test, and each of its decisions is one call of the machine: `fail_max=1` opens on the
first bad decision, `success_threshold=2` closes after two good ones in a row.

    closed     bad -> open         good -> closed
    open       waits until `open_until_ms`, then half_open
    half_open  bad -> open         two good -> closed

Rules
- Memory lives in our state: the storage below reads and writes one record and is thrown away.
- Time is injected: `opened_at` is None once the deadline has passed, else a far date, so the
  wall clock inside pybreaker never matters.
- The open time doubles with every trip, 10 s to 60 s, and is spread by up to 20 % by a hash of the
  cell and the number of trips: cells that tripped together do not come back together, and the same
  inputs give the same times.

Failure modes. A record whose breaker was quiet for ten minutes is forgotten, and so are its trips.
"""

from __future__ import annotations

import contextlib
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import pybreaker

from controlplane.decision.state import BreakerMemory
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.plan import Breaker
from controlplane.model.topology import Policy

FAIL_MAX: Final = 1
SUCCESS_THRESHOLD: Final = 2
FORGET_MS: Final = 600_000
"""A closed breaker this quiet starts from its shortest open time again."""
JITTER: Final = 0.2
FAR: Final = datetime(9000, 1, 1, tzinfo=UTC)

_TO_THEIRS: Final = {
    Breaker.CLOSED: pybreaker.STATE_CLOSED,
    Breaker.OPEN: pybreaker.STATE_OPEN,
    Breaker.HALF_OPEN: pybreaker.STATE_HALF_OPEN,
}
_TO_OURS: Final = {theirs: ours for ours, theirs in _TO_THEIRS.items()}


class _BadDecision(Exception):  # noqa: N818 - a decision, not an error
    """The test decided that the cell is bad."""


class Storage(pybreaker.CircuitBreakerStorage):  # type: ignore[misc]
    """One breaker's memory at one moment, as pybreaker wants it."""

    def __init__(self, memory: BreakerMemory, now_ms: int) -> None:
        super().__init__(f"{memory.region}/{memory.channel}")
        self._state = _TO_THEIRS[memory.state]
        self._failures = memory.fail_counter
        self._successes = memory.success_counter
        self._waiting = memory.open_until_ms is not None and now_ms < memory.open_until_ms
        self.opened = False

    @property
    def state(self) -> str:
        """State in pybreaker's words."""
        return str(self._state)

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def increment_counter(self) -> None:
        """Count a bad decision."""
        self._failures += 1

    def reset_counter(self) -> None:
        """Forget bad decisions."""
        self._failures = 0

    def increment_success_counter(self) -> None:
        """Count a good decision in probation."""
        self._successes += 1

    def reset_success_counter(self) -> None:
        """Forget good decisions."""
        self._successes = 0

    @property
    def counter(self) -> int:
        """Bad decisions in a row."""
        return self._failures

    @property
    def success_counter(self) -> int:
        """Good decisions in a row, in probation."""
        return self._successes

    @property
    def opened_at(self) -> datetime | None:
        """A far date while it must stay open, None once the deadline has passed."""
        return FAR if self._waiting else None

    @opened_at.setter
    def opened_at(self, moment: datetime) -> None:
        """Note that it was opened; when is our clock's business."""
        del moment
        self.opened = True


def open_ms(policy: Policy, region: RegionName, channel: ChannelName, trips: int) -> int:
    """How long the `trips`-th opening (from 1) lasts, with its spread."""
    whole = min(policy.breaker_open_max_ms, policy.breaker_open_ms << min(trips - 1, 16))
    spread = zlib.crc32(f"{region}/{channel}/{trips}".encode()) / 0xFFFFFFFF
    return round(whole * (1.0 - JITTER + 2.0 * JITTER * spread))


def decide(
    memory: BreakerMemory, policy: Policy, now_ms: int, *, good: bool, cause: str = ""
) -> BreakerMemory:
    """Hand one decision of the test to the machine and return the breaker after it.

    While it is open and waiting, a decision changes nothing.
    """
    storage = Storage(memory, now_ms)
    machine = _machine(storage)
    # expected: the machine raises what it was told, or that it has opened or is waiting
    with contextlib.suppress(_BadDecision, pybreaker.CircuitBreakerError):
        machine.call(_good if good else _bad)
    return _after(memory, storage, policy, now_ms, cause)


def wake(memory: BreakerMemory, policy: Policy, now_ms: int) -> BreakerMemory:
    """Put an open breaker whose deadline has passed into probation."""
    if memory.state is not Breaker.OPEN:
        return memory
    storage = Storage(memory, now_ms)
    if storage.opened_at is not None:
        return memory
    _machine(storage).half_open()
    return _after(memory, storage, policy, now_ms, memory.cause)


def _machine(storage: Storage) -> pybreaker.CircuitBreaker:
    return pybreaker.CircuitBreaker(
        fail_max=FAIL_MAX,
        success_threshold=SUCCESS_THRESHOLD,
        reset_timeout=0,
        state_storage=storage,
    )


def _good() -> None:
    return None


def _bad() -> None:
    raise _BadDecision


def _after(
    memory: BreakerMemory, storage: Storage, policy: Policy, now_ms: int, cause: str
) -> BreakerMemory:
    state = _TO_OURS[storage.state]
    memory = replace(memory, fail_counter=storage.counter, success_counter=storage.success_counter)
    if storage.opened:
        trips = memory.trips + 1
        wait_ms = open_ms(policy, memory.region, memory.channel, trips)
        return replace(
            memory,
            state=Breaker.OPEN,
            since_ms=now_ms,
            open_until_ms=now_ms + wait_ms,
            trips=trips,
            cause=cause or memory.cause,
            ratio=0.0,
        )
    if state is memory.state:
        return memory
    closed = state is Breaker.CLOSED
    return replace(
        memory,
        state=state,
        since_ms=now_ms,
        open_until_ms=None,
        cause="" if closed else memory.cause,
        ratio=0.0,
    )
