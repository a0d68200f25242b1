"""Phases of a region: two speeds, hold-down, ramp and flap damping.

    healthy    --suspect--> suspect     weight leaves at once, reversibly
    suspect    --clear----> healthy     (or back into the ramp it was torn from)
    suspect    --fail-----> failed      fenced, held down
    failed     --ready----> recovering  after 30 s of good evidence, gates open, damping over
    recovering --ramped---> healthy     after 1, 5, 25, 70 and 100 % of its share
    recovering --suspect--> suspect
    any        --order----> failed      the operator said so

Rules
- Every pair of phase and signal is in `TABLE`; a pair that changes nothing says so.
- Taking out is capped (`removals`): never below `min_regions`, at most half of the regions in
  `removal_window_ms`. What is withheld is said.
- While frozen or when coordination itself is ill, nothing is taken out and nothing returns.
- A region that comes and goes is kept away for a while (`damping`).
- A region that is out by order and would fail meanwhile is away on its own account from then on.
- A region whose drain ends returns by the same steps as one that failed, whatever ended it.

Failure modes. A region that keeps being suspected without failing is moved a few times and then
kept away by damping; it never flaps for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from controlplane.decision.damping import damped
from controlplane.decision.detector import Assessment
from controlplane.decision.removals import Removals
from controlplane.decision.signals import Signal, signal_of
from controlplane.decision.state import ORDERED, RegionMemory
from controlplane.decision.transitions import (
    ENTER,
    Turn,
    climb,
    end_drain,
    fail_while_out,
    order_out,
    stay_suspect,
)
from controlplane.model.ids import RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Event, Phase, Severity, Verdict
from controlplane.model.topology import Policy

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


def advance(
    name: RegionName,
    memory: RegionMemory,
    seen: Assessment,
    intents: Intents,
    removals: Removals,
    events: list[Event],
    *,
    undrained: bool,
    settled: bool,
) -> RegionMemory:
    """Advance one region by one tick; append what happened to `events`.

    `undrained`: its drain has ended since the last plan. `settled`: the weights had arrived then.
    """
    turn = Turn(name=name, seen=seen, removals=removals, events=events)
    memory = _evidence(memory, turn)
    if undrained:
        memory = end_drain(memory, turn)
    order = next((d for d in intents.drains if d.region == name and d.immediate), None)
    signal, held = signal_of(
        name, memory, seen, intents, removals, ordered=order is not None, settled=settled
    )
    if held != memory.held:
        if held:
            turn.say("held", f"{name} is held as it is: {held}", rule=held)
        memory = replace(memory, held=held)
    phase = TABLE[memory.phase, signal]
    if signal is Signal.ORDER and not memory.ordered and order is not None:
        memory = order_out(memory, turn, order)
    elif phase is not memory.phase:
        memory = ENTER[phase](memory, turn)
    elif phase is Phase.SUSPECT:
        memory = stay_suspect(memory, turn)
    elif phase is Phase.FAILED and memory.kind in ORDERED and seen.fail and not removals.hold:
        memory = fail_while_out(memory, turn)
    elif phase is Phase.RECOVERING:
        memory = climb(memory, turn)
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


def _evidence(memory: RegionMemory, turn: Turn) -> RegionMemory:
    """Note what the evidence says before any transition: seen, blind, good since."""
    name, seen, now_ms = turn.name, turn.seen, turn.now_ms
    changes: dict[str, object] = {}
    if seen.seen and not memory.seen:
        changes["seen"] = True
    if seen.blind != memory.blind:
        changes["blind"] = seen.blind
        if seen.blind:
            text = f"{name} reports nothing, yet {seen.ups} vantages reach it: weights stay"
            turn.say("region_blind", text, Severity.WARNING)
        else:
            turn.say("region_sighted", f"{name} is no longer blind")
    good = seen.sound if memory.phase is Phase.FAILED else seen.clear
    if good and memory.clear_ms is None:
        changes["clear_ms"] = now_ms
    elif not good and memory.clear_ms is not None:
        changes["clear_ms"] = None
    if memory.damped_ms is not None and not damped(memory, turn.policy, now_ms):
        changes["damped_ms"] = None
        turn.say("damping_over", f"{name} may return: it was quiet")
    return replace(memory, **changes) if changes else memory  # type: ignore[arg-type]


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
