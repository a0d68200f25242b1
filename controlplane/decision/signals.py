"""Signals: what one tick's evidence means for a region's phase, one signal a region and tick.

Rules
- An operator's order comes first, then the return of a failed region, then suspicion and failure.
- A dead region fails by the suspicion timer, everything slower after `slow_failure_ms`.
- A failed region returns after `hold_down_ms` of good evidence, with all gates open and damping
  over. An operator's failback spares this one outage the hold-down and the damping; a gate holds it
  unless it was overridden.
- A return is over when its last step has been quiet as long as every other and the weights have
  arrived.
- A signal that is withheld comes with the reason, which `explain` and an event say.
"""

from __future__ import annotations

from enum import StrEnum

from controlplane.decision.damping import damped
from controlplane.decision.detector import Assessment, suspicion_ms
from controlplane.decision.removals import Removals
from controlplane.decision.state import RegionMemory
from controlplane.model.ids import RegionName
from controlplane.model.intents import Failback, Intents
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
    settled: bool,
) -> tuple[Signal, str]:
    """Choose the one signal of this tick, and why a stronger one is withheld.

    `settled`: the weights have arrived where the last tick wanted them.
    """
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
    if memory.phase is Phase.RECOVERING and ramped(memory, removals, settled=settled):
        return Signal.RAMPED, ""
    return Signal.QUIET, ""


def ramped(memory: RegionMemory, removals: Removals, *, settled: bool) -> bool:
    """Tell whether a returning region has had its full share for the time of a step, and the
    weights, which move by a bounded step a tick, have followed."""
    policy = removals.policy
    last = memory.ramp >= len(policy.ramp_bp)
    return last and settled and removals.now_ms - memory.ramp_ms >= policy.ramp_step_ms


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

    An operator's failback asks for good evidence and for the gates that it does not override.
    """
    policy, now_ms = removals.policy, removals.now_ms
    quiet_ms = -1 if memory.clear_ms is None else now_ms - memory.clear_ms
    recall = intents.recall(name, memory.since_ms)
    if quiet_ms < (policy.hold_down_ms if recall is None else policy.recover_ms):
        return Signal.QUIET, ""
    reason = removals.hold
    if not reason and (gates := closed_gates(intents, recall)):
        reason = f"closed gate {', '.join(gates)}"
    elif not reason and recall is None and damped(memory, policy, now_ms):
        reason = "damped after flapping"
    return (Signal.QUIET, reason) if reason else (Signal.READY, "")


def closed_gates(intents: Intents, recall: Failback | None) -> list[str]:
    """Return the gates that hold a return."""
    passed = () if recall is None else recall.gates
    return [gate for gate in intents.closed_gates if gate not in passed]
