"""What if: the plan that other intents would lead to, by the very step that would carry them out.

The step is run ahead in virtual ticks with the present evidence standing still (nothing new is
counted, nobody grows older), until the weights have arrived and no region is called back or on its
way, or `TICKS_MAX` have passed. Nothing is estimated by a second formula that could disagree with
the first.

Safety rules (`decision.rules`) look at where that leads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from controlplane.decision.rules import Judged, Refusal, refusals
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.evidence import Evidence
from controlplane.model.ids import RegionName
from controlplane.model.intents import NO_INTENTS, Intents
from controlplane.model.load import load_bp, utilisation_bp
from controlplane.model.plan import Phase, Plan
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
class Outcome:
    """Where the intents lead."""

    plan: Plan
    regions: tuple[RegionOutcome, ...]
    refusals: tuple[Refusal, ...]


def whatif(
    topology: Topology,
    state: State,
    evidence: Evidence,
    intents: Intents,
    drill_age_ms: Mapping[RegionName, int] | None = None,
    held: Intents = NO_INTENTS,
) -> Outcome:
    """Run ahead with other intents and say where it leads and what forbids it.

    `drill_age_ms` tells how long ago each region's last completed drill ended, `held` which intents
    hold already.
    """
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
        refusals=tuple(
            refusals(
                Judged(
                    topology=topology,
                    state=state,
                    evidence=evidence,
                    intents=intents,
                    before=before,
                    after=after,
                    drill_age_ms=drill_age_ms or {},
                    held=held,
                )
            )
        ),
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
            r.phase is Phase.RECOVERING
            or r.ramp >= 0
            or (r.phase is Phase.FAILED and intents.recall(name, r.since_ms))
            for name, r in state.memory.regions.items()
        )
        if state.memory.settled and not returning:
            break
    if plan is None:
        raise ValueError("a step always leaves a plan")
    return plan
