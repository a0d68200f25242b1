"""How far an operator's command has come, read off the plan in force.

Nothing is stored: the plan says whether the command is in it, the subscribers say whether they
have applied it. So any replica can tell, and no leader change can lose it.

An operation is `accepted` until a plan carries it (`committed`), and `converged` once that plan is
applied everywhere. It is `completed` when also
- drain, failover, drill: the region's weights are 0;
- undrain, failback: the region is healthy again;
- freeze, unfreeze, override, clear_override: at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.plan import Phase, Plan

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
    if kind in RETURN and _phase(plan, target) is not Phase.HEALTHY:
        return Progress(
            stage="converged",
            done=False,
            epoch=plan.epoch,
            message=f"{target} is {_phase(plan, target)}: it returns by ramp when it is healthy",
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


def _phase(plan: Plan, region: str) -> Phase:
    return next((s.phase for s in plan.regions if s.name == region), Phase.HEALTHY)
