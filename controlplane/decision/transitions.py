"""Transitions: what a region's memory becomes when its phase changes, and what is said of it.

One function a phase that is entered (`ENTER`), and five for what happens within one: a suspicion
moves the weight as soon as it may, a return climbs its steps, an operator's order takes out, a
region that is out by order fails, and a drain ends. Each takes the memory and the region's `Turn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from controlplane.decision.damping import punished
from controlplane.decision.detector import Assessment
from controlplane.decision.removals import Removals
from controlplane.decision.state import RegionMemory
from controlplane.model.ids import RegionName
from controlplane.model.intents import Drain
from controlplane.model.plan import Event, Phase, Severity
from controlplane.model.topology import Policy

NOTHING_WRONG: Final[Mapping[str, Any]] = {
    "cause": "",
    "kind": "",
    "symptom_ms": None,
    "suspect_ms": None,
    "moved": False,
    "held": "",
}
"""What a region remembers of the evidence against it once there is none."""
AWAY: Final[Mapping[str, Any]] = {"moved": False, "ramp": -1, "clear_ms": None, "held": ""}
"""What is forgotten when the phase itself keeps the weight away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One region's turn in one tick: what is seen of it, what may be done, and what was said."""

    name: RegionName
    seen: Assessment
    removals: Removals
    events: list[Event]

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.removals.policy

    @property
    def now_ms(self) -> int:
        """Attentive time."""
        return self.removals.now_ms

    def say(
        self, event: str, text: str, severity: Severity = Severity.INFO, /, **data: int | str
    ) -> None:
        """Append an event about the region."""
        self.events.append(
            Event(kind=event, message=text, region=self.name, severity=severity, data=data)
        )

    def punish(self, memory: RegionMemory, points: int) -> RegionMemory:
        """Add to the region's flap penalty."""
        return punished(memory, points, self.name, self.policy, self.now_ms, self.events)


def _enter_suspect(memory: RegionMemory, turn: Turn) -> RegionMemory:
    """Begin a suspicion, dated back to the last sign of life, and move the weight if it may."""
    seen, now_ms = turn.seen, turn.now_ms
    turn.say(
        "region_suspect", f"{turn.name}: {seen.cause}", Severity.WARNING,
        life_age_ms=seen.life_age_ms, downs=seen.downs, vantages=seen.eligible,
    )  # fmt: skip
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
    return stay_suspect(memory, turn)


def stay_suspect(memory: RegionMemory, turn: Turn) -> RegionMemory:
    """Move the weight as soon as it may: not for egress, where breakers move channel by channel."""
    if memory.moved or not turn.seen.suspect or turn.seen.kind == "egress":
        return memory
    if refusal := turn.removals.refusal(turn.name, moved=False):
        if refusal != memory.held:
            text = f"{turn.name} is suspect, its weight stays: {refusal}"
            turn.say("held", text, Severity.WARNING)
        return replace(memory, held=refusal)
    turn.removals.take(turn.name)
    memory = replace(memory, moved=True, held="")
    return turn.punish(memory, turn.policy.flap_suspect_penalty)


def _enter_failed(memory: RegionMemory, turn: Turn) -> RegionMemory:
    policy, now_ms = turn.policy, turn.now_ms
    points = policy.flap_penalty - (policy.flap_suspect_penalty if memory.moved else 0)
    if not memory.moved:
        turn.removals.take(turn.name)
    turn.removals.fail(turn.name)
    kind, cause = turn.seen.kind or memory.kind, turn.seen.cause or memory.cause
    took_ms = 0 if memory.symptom_ms is None else now_ms - memory.symptom_ms
    text = f"{turn.name} failed {took_ms / 1000:.1f} s after the first symptom: {cause}"
    turn.say("region_failed", text, Severity.CRITICAL, kind=kind, took_ms=took_ms)
    memory = replace(memory, phase=Phase.FAILED, since_ms=now_ms, kind=kind, cause=cause, **AWAY)
    return turn.punish(memory, points)


