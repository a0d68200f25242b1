"""The lock of a job that is worked on in rounds, by whichever process leads at the time.

    refused = await lock.keep("drill-7")    # every round; "" while the job may go on
    await lock.drop("drill-7")              # when it is done

The owner is the job, not the process: a leader that takes over asks as the same owner and so has
the same grant at once, with the same token. Between two jobs the lock decides: the second is
refused. A Redis that is away is sat out for as long as the grant lasts, and before the first grant
for `patience_ms`; after that the job may not go on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import structlog

from controlplane.clock import Clock
from controlplane.locks.errors import LockHeldError, LockLostError
from controlplane.locks.grant import Grant
from controlplane.locks.hold import Locks
from controlplane.model.errors import UnavailableError, WeirError

log = structlog.get_logger(__name__)

TTL_MS: Final = 15_000
PATIENCE_MS: Final = 20_000
"""Longer than the quarantine after a loss of Redis: a job begun right after one is not refused."""


@dataclass(slots=True)
class _Kept:
    since_ms: int
    grant: Grant | None = None


class JobLock:
    """One named lock, kept for any number of jobs that want it."""

    def __init__(
        self, locks: Locks, name: str, *, ttl_ms: int = TTL_MS, patience_ms: int = PATIENCE_MS
    ) -> None:
        self._locks = locks
        self._clock: Clock = locks.clock
        self._name = name
        self._ttl_ms = ttl_ms
        self._patience_ms = patience_ms
        self._kept: dict[str, _Kept] = {}

    async def keep(self, job: str) -> str:
        """Acquire or renew for this job; "" while it may go on, else why it may not."""
        now = self._clock.monotonic_ms()
        kept = self._kept.setdefault(job, _Kept(now))
        grant = kept.grant
        if grant is not None and grant.deadline_ms - now > self._ttl_ms * 2 // 3:
            return ""
        try:
            await self._extend(job, kept)
        except LockHeldError as error:
            return f"{self._name}: {error}"
        except UnavailableError as error:
            until = grant.deadline_ms if grant else kept.since_ms + self._patience_ms
            return "" if self._clock.monotonic_ms() < until else f"{self._name}: {error}"
        return ""

    async def _extend(self, job: str, kept: _Kept) -> None:
        grant = kept.grant
        if grant is not None:
            try:
                kept.grant = await self._locks.renew(
                    self._name, owner=job, token=grant.token, ttl_ms=self._ttl_ms
                )
            except LockLostError:
                kept.grant = None  # it ran out, or Redis lost it: ask again
            else:
                return
        kept.grant = await self._locks.acquire(self._name, owner=job, ttl_ms=self._ttl_ms)
        log.info("job_lock", lock=self._name, job=job, token=kept.grant.token.value)

    async def drop(self, job: str) -> None:
        """Release what this job holds; if that fails the TTL frees it."""
        kept = self._kept.pop(job, None)
        if kept is not None and kept.grant is not None:
            with contextlib.suppress(WeirError):
                await self._locks.release(self._name, owner=job, token=kept.grant.token)
