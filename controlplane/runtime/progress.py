"""How far an operator's command has come, read off the plan in force.

Nothing is stored: the plan says whether the command is in it, the subscribers say whether they
have applied it. So any replica can tell, and no leader change can lose it.

An operation is `accepted` until a plan carries it (`committed`), and `converged` once that plan is
applied everywhere. It is `completed` when also
- drain, failover, drill: the region's weights are 0;
- undrain, failback: the region is healthy again, which is when its ramp has ended;
- freeze, unfreeze, override, clear_override: at once.
A return has `failed` when the region fails again meanwhile: what was asked for that outage is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.plan import Phase, Plan, RegionStatus

LEAVE = frozenset({"drain", "failover", "drill"})
RETURN = frozenset({"undrain", "failback"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Stage of an operation: accepted, committed, converged or completed."""

    stage: str
    done: bool
    epoch: Epoch = Epoch(0)
    message: str = ""


def progress(
    kind: str,
    target: str,
    wanted: Mapping[str, int],
    accepted_ms: int,
    plan: Plan | None,
    converged: Epoch,
) -> Progress:
    """Tell how far an operation has come.

    `wanted` are the weights of an override in bp; `accepted_ms` is wall time in ms.
    """
    if plan is None or not _in_plan(kind, target, wanted, accepted_ms, plan):
        return Progress(stage="accepted", done=False, message="waiting for the leader's next plan")
    if converged < plan.epoch:
        return Progress(
            stage="committed",
            done=False,
            epoch=plan.epoch,
            message=f"epoch {plan.epoch} is not applied everywhere yet",
        )
    if kind in LEAVE and any(route.weight(RegionName(target)) for route in plan.routes):
        most = max(route.weight(RegionName(target)) for route in plan.routes)
        return Progress(
            stage="converged",
            done=False,
            epoch=plan.epoch,
            message=f"{target} still carries up to {most / 100:g} % of a channel",
        )
    if kind in RETURN and (status := _status(plan, target)).phase is not Phase.HEALTHY:
        again = status.phase is Phase.FAILED and _wall_ms(plan, status) > accepted_ms
        return Progress(
            stage="failed" if again else "converged",
            done=again,
            epoch=plan.epoch,
            message=_on_its_way(plan, status, again=again),
        )
    return Progress(stage="completed", done=True, epoch=plan.epoch, message="applied everywhere")


def _in_plan(
    kind: str, target: str, wanted: Mapping[str, int], accepted_ms: int, plan: Plan
) -> bool:
    if kind in LEAVE or kind in RETURN:
        drained = any(s.name == target and s.drained for s in plan.regions)
        return drained == (kind in LEAVE)
    if kind in {"freeze", "unfreeze"}:
        return plan.frozen == (kind == "freeze")
    route = plan.route(ChannelName(target))
    if kind == "override":
        return route is not None and dict(route.weights) == dict(wanted)
    return plan.committed_at_ms >= accepted_ms


def _status(plan: Plan, region: str) -> RegionStatus:
    name = RegionName(region)
    return next((s for s in plan.regions if s.name == name), RegionStatus(name=name))


def _wall_ms(plan: Plan, status: RegionStatus) -> int:
    """Return since when a status holds, in wall ms."""
    return plan.committed_at_ms - plan.decided_at_ms + status.since_ms


def _on_its_way(plan: Plan, status: RegionStatus, *, again: bool) -> str:
    name = status.name
    if again:
        return f"{name} failed again ({status.cause}): this return is over, ask anew"
    if status.phase is Phase.RECOVERING:
        most = max(route.weight(name) for route in plan.routes)
        text = f"{name} returns by ramp, now with up to {most / 100:g} % of a channel"
        return f"{text}; to abort: weir drain {name}"
    return f"{name} is {status.phase}: it returns by ramp once its evidence is good"
