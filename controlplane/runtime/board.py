"""The board: the plan in force at this replica.

Only plans read back from etcd (or, before that, the last good one from disk) come here. The board
refuses to go backwards and refuses what the audit refuses, whoever sent it: a subscriber of this
replica never sees a bad or an older plan.

Over the committed plan a local override may lie (`runtime.local`): `served` is what subscribers
follow, `plan` what was committed. A newer plan takes the override away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog

from controlplane.model import audit
from controlplane.model.ids import Epoch
from controlplane.model.plan import Plan
from controlplane.model.topology import Topology

log = structlog.get_logger(__name__)


class PlanBoard:
    """Holds the newest plan and wakes whoever waits for a newer one. A slow reader sees the newest
    only."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._plan: Plan | None = None
        self._over: Plan | None = None
        self._changed = asyncio.Condition()
        self._listeners: list[Callable[[Plan], None]] = []

    @property
    def plan(self) -> Plan | None:
        """The plan in force, None before the first."""
        return self._plan

    @property
    def served(self) -> Plan | None:
        """What subscribers follow: the plan in force, or what lies over it."""
        return self._over or self._plan

    async def lay(self, over: Plan) -> None:
        """Lay a local override over the plan of the same epoch; one with no time left ends it."""
        if self._plan is None or over.epoch != self._plan.epoch or over.local is None:
            return
        self._over = over
        async with self._changed:
            self._changed.notify_all()

    @property
    def epoch(self) -> Epoch:
        """Its epoch; 0 before the first."""
        return self._plan.epoch if self._plan else Epoch(0)

    def listen(self, listener: Callable[[Plan], None]) -> None:
        """Call `listener` at once with every plan that comes into force (and now, if there is
        one)."""
        self._listeners.append(listener)
        if self._plan is not None:
            listener(self._plan)

    async def publish(self, plan: Plan) -> bool:
        """Put a committed plan into force; False when it was refused."""
        if self._plan is not None and plan.epoch <= self._plan.epoch:
            if plan.epoch < self._plan.epoch:
                log.warning("plan_refused", epoch=plan.epoch, in_force=self._plan.epoch)
            return False
        violations = audit.check(plan, None)
        if violations:
            log.error("plan_refused", epoch=plan.epoch, violations=[str(v) for v in violations])
            return False
        self.adopt(plan)
        async with self._changed:
            self._changed.notify_all()
        return True

    def adopt(self, plan: Plan) -> None:
        """Put a plan into force before anybody watches (the last good one from disk)."""
        self._plan, self._over = plan, None
        for listener in self._listeners:
            listener(plan)

    async def wait_newer(self, epoch: int) -> Plan:
        """Wait until a plan above `epoch` is in force, and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.epoch > epoch)
        plan = self._plan
        if plan is None:  # wait_for saw an epoch above 0
            raise RuntimeError("no plan after a wake-up")
        return plan

    async def watch(self, after_epoch: int = 0) -> AsyncIterator[Plan]:
        """Yield what is served if it is above `after_epoch` or a local override, then every newest
        plan and override."""
        seen = (after_epoch, 0)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: _version(self.served) > seen)  # noqa: B023
            plan, served = self._plan, self.served
            if plan is None or served is None:  # wait_for saw a version above the first
                raise RuntimeError("no plan after a wake-up")
            if plan is not served and plan.epoch > seen[0]:
                yield plan  # an override lies over a plan that its subscriber must have first
            seen = _version(served)
            yield served


def _version(plan: Plan | None) -> tuple[int, int]:
    """Return epoch and revision of the local override: what subscribers compare."""
    if plan is None:
        return (0, 0)
    return (plan.epoch, plan.local.revision if plan.local else 0)
