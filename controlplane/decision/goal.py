"""Goal: where the weights are going, by the very rules that move them.

A plan's weights are on their way: steps are limited, a return is a ramp. The goal is what they
would be if everything under way had arrived: the phases, breakers, tilts and intents of now, with
returning regions counted as returned. While a freeze holds nothing moves, so the goal is what the
freeze allows: the present weights, except where safety or an operator takes some away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from controlplane.decision import planning
from controlplane.decision.state import State
from controlplane.decision.world import compiled
from controlplane.model.ids import FULL_BP, RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Phase
from controlplane.model.topology import Topology


def goal(topology: Topology, state: State, intents: Intents) -> Mapping[RegionName, int]:
    """Return every region's share of the whole demand, in bp, once all has arrived."""
    world = compiled(topology)
    state = state.aligned(topology)
    regions = {
        name: replace(region, phase=Phase.HEALTHY, ramp=-1)
        if region.phase is Phase.RECOVERING
        else region
        for name, region in state.memory.regions.items()
    }
    memory = replace(state.memory, regions=regions)
    limits = planning.constraints(world, memory, intents)
    weights = planning.weigh(world, state, memory, limits, intents)
    table = weights.weight if limits.frozen else weights.goal
    demand = np.array([channel.demand_tps or 1 for channel in topology.channels], dtype=np.float64)
    shares = np.rint(table @ demand / max(1.0, float(demand.sum())))
    return {name: min(FULL_BP, int(shares[index])) for name, index in world.region_index.items()}
