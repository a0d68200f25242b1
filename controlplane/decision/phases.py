"""Phases of a region: two speeds, hold-down, ramp and flap damping.

    healthy    --suspect--> suspect     weight leaves at once, reversibly
    suspect    --clear----> healthy     (or back into the ramp it was torn from)
    suspect    --fail-----> failed      fenced, held down
    failed     --ready----> recovering  after 30 s of good evidence, gates open, damping over
    recovering --ramped---> healthy     after 1, 5, 25, 70 % of its share
    recovering --suspect--> suspect
    any        --order----> failed      the operator said so

Rules
- Every pair of phase and signal is in `TABLE`; a pair that changes nothing says so.
- Taking out is capped: never below `min_regions`, at most half of the regions in
  `removal_window_ms`, at most `max_failovers_per_h` failures an hour. What is withheld is said.
- While frozen or when coordination itself is ill, nothing is taken out and nothing returns.
- Damping (BGP's): a move on suspicion costs 500, a failure 1000, halved every 300 s. At 2000 the
  region stays out until the penalty is below 750, at most 30 min: a region that comes and goes is
  worse than one that is away.

Failure modes. A region that keeps being suspected without failing is moved a few times and then
kept away by damping; it never flaps for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from controlplane.decision.detector import Assessment, suspicion_ms
from controlplane.decision.state import RegionMemory
from controlplane.model.ids import RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Event, Phase, Severity, Verdict
from controlplane.model.topology import Policy

HOUR_MS: Final = 3_600_000


class Signal(StrEnum):
    """What a tick means for a phase."""

    QUIET = "quiet"
    SUSPECT = "suspect"
    CLEAR = "clear"
    FAIL = "fail"
    READY = "ready"
    RAMPED = "ramped"
    ORDER = "order"


TABLE: Final[Mapping[tuple[Phase, Signal], Phase]] = {
    (Phase.HEALTHY, Signal.QUIET): Phase.HEALTHY,
    (Phase.HEALTHY, Signal.SUSPECT): Phase.SUSPECT,
    (Phase.HEALTHY, Signal.CLEAR): Phase.HEALTHY,
    (Phase.HEALTHY, Signal.FAIL): Phase.SUSPECT,  # nobody fails without having been suspect
    (Phase.HEALTHY, Signal.READY): Phase.HEALTHY,
    (Phase.HEALTHY, Signal.RAMPED): Phase.HEALTHY,
    (Phase.HEALTHY, Signal.ORDER): Phase.FAILED,
    (Phase.SUSPECT, Signal.QUIET): Phase.SUSPECT,
    (Phase.SUSPECT, Signal.SUSPECT): Phase.SUSPECT,
    (Phase.SUSPECT, Signal.CLEAR): Phase.HEALTHY,
    (Phase.SUSPECT, Signal.FAIL): Phase.FAILED,
    (Phase.SUSPECT, Signal.READY): Phase.SUSPECT,
    (Phase.SUSPECT, Signal.RAMPED): Phase.SUSPECT,
    (Phase.SUSPECT, Signal.ORDER): Phase.FAILED,
    (Phase.FAILED, Signal.QUIET): Phase.FAILED,
    (Phase.FAILED, Signal.SUSPECT): Phase.FAILED,
    (Phase.FAILED, Signal.CLEAR): Phase.FAILED,
    (Phase.FAILED, Signal.FAIL): Phase.FAILED,
    (Phase.FAILED, Signal.READY): Phase.RECOVERING,
    (Phase.FAILED, Signal.RAMPED): Phase.FAILED,
    (Phase.FAILED, Signal.ORDER): Phase.FAILED,
    (Phase.RECOVERING, Signal.QUIET): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.SUSPECT): Phase.SUSPECT,
    (Phase.RECOVERING, Signal.CLEAR): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.FAIL): Phase.SUSPECT,
    (Phase.RECOVERING, Signal.READY): Phase.RECOVERING,
    (Phase.RECOVERING, Signal.RAMPED): Phase.HEALTHY,
    (Phase.RECOVERING, Signal.ORDER): Phase.FAILED,
}


@dataclass(slots=True, kw_only=True)
class Removals:
    """What may still be taken out in this tick. Mutable within one step only."""

    policy: Policy
    now_ms: int
    count: int
    log: list[tuple[int, RegionName]]
    serving: set[RegionName]
    hold: str = ""

    def refusal(self, region: RegionName, *, moved: bool) -> str:
        """Say why `region` may not be taken out now; empty when it may."""
        if self.hold:
            return self.hold
        if moved:
            return ""
        if len(self.serving - {region}) < self.policy.min_regions:
            return f"fewer than {self.policy.min_regions} regions would be left"
        window_ms = self.policy.removal_window_ms
        recent = {r for at, r in self.log if self.now_ms - at < window_ms and r != region}
        if len(recent) >= max(1, self.count // 2):
            return f"{len(recent)} of {self.count} regions left within {window_ms // 1000} s"
        return ""

    def refusal_to_fail(self, region: RegionName, *, moved: bool) -> str:
        """Say why `region` may not be failed now; empty when it may."""
        if reason := self.refusal(region, moved=moved):
            return reason
        hour = [at for at, _ in self.log if self.now_ms - at < HOUR_MS]
        limit = self.policy.max_failovers_per_h
        if not moved and len(hour) >= limit:
            return f"{len(hour)} regions left within the hour, {limit} are allowed"
        return ""

    def take(self, region: RegionName) -> None:
        """Record that weight has left `region`."""
        self.log.append((self.now_ms, region))
        self.serving.discard(region)


def advance(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    intents: Intents,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    """Advance one region by one tick; append what happened to `events`."""
    policy, now_ms = removals.policy, removals.now_ms
    memory = _evidence(name, memory, seen, policy, now_ms, events)
    order = next((d for d in intents.drains if d.region == name and d.immediate), None)
    signal, held = _signal(name, memory, seen, intents, removals, ordered=order is not None)
    if held and held != memory.held:
        data = {"rule": held}
        events.append(_event("held", f"{name} is held as it is: {held}", name, data=data))
    if held != memory.held:
        memory = replace(memory, held=held)
    phase = TABLE[memory.phase, signal]
    if signal is Signal.ORDER and not memory.ordered and order is not None:
        memory = _ordered(name, memory, order.reason, order.drill, removals, events)
    elif phase is not memory.phase:
        memory = _ENTER[phase](name, memory, seen, removals, events)
    elif phase is Phase.SUSPECT:
        memory = _stay_suspect(name, memory, seen, removals, events)
    elif phase is Phase.RECOVERING:
        memory = _climb(name, memory, seen, removals, events)
    if order is None and memory.ordered:
        memory = replace(memory, ordered=False, clear_ms=None)
    verdict = _verdict(memory, seen)
    return memory if verdict is memory.verdict else replace(memory, verdict=verdict)


def available_bp(memory: RegionMemory, policy: Policy) -> int:
    """Part of its share (0 to 10,000) that the phase leaves a region."""
    if memory.phase is Phase.FAILED or memory.moved:
        return 0
    if 0 <= memory.ramp < len(policy.ramp_bp):
        return policy.ramp_bp[memory.ramp]
    return 10_000


def penalty_now(memory: RegionMemory, policy: Policy, now_ms: int) -> float:
    """Flap penalty after its decay up to now."""
    if memory.penalty == 0.0:
        return 0.0
    passed_ms = now_ms - memory.penalty_ms
    return float(memory.penalty * 0.5 ** (passed_ms / policy.flap_half_life_ms))


def damped(memory: RegionMemory, policy: Policy, now_ms: int) -> bool:
    """Tell whether flap damping keeps the region from returning."""
    if memory.damped_ms is None or now_ms - memory.damped_ms >= policy.flap_max_ms:
        return False
    return penalty_now(memory, policy, now_ms) >= policy.flap_reuse


def _signal(  # noqa: PLR0911 - one return a signal
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    intents: Intents,
    removals: Removals,
    *,
    ordered: bool,
) -> tuple[Signal, str]:
    """Choose the one signal of this tick, and why a stronger one is withheld."""
    policy, now_ms = removals.policy, removals.now_ms
    if ordered:
        return Signal.ORDER, ""
    if memory.phase is Phase.FAILED:
        return _return_signal(name, memory, intents, removals)
    if memory.phase is Phase.SUSPECT:
        if seen.fail and now_ms >= _fail_at_ms(memory, seen, removals):
            refusal = removals.refusal_to_fail(name, moved=memory.moved)
            return (Signal.QUIET, refusal) if refusal else (Signal.FAIL, "")
        quiet_ms = -1 if memory.clear_ms is None else now_ms - memory.clear_ms
        if quiet_ms >= policy.recover_ms:
            if memory.moved and damped(memory, policy, now_ms):
                return Signal.QUIET, "damped after flapping"
            return Signal.CLEAR, ""
        return Signal.QUIET, memory.held
    if seen.suspect:
        return Signal.SUSPECT, ""
    if memory.phase is Phase.RECOVERING and memory.ramp >= len(policy.ramp_bp):
        return Signal.RAMPED, ""
    return Signal.QUIET, ""


def _fail_at_ms(memory: RegionMemory, seen: Assessment, removals: Removals) -> int:
    started_ms = memory.suspect_ms if memory.suspect_ms is not None else removals.now_ms
    if seen.kind == "dead":
        return started_ms + suspicion_ms(removals.policy, seen.downs, removals.count - 1)
    symptom_ms = started_ms if memory.symptom_ms is None else memory.symptom_ms
    return symptom_ms + removals.policy.slow_failure_ms


def _return_signal(
    name: RegionName, memory: RegionMemory, intents: Intents, removals: Removals
) -> tuple[Signal, str]:
    """Let a failed region back: quiet for the hold-down, gates open, no damping.

    An operator's failback asks for good evidence only.
    """
    policy, now_ms = removals.policy, removals.now_ms
    quiet_ms = -1 if memory.clear_ms is None else now_ms - memory.clear_ms
    wanted = name in intents.failback
    if quiet_ms < (policy.recover_ms if wanted else policy.hold_down_ms):
        return Signal.QUIET, ""
    reason = removals.hold
    if not reason and not wanted:
        if intents.closed_gates:
            reason = f"closed gate {', '.join(intents.closed_gates)}"
        elif damped(memory, policy, now_ms):
            reason = "damped after flapping"
    return (Signal.QUIET, reason) if reason else (Signal.READY, "")


def _evidence(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    policy: Policy,
    now_ms: int,
    events: list[Event],
) -> RegionMemory:
    """Note what the evidence says before any transition: seen, blind, good since."""
    changes: dict[str, object] = {}
    if seen.seen and not memory.seen:
        changes["seen"] = True
    if seen.blind != memory.blind:
        changes["blind"] = seen.blind
        if seen.blind:
            text = f"{name} reports nothing, yet {seen.ups} vantages reach it: weights held"
            events.append(_event("region_blind", text, name, Severity.WARNING))
        else:
            events.append(_event("region_sighted", f"{name} is no longer blind", name))
    good = seen.sound if memory.phase is Phase.FAILED else seen.clear
    if good and memory.clear_ms is None:
        changes["clear_ms"] = now_ms
    elif not good and memory.clear_ms is not None:
        changes["clear_ms"] = None
    if memory.damped_ms is not None and not damped(memory, policy, now_ms):
        changes["damped_ms"] = None
        events.append(_event("damping_over", f"{name} may return: it was quiet", name))
    return replace(memory, **changes) if changes else memory  # type: ignore[arg-type]


def _punished(
    memory: RegionMemory, points: int, name: RegionName, removals: Removals, events: list[Event]
) -> RegionMemory:
    policy, now_ms = removals.policy, removals.now_ms
    penalty = penalty_now(memory, policy, now_ms) + points
    damped_ms = memory.damped_ms
    if penalty >= policy.flap_suppress and damped_ms is None:
        damped_ms = now_ms
        text = (
            f"{name} flaps: penalty {penalty:.0f} reached {policy.flap_suppress}; "
            f"it stays out until below {policy.flap_reuse}"
        )
        events.append(_event("region_damped", text, name, Severity.WARNING))
    return replace(memory, penalty=penalty, penalty_ms=now_ms, damped_ms=damped_ms)


def _enter_suspect(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
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
        _event("region_suspect", f"{name}: {seen.cause}", name, Severity.WARNING, data=data)
    )
    return _stay_suspect(name, memory, seen, removals, events)


def _stay_suspect(
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
            events.append(_event("held", text, name, Severity.WARNING))
        return replace(memory, held=refusal)
    removals.take(name)
    memory = replace(memory, moved=True, held="")
    return _punished(memory, removals.policy.flap_suspect_penalty, name, removals, events)


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
    events.append(_event("region_failed", text, name, Severity.CRITICAL, data=data))
    return _punished(memory, points, name, removals, events)


def _ordered(
    name: RegionName,
    memory: RegionMemory,
    reason: str,
    drill: bool,
    removals: Removals,
    events: list[Event],
) -> RegionMemory:
    if memory.phase is Phase.FAILED:
        return replace(memory, ordered=True)
    if not memory.moved:
        removals.take(name)
    now_ms = removals.now_ms
    kind = "drill" if drill else "manual"
    events.append(
        _event("region_failed", f"{name} taken out by order: {reason}", name, Severity.WARNING)
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
    events.append(_event("region_recovering", text, name))
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
    events.append(_event("region_healthy", text, name))
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


def _climb(
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
        events.append(_event("region_ramp", text, name))
    return replace(memory, ramp=ramp, ramp_ms=now_ms)


_ENTER: Final = {
    Phase.HEALTHY: _enter_healthy,
    Phase.SUSPECT: _enter_suspect,
    Phase.FAILED: _enter_failed,
    Phase.RECOVERING: _enter_recovering,
}

_VERDICTS: Final = {
    Phase.SUSPECT: Verdict.SUSPECT,
    Phase.FAILED: Verdict.UNHEALTHY,
    Phase.RECOVERING: Verdict.HEALTHY,
}


def _verdict(memory: RegionMemory, seen: Assessment) -> Verdict:
    if memory.phase is not Phase.HEALTHY:
        return _VERDICTS[memory.phase]
    if seen.blind or not memory.seen:
        return Verdict.UNKNOWN
    return Verdict.HEALTHY


def _event(
    kind: str,
    message: str,
    region: RegionName,
    severity: Severity = Severity.INFO,
    *,
    data: Mapping[str, int | str] | None = None,
) -> Event:
    return Event(kind=kind, message=message, region=region, severity=severity, data=data or {})
