"""Signals: what one tick's evidence means for a region's phase, one signal a region and tick.

Rules
- An operator's order comes first, then the return of a failed region, then suspicion and failure.
- A dead region fails by the suspicion timer, everything slower after `slow_failure_ms`.
- A failed region returns after `hold_down_ms` of good evidence, with all gates open and damping
  over; an operator's failback asks for good evidence only.
- A signal that is withheld comes with the reason, which `explain` and an event say.
"""

from __future__ import annotations

from enum import StrEnum

from controlplane.decision.damping import damped
from controlplane.decision.detector import Assessment, suspicion_ms
from controlplane.decision.removals import Removals
from controlplane.decision.state import RegionMemory
from controlplane.model.ids import RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Phase


class Signal(StrEnum):
    """What a tick means for a phase."""

    QUIET = "quiet"
    SUSPECT = "suspect"
    CLEAR = "clear"
    FAIL = "fail"
    READY = "ready"
    RAMPED = "ramped"
    ORDER = "order"


def signal_of(  # noqa: PLR0911 - one return a signal
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
        return return_signal(name, memory, intents, removals)
    if memory.phase is Phase.SUSPECT:
        if seen.fail and now_ms >= fail_at_ms(memory, seen, removals):
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


def fail_at_ms(memory: RegionMemory, seen: Assessment, removals: Removals) -> int:
    """Return when a suspicion becomes a failure if it lasts; sooner the more confirm it."""
    started_ms = memory.suspect_ms if memory.suspect_ms is not None else removals.now_ms
    if seen.kind == "dead":
        return started_ms + suspicion_ms(removals.policy, seen.downs, removals.count - 1)
    symptom_ms = started_ms if memory.symptom_ms is None else memory.symptom_ms
    return symptom_ms + removals.policy.slow_failure_ms


def return_signal(
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
