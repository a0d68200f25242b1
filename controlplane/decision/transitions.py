"""Transitions: what a region's memory becomes when its phase changes, and what is said of it.

One function a phase that is entered (`ENTER`), and three for what happens within one: a suspicion
moves the weight as soon as it may, a return climbs its steps, an operator's order takes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from controlplane.decision.damping import punished
from controlplane.decision.detector import Assessment
from controlplane.decision.removals import Removals
from controlplane.decision.state import RegionMemory
from controlplane.model.ids import RegionName
from controlplane.model.plan import Event, Phase, Severity


def enter_suspect(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    """Begin a suspicion, dated back to the last sign of life, and move the weight if it may."""
    now_ms = removals.now_ms
    memory = replace(
        memory,
        phase=Phase.SUSPECT,
        since_ms=now_ms,
        kind=seen.kind,
        cause=seen.cause,
        symptom_ms=now_ms - seen.life_age_ms if seen.kind in ("dead", "ingress") else now_ms,
        suspect_ms=now_ms,
        moved=False,
        clear_ms=None,
    )
    data = {"life_age_ms": seen.life_age_ms, "downs": seen.downs, "vantages": seen.eligible}
    events.append(
        region_event("region_suspect", f"{name}: {seen.cause}", name, Severity.WARNING, data=data)
    )
    return stay_suspect(name, memory, seen, removals, events)


def stay_suspect(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    """Move the weight as soon as it may: not for egress, where breakers move channel by channel."""
    if memory.moved or not seen.suspect or seen.kind == "egress":
        return memory
    if refusal := removals.refusal(name, moved=False):
        if refusal != memory.held:
            text = f"{name} is suspect, its weight stays: {refusal}"
            events.append(region_event("held", text, name, Severity.WARNING))
        return replace(memory, held=refusal)
    removals.take(name)
    memory = replace(memory, moved=True, held="")
    return punished(
        memory, removals.policy.flap_suspect_penalty, name, removals.policy, removals.now_ms, events
    )


def _enter_failed(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    policy, now_ms = removals.policy, removals.now_ms
    points = policy.flap_penalty - (policy.flap_suspect_penalty if memory.moved else 0)
    if not memory.moved:
        removals.take(name)
    removals.fail(name)
    kind, cause = seen.kind or memory.kind, seen.cause or memory.cause
    symptom_ms = now_ms if memory.symptom_ms is None else memory.symptom_ms
    memory = replace(
        memory,
        phase=Phase.FAILED,
        since_ms=now_ms,
        kind=kind,
        cause=cause,
        moved=False,
        ramp=-1,
        clear_ms=None,
        held="",
    )
    took_s = (now_ms - symptom_ms) / 1000
    text = f"{name} failed {took_s:.1f} s after the first symptom: {cause}"
    data: dict[str, int | str] = {"kind": kind, "took_ms": now_ms - symptom_ms}
    events.append(region_event("region_failed", text, name, Severity.CRITICAL, data=data))
    return punished(memory, points, name, policy, now_ms, events)


def ordered_out(
    name: RegionName,
    memory: RegionMemory,
    reason: str,
    drill: bool,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    """Take a region out because an operator said so: at once, without a quorum."""
    if memory.phase is Phase.FAILED:
        return replace(memory, ordered=True)
    if not memory.moved:
        removals.take(name)
    now_ms = removals.now_ms
    kind = "drill" if drill else "manual"
    events.append(
        region_event(
            "region_failed", f"{name} taken out by order: {reason}", name, Severity.WARNING
        )
    )
    return replace(
        memory,
        phase=Phase.FAILED,
        since_ms=now_ms,
        kind=kind,
        cause=f"{kind}: {reason}",
        symptom_ms=now_ms,
        suspect_ms=now_ms,
        moved=False,
        ramp=-1,
        clear_ms=None,
        ordered=True,
        held="",
    )


def fail_while_out(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    """Note that a region which is out by order would have failed: from now on it is away on its own
    account, and returns by the rules for those."""
    events.append(
        region_event(
            "region_unfit", f"{name} is out by order and fails: {seen.cause}", name,
            Severity.WARNING, data={"kind": seen.kind},
        )
    )  # fmt: skip
    memory = replace(memory, kind=seen.kind, cause=seen.cause)
    return punished(
        memory, removals.policy.flap_penalty, name, removals.policy, removals.now_ms, events
    )


def _enter_recovering(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    del seen
    now_ms, policy = removals.now_ms, removals.policy
    text = f"{name} returns by steps of {', '.join(f'{bp / 100:g} %' for bp in policy.ramp_bp)}"
    events.append(region_event("region_recovering", text, name))
    return replace(
        memory,
        phase=Phase.RECOVERING,
        since_ms=now_ms,
        cause="",
        kind="",
        symptom_ms=None,
        suspect_ms=None,
        ramp=0,
        ramp_ms=now_ms,
        held="",
    )


def _enter_healthy(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    del seen
    now_ms = removals.now_ms
    returning = memory.phase is Phase.SUSPECT and memory.ramp >= 0
    if memory.phase is Phase.SUSPECT:
        for_s = (now_ms - memory.since_ms) / 1000
        text = f"{name}: suspicion withdrawn after {for_s:.1f} s"
    else:
        text = f"{name} carries its full share again"
    events.append(region_event("region_healthy", text, name))
    return replace(
        memory,
        phase=Phase.RECOVERING if returning else Phase.HEALTHY,
        since_ms=now_ms,
        cause="",
        kind="",
        symptom_ms=None,
        suspect_ms=None,
        moved=False,
        ramp=0 if returning else -1,
        ramp_ms=now_ms,
        held="",
    )


def climb(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    """Take the next step of the return when the present one has been quiet long enough."""
    policy, now_ms = removals.policy, removals.now_ms
    if removals.hold or not seen.clear or now_ms - memory.ramp_ms < policy.ramp_step_ms:
        return memory
    ramp = memory.ramp + 1
    if ramp < len(policy.ramp_bp):
        text = f"{name} now returns with {policy.ramp_bp[ramp] / 100:g} % of its share"
        events.append(region_event("region_ramp", text, name))
    return replace(memory, ramp=ramp, ramp_ms=now_ms)


ENTER: Final = {
    Phase.HEALTHY: _enter_healthy,
    Phase.SUSPECT: enter_suspect,
    Phase.FAILED: _enter_failed,
    Phase.RECOVERING: _enter_recovering,
}


def region_event(
    kind: str,
    message: str,
    region: RegionName,
    severity: Severity = Severity.INFO,
    *,
    data: Mapping[str, int | str] | None = None,
) -> Event:
    """Return an event about one region."""
    return Event(kind=kind, message=message, region=region, severity=severity, data=data or {})
