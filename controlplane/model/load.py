"""Load: what a plan makes each region carry at the configured demand.

Channels count by their demand, so that a large channel weighs more than a small one; without any
demand figures they count alike. Integers only: everybody who shows these numbers shows the same.
"""

from __future__ import annotations

from controlplane.model.ids import RegionName
from controlplane.model.plan import Plan
from controlplane.model.topology import Topology


def load_bp(topology: Topology, plan: Plan, region: RegionName) -> int:
    """Share of the whole demand that a region carries, in bp."""
    routes = {route.channel: route for route in plan.routes}
    total = carried = 0
    for channel in topology.channels:
        demand = channel.demand_tps or 1
        route = routes.get(channel.name)
        total += demand
        carried += demand * (route.weight(region) if route else 0)
    return carried // max(1, total)


def utilisation_bp(topology: Topology, plan: Plan, region: RegionName) -> int:
    """Part of its capacity that the configured demand uses, in bp; above 10000 it is overloaded."""
    routes = {route.channel: route for route in plan.routes}
    used = 0
    for channel in topology.channels:
        route = routes.get(channel.name)
        used += channel.demand_tps * (route.weight(region) if route else 0)
    return used // max(1, topology.region(region).capacity_tps)
