"""The keeper of operations: the leader writes down how far each has come, and carries drills
through.

Progress itself is read off the plan (`runtime.progress`); the keeper adds the times of the stages
and ends drills. A drill is a failover with a purpose: leave the region, wait until that is applied
everywhere (timed against the budget), hold, return. It is aborted, and the region returns at once,
when
- another region stops being healthy, or the plan panics;
- another drill holds the fenced lock `jobs/drill`, or the locks cannot vouch for ours any more;
- the failover is not applied everywhere within the budget;
- the operator ends the drain.
Everything is in etcd, so the next leader goes on where this one stopped. Every write carries the
term; ending a drill needs no lock, for Redis may be what is failing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from controlplane.clock import Clock
from controlplane.model.errors import WeirError
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.operation import OperationState
from controlplane.model.plan import Phase, Plan
from controlplane.ports import Leadership
from controlplane.runtime.progress import progress

log = structlog.get_logger(__name__)

PERIOD_MS: Final = 500
RETURN_MAX_MS: Final = 600_000
"""A drill whose region is not healthy again ten minutes after the hold has failed."""


class Records(Protocol):
    """Operations in etcd."""

    async def running(self) -> Sequence[OperationState]:
        """Return every operation that is not done."""
        ...

    async def save(
        self, leadership: Leadership, operation: OperationState, *, end_drain: bool
    ) -> None:
        """Write an operation, guarded by the term and by the version read; with `end_drain`, delete
        the drain of its region too."""
        ...


class JobLock(Protocol):
    """The lock that lets one drill run at a time (controlplane.locks.job)."""

    async def keep(self, job: str) -> str:
        """Return "" while the job may go on, else why not."""
        ...

    async def drop(self, job: str) -> None:
        """Release."""
        ...


def advance(
    operation: OperationState, plan: Plan | None, converged: Epoch, now_ms: int, budget_ms: int
) -> tuple[OperationState, bool]:
    """Return an operation as it stands now, and whether its drain has to end. Pure."""
    if plan is None:
        return operation, False
    if operation.kind == "drill" and operation.stage in {"holding", "returning"}:
        return _later_drill(operation, plan, now_ms)
    now = progress(
        operation.kind, operation.target, operation.wanted, operation.accepted_ms, plan, converged
    )
    elapsed_ms = max(0, now_ms - operation.accepted_ms)
    moved = replace(operation, stage=now.stage, done=now.done, epoch=now.epoch, message=now.message)
    if now.stage != "accepted" and moved.commit_ms < 0:
        moved = replace(moved, commit_ms=elapsed_ms)
    if now.done and moved.converge_ms < 0:
        moved = replace(moved, converge_ms=elapsed_ms)
    if operation.kind != "drill":
        return moved, False
    abort = _abort_reason(operation, plan)
    if not abort and not now.done and elapsed_ms > budget_ms:
        abort = f"not applied everywhere within the budget of {budget_ms / 1000:g} s"
    if abort:
        return replace(moved, stage="failed", done=True, message=f"aborted: {abort}"), True
    if now.done:
        text = f"out in {elapsed_ms / 1000:.1f} s; holding for {operation.hold_s} s"
        return replace(
            moved, stage="holding", done=False, held_since_ms=now_ms, message=text
        ), False
    return moved, False


def _later_drill(operation: OperationState, plan: Plan, now_ms: int) -> tuple[OperationState, bool]:
    held_ms = now_ms - operation.held_since_ms
    if operation.stage == "holding":
        abort = _abort_reason(operation, plan)
        drained = any(s.name == operation.target and s.drained for s in plan.regions)
        if abort or not drained:
            why = abort or "the drain was ended by an operator"
            return replace(operation, stage="failed", done=True, message=f"aborted: {why}"), bool(
                abort
            )
        if held_ms < operation.hold_s * 1000:
            return operation, False
        return replace(operation, stage="returning", message="the region returns by ramp"), True
    phase = next((s.phase for s in plan.regions if s.name == operation.target), Phase.HEALTHY)
    back = all(
        route.weight(RegionName(operation.target)) > 0
        for route in plan.routes
        if any(name == operation.target for name, _ in route.weights)
    )
    if phase is Phase.HEALTHY and back:
        out_s = operation.converge_ms / 1000
        text = f"out in {out_s:.1f} s, held {operation.hold_s} s, back and healthy"
        return replace(operation, stage="completed", done=True, message=text), False
    if held_ms > operation.hold_s * 1000 + RETURN_MAX_MS:
        text = f"{operation.target} is still {phase} ten minutes after the hold"
        return replace(operation, stage="failed", done=True, message=text), False
    return operation, False


def _abort_reason(operation: OperationState, plan: Plan) -> str:
    sick = [
        s.name
        for s in plan.regions
        if s.name != operation.target and s.phase in {Phase.SUSPECT, Phase.FAILED}
    ]
    if sick:
        return f"{', '.join(sick)} is not healthy"
    return "panic" if plan.panic else ""


def _shares_its_drain(operation: OperationState, running: Sequence[OperationState]) -> bool:
    """Whether another drill of the same region goes on, whose drain must stay."""
    return any(
        other.kind == "drill" and other.target == operation.target and other.id != operation.id
        for other in running
    )


class OperationKeeper:
    """Runs `advance` over every running operation while this replica leads."""

    def __init__(
        self,
        records: Records,
        clock: Clock,
        *,
        leadership: Callable[[], Leadership | None],
        plan: Callable[[], Plan | None],
        converged: Callable[[], Epoch],
        budget_ms: int,
        lock: JobLock | None = None,
    ) -> None:
        self._records = records
        self._lock = lock
        self._clock = clock
        self._leadership = leadership
        self._plan = plan
        self._converged = converged
        self._budget_ms = budget_ms

    async def run(self) -> None:
        """Keep going until cancelled."""
        while True:
            await self._clock.sleep_ms(PERIOD_MS)
            leadership = self._leadership()
            if leadership is None:
                continue
            try:
                await self._round(leadership)
            except WeirError as error:
                log.info("operations_not_kept", error=str(error))

    async def _round(self, leadership: Leadership) -> None:
        running = await self._records.running()
        for operation in running:
            after, end_drain = advance(
                operation, self._plan(), self._converged(), self._clock.wall_ms(), self._budget_ms
            )
            if operation.kind == "drill" and not after.done and self._lock is not None:
                refused = await self._lock.keep(operation.id)
                if refused:
                    text = f"aborted: {refused}"
                    after = replace(operation, stage="failed", done=True, message=text)
                    end_drain = not _shares_its_drain(operation, running)
            if after == operation:
                continue
            await self._records.save(leadership, after, end_drain=end_drain)
            if after.done:
                if operation.kind == "drill" and self._lock is not None:
                    await self._lock.drop(operation.id)
                log.info(
                    "operation_done",
                    operation=after.id,
                    kind=after.kind,
                    target=after.target,
                    stage=after.stage,
                    result=after.message,
                )
