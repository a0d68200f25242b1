"""A local override: what one replica serves its own data planes while nothing can be committed.

Theory. Without a quorum of etcd no plan is committed and the last good one stays in force. An
operator may know better (the region that fell silent is the one that carries everything). What he
asks for is worked out from that last good plan by the same weights code that the leader uses, and
laid over it for the subscribers of one replica. It is no plan: it keeps the epoch, so any committed
plan above it wins everywhere at once, and it ends by itself.

Rules
- Only channels that the intents touch change: those with weight in a drained region, and those
  with an override. All others keep the committed row.
- A failed or drained region gets nothing (the plan's word for failed, plus what is drained here);
  an open cell gets nothing, a half-open one a trickle, and a region that is suspect or on its way
  back at most what it carries now.
- A channel that nobody else may serve keeps its row; the safety rules then refuse the change.
- A channel with a single writer is never given to another region: others could still write
  elsewhere, and only a committed plan can fence them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from controlplane.decision.smoothing import round_columns
from controlplane.decision.weights import override_row, target
from controlplane.decision.world import World, compiled
from controlplane.model.ids import FULL_BP, RegionName
from controlplane.model.intents import Intents, Override
from controlplane.model.plan import Breaker, Phase, Plan, Route
from controlplane.model.topology import Topology

Table = npt.NDArray[np.float64]
REASON: Final = "local_override"


def local_plan(topology: Topology, plan: Plan, intents: Intents) -> Plan:
    """Lay drains and overrides over a plan; its epoch and everything else stay."""
    world = compiled(topology)
    asked = frozenset(d.region for d in intents.drains)
    out = asked | {s.name for s in plan.regions if s.drained or s.phase is Phase.FAILED}
    shares = _shares(world, plan, out)
    overrides = {o.channel: o for o in intents.overrides}
    routes = [
        _overlaid(world, route, shares, frozenset(out), asked, overrides.get(route.channel))
        for route in plan.routes
    ]
    statuses = tuple(replace(s, drained=s.drained or s.name in asked) for s in plan.regions)
    return replace(plan, routes=tuple(routes), regions=statuses)


def single_writer_moves(topology: Topology, before: Plan, after: Plan) -> list[str]:
    """Return the single-writer channels that the change would give to a region anew."""
    moved = []
    for channel in topology.channels:
        old, new = before.route(channel.name), after.route(channel.name)
        if not channel.single_writer or old is None or new is None:
            continue
        if any(bp > old.weight(name) for name, bp in new.weights):
            moved.append(str(channel.name))
    return moved


def _shares(world: World, plan: Plan, out: frozenset[RegionName]) -> Table:
    policy = world.topology.policy
    phases = {status.name: status.phase for status in plan.regions}
    available = np.array(
        [
            0.0 if name in out else _available(world, plan, name, phases.get(name, Phase.HEALTHY))
            for name in world.region_index
        ]
    )
    shape = (len(world.region_index), len(world.channel_index))
    cell = np.ones(shape)
    for breaker in plan.breakers:
        place = (
            world.region_index.get(breaker.region, -1),
            world.channel_index.get(breaker.channel, -1),
        )
        if breaker.state is not Breaker.CLOSED and min(place) >= 0:
            half = breaker.state is Breaker.HALF_OPEN
            cell[place] = policy.trickle_bp / FULL_BP if half else 0.0
    limit = policy.utilisation_target_bp / FULL_BP
    return target(world.load, available, cell, np.ones(shape), limit).share


def _available(world: World, plan: Plan, name: RegionName, phase: Phase) -> float:
    """Tell how much of its share a region may have: all when healthy, else what it carries now."""
    if phase is Phase.HEALTHY:
        return 1.0
    base = world.topology.region(name).share_bp
    carried = [route.weight(name) for route in plan.routes if name in dict(route.weights)]
    if not base or not carried:
        return 0.0
    return float(min(1.0, sum(carried) / len(carried) / base))


def _overlaid(
    world: World,
    route: Route,
    shares: Table,
    out: frozenset[RegionName],
    asked: frozenset[RegionName],
    override: Override | None,
) -> Route:
    """Return a route with what was asked for laid over it."""
    column = world.channel_index.get(route.channel)
    if column is None:
        return route
    regions, serves = tuple(world.region_index), world.load.serves[:, column].tolist()
    row: Table | None = None
    why = f"{REASON}: weights fixed at this replica"
    if override is not None:
        idle = frozenset(name for name, may in zip(regions, serves, strict=True) if not may)
        row = override_row(override, regions, out | idle)
    left = sorted(name for name, bp in route.weights if bp and name in asked)
    if row is None and left:
        why = f"{REASON}: {', '.join(left)} left at this replica"
        row = shares[:, column]
        if row.sum() <= 0:  # whoever is neither failed nor drained, though not well
            fit = (may and name not in out for name, may in zip(regions, serves, strict=True))
            row = np.array([float(may) for may in fit])
    if row is None or row.sum() <= 0:
        return route
    return _route(route, regions, row / row.sum(), why)


def _route(route: Route, regions: tuple[RegionName, ...], row: Table, why: str) -> Route:
    whole = round_columns(row.reshape(-1, 1))[:, 0]
    weights = dict(zip(regions, (int(bp) for bp in whole), strict=True))
    return replace(
        route,
        weights=tuple((name, weights[name]) for name, _ in route.weights),
        reasons=(why, *route.reasons),
    )
