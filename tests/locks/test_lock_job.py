"""The lock of Weir's own jobs: one drill at a time, carried over to the next leader."""

from __future__ import annotations

from typing import Any

from lock_lab import PATIENT, Lab, until

from controlplane.clock import Clock, SystemClock
from controlplane.locks.job import JobLock
from controlplane.locks.manager import LockManager
from controlplane.model.ids import Epoch
from controlplane.model.operation import OperationState
from controlplane.runtime.operations import OperationKeeper

TTL = 30_000


class Later(SystemClock):
    """A clock that can be put ahead."""

    ahead_ms = 0

    def monotonic_ms(self) -> int:
        """As it is, and what was added."""
        return super().monotonic_ms() + self.ahead_ms


class Ahead:
    """A manager as seen by somebody whose clock can be put ahead."""

    def __init__(self, locks: LockManager) -> None:
        self.clock: Clock = Later()
        self.acquire = locks.acquire
        self.renew = locks.renew
        self.release = locks.release


async def test_one_job_at_a_time_whoever_leads(lab: Lab) -> None:
    """A second job is refused; the next leader goes on with the same grant; after the end the second
    may."""
    one, two = await lab.manager(limits=PATIENT), await lab.manager(limits=PATIENT)
    first, next_leader = JobLock(one, "jobs/drill", ttl_ms=TTL), JobLock(two, "jobs/drill")
    assert await first.keep("a") == ""
    token = (await one.inspect("jobs/drill")).holders[0].token
    assert "is held by a" in await first.keep("b")
    assert await next_leader.keep("a") == ""
    assert (await one.inspect("jobs/drill")).holders[0].token == token
    await next_leader.drop("a")
    assert await first.keep("b") == ""


async def test_a_redis_that_is_away_is_sat_out_for_as_long_as_the_grant_lasts(lab: Lab) -> None:
    """The job goes on until its grant is over and not longer; a job without a grant not at all when
    there is no patience."""
    locks = await lab.manager(limits=PATIENT)
    seen = Ahead(locks)
    lock = JobLock(seen, "jobs/drill", ttl_ms=TTL, patience_ms=0)
    assert await lock.keep("a") == ""
    lab.server.kill()
    await until(lambda: not locks._link.connected.is_set())
    seen.clock.ahead_ms = TTL // 2  # a renewal is due, and fails
    assert await lock.keep("a") == ""
    seen.clock.ahead_ms = TTL
    assert "redis" in await lock.keep("a")
    assert "redis" in await lock.keep("b")
    await lock.drop("a")


class Records:
    """Operations in memory."""

    def __init__(self, *operations: OperationState) -> None:
        self.found = {operation.id: operation for operation in operations}
        self.ended: list[str] = []

    async def running(self) -> list[OperationState]:
        """Whatever is not done."""
        return [operation for operation in self.found.values() if not operation.done]

    async def save(self, leadership: Any, operation: OperationState, *, end_drain: bool) -> None:
        """Keep it."""
        self.found[operation.id] = operation
        if end_drain:
            self.ended.append(operation.target)


async def test_two_drills_do_not_run_at_once(lab: Lab) -> None:
    """The keeper of operations aborts the second drill and ends its drain; the first goes on."""
    locks = await lab.manager(limits=PATIENT)
    drills = [
        OperationState(id=name, kind="drill", target=name, stage="holding", accepted_ms=0)
        for name in ("east", "north")
    ]
    records = Records(*drills)
    keeper = OperationKeeper(
        records, locks.clock, leadership=lambda: None, plan=lambda: None,
        converged=lambda: Epoch(0), budget_ms=1, lock=JobLock(locks, "jobs/drill", ttl_ms=TTL),
    )  # fmt: skip
    await keeper._round(None)
    assert (records.found["east"].done, records.found["north"].stage) == (False, "failed")
    assert "is held by east" in records.found["north"].message
    assert records.ended == ["north"]