def order_out(memory: RegionMemory, turn: Turn, order: Drain) -> RegionMemory:
    """Take a region out because an operator said so: at once, without a quorum."""
    if memory.phase is Phase.FAILED:
        return replace(memory, ordered=True)
    if not memory.moved:
        turn.removals.take(turn.name)
    kind, now_ms = "drill" if order.drill else "manual", turn.now_ms
    text = f"{turn.name} taken out by order: {order.reason}"
    turn.say("region_failed", text, Severity.WARNING)
    return replace(
        memory,
        phase=Phase.FAILED,
        since_ms=now_ms,
        kind=kind,
        cause=f"{kind}: {order.reason}",
        symptom_ms=now_ms,
        suspect_ms=now_ms,
        ordered=True,
        **AWAY,
    )


def fail_while_out(memory: RegionMemory, turn: Turn) -> RegionMemory:
    """Note that a region which is out by order would have failed.

    From now on it is away on its own account, and returns by the rules for those: this is another
    outage than the one that was ordered.
    """
    seen = turn.seen
    text = f"{turn.name} is out by order and fails: {seen.cause}"
    turn.say("region_unfit", text, Severity.WARNING, kind=seen.kind)
    memory = replace(memory, since_ms=turn.now_ms, kind=seen.kind, cause=seen.cause)
    return turn.punish(memory, turn.policy.flap_penalty)


def end_drain(memory: RegionMemory, turn: Turn) -> RegionMemory:
    """Bring a region back whose drain has ended: it is as cold as one that failed, so it takes the
    same steps."""
    if memory.phase is Phase.FAILED:
        return memory  # away on its own account as well: it returns by the rules for those
    if memory.phase is Phase.SUSPECT:
        return replace(memory, ramp=0, ramp_ms=turn.now_ms)
    return _enter_recovering(memory, turn)


def _enter_recovering(memory: RegionMemory, turn: Turn) -> RegionMemory:
    steps = ", ".join(f"{bp / 100:g} %" for bp in turn.policy.ramp_bp)
    turn.say("region_recovering", f"{turn.name} returns by steps of {steps}")
    return _return(memory, turn, ramp=0)


def _enter_healthy(memory: RegionMemory, turn: Turn) -> RegionMemory:
    if memory.phase is not Phase.SUSPECT:
        turn.say("region_healthy", f"{turn.name} carries its full share again")
        return _return(memory, turn, ramp=-1)
    for_s = (turn.now_ms - memory.since_ms) / 1000
    turn.say("region_healthy", f"{turn.name}: suspicion withdrawn after {for_s:.1f} s")
    # back into the ramp that the suspicion tore it from
    return _return(memory, turn, ramp=0 if memory.ramp >= 0 else -1)


def _return(memory: RegionMemory, turn: Turn, *, ramp: int) -> RegionMemory:
    return replace(
        memory,
        phase=Phase.RECOVERING if ramp >= 0 else Phase.HEALTHY,
        since_ms=turn.now_ms,
        ramp=ramp,
        ramp_ms=turn.now_ms,
        **NOTHING_WRONG,
    )


def climb(memory: RegionMemory, turn: Turn) -> RegionMemory:
    """Take the next step of the return when the present one has been quiet long enough.

    While nothing may change, weights stand still and no step's time passes.
    """
    policy, now_ms = turn.policy, turn.now_ms
    if turn.removals.hold:
        return replace(memory, ramp_ms=now_ms)
    early = now_ms - memory.ramp_ms < policy.ramp_step_ms
    if not turn.seen.clear or early or memory.ramp >= len(policy.ramp_bp):
        return memory
    ramp = memory.ramp + 1
    if ramp < len(policy.ramp_bp):
        part = f"{policy.ramp_bp[ramp] / 100:g} %"
        turn.say("region_ramp", f"{turn.name} now returns with {part} of its share")
    return replace(memory, ramp=ramp, ramp_ms=now_ms)


ENTER: Final[Mapping[Phase, Callable[[RegionMemory, Turn], RegionMemory]]] = {
    Phase.HEALTHY: _enter_healthy,
    Phase.SUSPECT: _enter_suspect,
    Phase.FAILED: _enter_failed,
    Phase.RECOVERING: _enter_recovering,
}
