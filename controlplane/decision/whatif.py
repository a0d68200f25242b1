"""What if: the plan that other intents would lead to, by the very step that would carry them out.

The step is run ahead in virtual ticks with the present evidence standing still (nothing new is
counted, nobody grows
older), until the weights have arrived and no region is on its way back, or `TICKS_MAX` have
passed. Nothing is estimated by
a second formula that could disagree with the first.

Safety rules look at where that leads. Each refusal names its rule, the numbers and the way around.

- min_regions: fewer regions in service than the policy's least.
- channel_served: a channel without a region in service.
- capacity: a region above 100 % of its capacity, or payments shed, that were not before.
- target_ready: a return to a region that is unhealthy now.
- gate: a failback while a gate is closed.
- override_out: an override that sends payments to a failed or drained region.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from controlplane.decision.planning import honoured_drains
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.decision.world import compiled
from controlplane.model.evidence import Evidence
from controlplane.model.ids import FULL_BP, RegionName
from controlplane.model.intents import Intents
from controlplane.model.load import load_bp, utilisation_bp
from controlplane.model.plan import Phase, Plan, Verdict
from controlplane.model.topology import Topology

TICKS_MAX: Final = 240
"""Two minutes at the default tick: longer than a whole ramp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionOutcome:
    """One region before and after: load is its mean share of the demand, all in basis points."""

    region: RegionName
    load_before_bp: int
    load_after_bp: int
    utilisation_bp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A safety rule that says no."""

    rule: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Where the intents lead."""

    plan: Plan
    regions: tuple[RegionOutcome, ...]
    refusals: tuple[Refusal, ...]


def whatif(topology: Topology, state: State, evidence: Evidence, intents: Intents) -> Outcome:
    """Run ahead with other intents and say where it leads and what forbids it."""
    before = state.memory.plan
    after = _settle(topology, state, evidence, intents)
    regions = tuple(
        RegionOutcome(
            region=region.name,
            load_before_bp=load_bp(topology, before, region.name) if before else 0,
            load_after_bp=load_bp(topology, after, region.name),
            utilisation_bp=utilisation_bp(topology, after, region.name),
        )
        for region in topology.regions
    )
    return Outcome(
        plan=after,
        regions=regions,
        refusals=tuple(_refusals(topology, state, before, after, intents)),
    )


def _settle(topology: Topology, state: State, evidence: Evidence, intents: Intents) -> Plan:
    still = replace(
        evidence,
        regions=tuple(
            replace(
                region,
                cells=(),
                ingress=tuple(replace(view, ok=0, failed=0) for view in region.ingress),
            )
            for region in evidence.regions
        ),
    )
    now_ms = state.memory.clock_ms or 0
    plan = state.memory.plan
    for _ in range(TICKS_MAX):
        now_ms += topology.policy.tick_ms
        result = step(topology, state, still, intents, now_ms)
        state, plan = result.state, result.plan
        returning = any(
            r.phase is Phase.RECOVERING or r.ramp >= 0 for r in state.memory.regions.values()
        )
        if state.memory.settled and not returning:
            break
    if plan is None:
        raise ValueError("a step always leaves a plan")
    return plan


def _refusals(
    topology: Topology, state: State, before: Plan | None, after: Plan, intents: Intents
) -> list[Refusal]:
    asked = {d.region for d in intents.drains}
    failed = {s.name for s in after.regions if s.phase is Phase.FAILED}
    out = failed | honoured_drains(compiled(topology), intents)
    found: list[Refusal] = []
    in_service = [r.name for r in topology.regions if r.name not in failed | asked]
    if asked and len(in_service) < topology.policy.min_regions:
        found.append(
            Refusal(
                rule="min_regions",
                message=f"{len(in_service)} region(s) would be left in service "
                f"({', '.join(in_service) or 'none'}), "
                f"the policy asks for {topology.policy.min_regions}",
                remedy="Bring another region back first.",
            )
        )
    found.extend(
        Refusal(
            rule="channel_served",
            message=f"{channel.name} is served by {', '.join(channel.regions)} only, "
            "and all of them would be out",
            remedy="Leave one of them in service.",
        )
        for channel in topology.channels
        if asked and all(name in failed | asked for name in channel.regions)
    )
    found.extend(_overloads(topology, before, after))
    for name in intents.failback:
        status = next((s for s in after.regions if s.name == name), None)
        now = state.memory.regions.get(name)
        if now is not None and now.verdict is Verdict.UNHEALTHY:
            found.append(
                Refusal(
                    rule="target_ready",
                    message=f"{name} is unhealthy now: {status.cause if status else now.cause}",
                    remedy="Wait until its evidence is good.",
                )
            )
        if intents.closed_gates:
            found.append(
                Refusal(
                    rule="gate",
                    message=f"closed: {', '.join(intents.closed_gates)}",
                    remedy="Finish reconciliation, which opens the gate.",
                )
            )
    for override in intents.overrides:
        sent = [name for name, weight_bp in override.weights if weight_bp and name in out]
        if sent:
            found.append(
                Refusal(
                    rule="override_out",
                    message=f"{override.channel} would be sent to {', '.join(sent)}, "
                    "which is failed or drained",
                    remedy="Give it 0.",
                )
            )
    return found


def _overloads(topology: Topology, before: Plan | None, after: Plan) -> list[Refusal]:
    found = []
    for region in topology.regions:
        used = utilisation_bp(topology, after, region.name)
        was = utilisation_bp(topology, before, region.name) if before else 0
        if used > FULL_BP and used > was:
            found.append(
                Refusal(
                    rule="capacity",
                    message=f"{region.name} would be at {used / 100:g} % of "
                    f"{region.capacity_tps}/s",
                    remedy="Shed load or add capacity first.",
                )
            )
    for route in after.routes:
        old = before.route(route.channel) if before else None
        if route.shed_bp > (old.shed_bp if old else 0):
            found.append(
                Refusal(
                    rule="capacity",
                    message=f"{route.shed_bp / 100:g} % of {route.channel} would have to be shed",
                    remedy="Shed load or add capacity first.",
                )
            )
    return found
