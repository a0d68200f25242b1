"""What if: the plan that other intents would give, by the very code that decides.

A dry run asks `step` itself and lets the weights arrive at once, so that an operator sees where
they will end. Nothing of it is kept. A safety rule that would block the wish is named with its
numbers and the way around.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.decision.world import World, compiled
from controlplane.model.audit import check
from controlplane.model.evidence import Evidence
from controlplane.model.ids import FULL_BP, RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Event, Phase, Plan
from controlplane.model.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionLoad:
    """What one region would carry: its part of all payments before and after (bp), and how much of
    its capacity that is (bp; above 10,000 it drowns)."""

    region: RegionName
    load_before_bp: int
    load_after_bp: int
    utilisation_bp: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A safety rule that forbids the wish, why with numbers, and the way around."""

    rule: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """The plan that the wish leads to, the load of every region, and the rules that forbid it."""

    plan: Plan
    regions: tuple[RegionLoad, ...]
    shed_bp: int
    events: tuple[Event, ...]
    refusals: tuple[Refused, ...] = ()


def whatif(topology: Topology, state: State, evidence: Evidence, intents: Intents) -> WhatIf:
    """Return the plan that `intents` lead to when all else stays as it is.

    The plan's epoch is the one it would get, its weights those that a bounded move arrives at.
    """
    state = state.aligned(topology)
    world = compiled(topology)
    # no time passes and nothing is counted: only the intents differ
    now_ms = 0 if state.memory.clock_ms is None else state.memory.clock_ms
    resting = state.having(replace(state.memory, clock_ms=now_ms, settled=False))
    still = replace(evidence, regions=(), gains=None)
    quick = replace(
        topology,
        policy=replace(topology.policy, step_limit_bp=FULL_BP + 1, dead_band_bp=0),
    )
    decided = step(quick, resting, still, intents, now_ms)
    refusals = list(refused(topology, state, intents))
    if not refusals:
        refusals = [
            Refused(rule=v.rule, message=f"{v.field}: {v.message}", remedy="ask for something else")
            for v in check(decided.plan, topology)
        ]
    before, after = _load(world, state), _load(world, decided.state)
    total = max(float(world.load.demand.sum()), 1e-9)
    capacity = np.maximum(world.load.capacity, 1e-9)
    regions = tuple(
        RegionLoad(
            region=name,
            load_before_bp=round(float(before[i]) / total * FULL_BP),
            load_after_bp=round(float(after[i]) / total * FULL_BP),
            utilisation_bp=round(float(after[i] / capacity[i]) * FULL_BP),
        )
        for name, i in world.region_index.items()
    )
    shed_bp = max((route.shed_bp for route in decided.plan.routes), default=0)
    return WhatIf(
        plan=decided.plan,
        regions=regions,
        shed_bp=shed_bp,
        events=decided.events,
        refusals=tuple(refusals),
    )


def refused(topology: Topology, state: State, intents: Intents) -> tuple[Refused, ...]:
    """Return the safety rules that forbid `intents`; empty when none does."""
    return (*_drains(topology, state, intents), *_overrides(topology, state, intents))


def _drains(topology: Topology, state: State, intents: Intents) -> list[Refused]:
    regions = {region.name for region in topology.regions}
    asked = {drain.region for drain in intents.drains} & regions
    if not asked:
        return []
    failed = {n for n, m in state.memory.regions.items() if m.phase is Phase.FAILED} & regions
    least, left = topology.policy.min_regions, regions - asked
    if len(left) < least:
        text = f"{len(left)} of {len(regions)} regions would be left, {least} must be"
        return [Refused(rule="last_region", message=text, remedy="undrain another region first")]
    if not left - failed:
        text = f"no region would carry payments: {', '.join(sorted(failed))} failed"
        remedy = f"keep one of {', '.join(sorted(asked - failed)) or 'the regions'}"
        return [Refused(rule="last_region", message=text, remedy=remedy)]
    out = []
    for channel in topology.channels:
        names = set(channel.regions)
        if not names & left - failed and names & asked - failed:
            keep = ", ".join(sorted(names & asked - failed))
            text = f"{channel.name} is served from {', '.join(channel.regions)} only"
            out.append(
                Refused(rule="channel_without_region", message=text, remedy=f"keep one of {keep}")
            )
    return out


def _overrides(topology: Topology, state: State, intents: Intents) -> list[Refused]:
    serving = {channel.name: frozenset(channel.regions) for channel in topology.channels}
    away = {drain.region for drain in intents.drains}
    away |= {n for n, m in state.memory.regions.items() if m.phase is Phase.FAILED}
    out = []
    for override in intents.overrides:
        served = serving.get(override.channel)
        if served is None:
            text = f"{override.channel} is not configured"
            out.append(Refused(rule="unknown_channel", message=text, remedy="see `weir channels`"))
            continue
        total = sum(weight for _, weight in override.weights)
        if total != FULL_BP:
            text = f"the weights of {override.channel} sum to {total} bp"
            out.append(Refused(rule="sum", message=text, remedy=f"make them {FULL_BP}"))
        named = {name for name, weight in override.weights if weight > 0}
        if stray := sorted(named - served):
            text = f"{override.channel} is not served from {', '.join(stray)}"
            remedy = f"use {', '.join(sorted(served))}"
            out.append(Refused(rule="not_served", message=text, remedy=remedy))
        elif named and named <= away:
            text = f"all of {', '.join(sorted(named))} are failed or drained"
            out.append(Refused(rule="out", message=text, remedy="name a region that is in service"))
    return out


def _load(world: World, state: State) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Payments a second (regions,) at the configured demand."""
    shape = (len(world.region_index), len(world.channel_index))
    weight = state.columns["weight"].reshape(shape)
    return np.asarray(weight @ world.load.demand / FULL_BP, dtype=np.float64)
