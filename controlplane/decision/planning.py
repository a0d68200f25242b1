"""Planning: from phases, breakers and intents to routes with reasons.

Theory. What shapes the weights is summed up in a `situation`, a short text. While it stays the same
and the weights have arrived, nothing is computed: a quiet tick costs nothing however many channels
there are. When it changes, all channels are computed together (capacity couples them), but only
routes that really changed become new objects.

Fallback for a channel that nobody may serve (an orphan), best first
1. regions that are neither failed nor drained (suspects, open cells): health is disregarded;
2. drained regions that have not failed;
3. the last good weights.
Panic is the same for all channels at once: no region is available at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter, ne

import numpy as np
import numpy.typing as npt

from controlplane.decision.classes import Numbers, alike, classes, members
from controlplane.decision.phases import available_bp
from controlplane.decision.smoothing import approach, round_columns
from controlplane.decision.state import BreakerMemory, Memory, State
from controlplane.decision.weights import Trace, override_row, target, untraced
from controlplane.decision.world import World
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.intents import Intents
from controlplane.model.plan import Breaker, Phase, Route, routes

Table = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Named = tuple[tuple[RegionName, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What the weights must respect in this tick."""

    available: Table
    failed: frozenset[RegionName]
    drained: frozenset[RegionName]
    panic: bool
    # nothing may change by itself: an operator's freeze, or a leader that is cut off
    frozen: bool
    cut_off: bool

    @property
    def out(self) -> frozenset[RegionName]:
        """Regions that carry nothing while another lives."""
        return self.failed | self.drained


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Whole-bp weights (regions, channels), shed bp per channel, and whether they have arrived."""

    weight: Table
    shed: Table
    settled: bool
    orphans: Mask
    goal: Table


def constraints(world: World, memory: Memory, intents: Intents) -> Constraints:
    """Read phases and drains; the last regions are never drained."""
    policy = world.topology.policy
    names = [region.name for region in world.topology.regions]
    failed = frozenset(n for n in names if memory.regions[n].phase is Phase.FAILED)
    drained = honoured_drains(world, intents)
    available = np.array(
        [
            0.0 if name in drained else available_bp(memory.regions[name], policy) / FULL_BP
            for name in names
        ]
    )
    return Constraints(
        available=available,
        failed=failed,
        drained=drained,
        panic=not bool((available > 0).any()),
        frozen=memory.frozen or memory.cut_off,
        cut_off=memory.cut_off,
    )


def honoured_drains(world: World, intents: Intents) -> frozenset[RegionName]:
    """Regions that are drained: all that are asked for, unless too few would be left.

    Then those with the largest share stay, in the order of their share.
    """
    policy = world.topology.policy
    asked = {d.region for d in intents.drains if d.region in world.region_index}
    stay = len(world.region_index) - len(asked)
    if stay >= policy.min_regions:
        return frozenset(asked)
    by_share = sorted(asked, key=lambda name: (-world.topology.region(name).share_bp, name))
    return frozenset(by_share[policy.min_regions - stay :])


def situation(
    world: World, memory: Memory, limits: Constraints, intents: Intents, tilt: Table
) -> str:
    """Sum up everything that shapes target and reasons."""
    regions = ",".join(
        f"{r.phase.value}:{r.ramp}:{r.moved:d}:{r.since_ms}" for r in memory.regions.values()
    )
    # the first reason for an override is its text; a change of any intent is a new situation
    asked = ";".join(
        f"{o.channel}={'/'.join(f'{n}:{w}' for n, w in o.weights)}:{o.by}:{o.reason}"
        for o in intents.overrides
    )
    cells = ",".join(
        f"{key}:{b.state.value}"
        for key, b in memory.breakers.items()
        if b.state is not Breaker.CLOSED
    )
    drains = ",".join(sorted(limits.drained))
    tilted = np.flatnonzero(tilt < 1.0)
    tilts = ",".join(f"{i}:{tilt[i]:.2f}" for i in tilted.tolist())
    flags = f"{limits.panic:d}{limits.frozen:d}{limits.cut_off:d}"
    outages = ",".join(memory.outages)
    return f"{world.fingerprint}|{regions}|{drains}|{asked}|{cells}|{tilts}|{outages}|{flags}"


def cell_table(world: World, memory: Memory) -> Table:
    """Largest share (regions, channels) that breakers leave: 1, 0, or a trickle.

    A channel whose provider is out everywhere keeps its shares: there is nowhere better.
    """
    shape = (len(world.region_index), len(world.channel_index))
    cell = np.ones(shape)
    trickle = world.topology.policy.trickle_bp / FULL_BP
    for breaker in memory.breakers.values():
        if breaker.state is Breaker.CLOSED or breaker.channel in memory.outages:
            continue
        place = (world.region_index[breaker.region], world.channel_index[breaker.channel])
        cell[place] = 0.0 if breaker.state is Breaker.OPEN else trickle
    return cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What the rules ask for before operators and fallbacks: whole-bp weights (regions, channels),
    shed share per channel, where nobody may serve, utilisation per region, the breakers' table."""

    goal: Table
    shed: Table
    orphans: Mask
    utilisation: Table
    cell: Table


def wanted(
    world: World, state: State, memory: Memory, limits: Constraints, trace: Trace = untraced
) -> Aim:
    """Return the target of the rules, computed once for every class of channels."""
    shape = (len(world.region_index), len(world.channel_index))
    cell = cell_table(world, memory)
    tilt = state.columns["tilt"].reshape(shape)
    if memory.outages:
        tilt = tilt.copy()
        tilt[:, [world.channel_index[name] for name in memory.outages]] = 1.0
    limit = world.topology.policy.utilisation_target_bp / FULL_BP
    kinds = classes(world, cell, tilt)

    def traced(rule: str, share: Table) -> None:
        trace(rule, share[:, kinds.of])

    aim = target(
        kinds.load, limits.available, kinds.cell, kinds.tilt, limit,
        untraced if trace is untraced else traced,
    )  # fmt: skip
    return Aim(
        goal=round_columns(aim.share)[:, kinds.of],
        shed=aim.shed[kinds.of],
        orphans=aim.orphans[kinds.of],
        utilisation=aim.utilisation,
        cell=cell,
    )


def weigh(
    world: World,
    state: State,
    memory: Memory,
    limits: Constraints,
    intents: Intents,
    trace: Trace = untraced,
) -> Weights:
    """Compute this tick's weights from the present ones, the target and the limits on movement."""
    policy = world.topology.policy
    shape = (len(world.region_index), len(world.channel_index))
    current = state.columns["weight"].reshape(shape)
    aim = wanted(world, state, memory, limits, trace)
    goal = aim.goal
    if aim.orphans.any():
        good = state.columns["good"].reshape(shape)[:, aim.orphans]
        serves = world.load.serves[:, aim.orphans]
        goal[:, aim.orphans] = round_columns(_fallback(world, serves, good, limits))
    fixed = _override(world, goal, limits, intents)
    # a column that is not whole is new, or lost a region to another topology
    empty = current.sum(axis=0) != FULL_BP
    lost = (current > 0) & ((limits.available[:, None] <= 0) | ~world.load.serves)
    empty |= ((current > 0) & ~world.load.serves).any(axis=0)
    if limits.frozen:
        # only what safety or an operator asks for may move, also with a leader that is cut off:
        # a plan in which a drained region carries something is refused
        names = list(world.region_index)
        out = np.array([name in limits.out for name in names])
        forced = ((current > 0) & out[:, None] & (goal <= 0)).any(axis=0)
        move = empty | forced | fixed
        return _arrived(np.where(move, goal, current), current, aim)
    closed = (current > 0) & (aim.cell <= 0)
    used = current @ world.load.demand / FULL_BP
    overloaded = (used > world.load.capacity) & (world.load.capacity > 0)
    heavy = ((goal < current) & overloaded[:, None]).any(axis=0)
    outage = np.zeros(shape[1], dtype=np.bool_)
    outage[[world.channel_index[name] for name in memory.outages]] = True
    jump = empty | (lost | closed).any(axis=0) | heavy | fixed | aim.orphans | outage
    weight = approach(current, goal, jump, policy.step_limit_bp, policy.dead_band_bp)
    return _arrived(weight, current, aim)


def _arrived(weight: Table, current: Table, aim: Aim) -> Weights:
    # nothing moved, or nothing is left to move: the same situation gives the same weights again
    settled = np.array_equal(weight, current) or np.array_equal(weight, aim.goal)
    shed = np.rint(aim.shed * FULL_BP)
    return Weights(weight=weight, shed=shed, settled=settled, orphans=aim.orphans, goal=aim.goal)


def _fallback(world: World, serves: Mask, good: Table, limits: Constraints) -> Table:
    """Return shares for orphans; `serves` and `good` have their columns only."""
    alive = np.array([name not in limits.out for name in world.regions])[:, None]
    unfailed = np.array([name not in limits.failed for name in world.regions])[:, None]
    served = np.where((serves & alive).any(axis=0), serves & alive, serves & unfailed)
    nobody = ~served.any(axis=0)
    share = np.where(served | nobody, good, 0.0)
    for otherwise in (np.where(served, world.load.share[:, None], 0.0), served, serves):
        share = np.where(share.sum(axis=0) > 0, share, otherwise)
    return np.asarray(share / share.sum(axis=0), dtype=np.float64)


def _override(world: World, goal: Table, limits: Constraints, intents: Intents) -> Mask:
    """Put operators' weights into `goal`; return which channels they fix."""
    fixed = np.zeros(len(world.channel_index), dtype=np.bool_)
    regions = tuple(world.region_index)
    for override in intents.overrides:
        column = world.channel_index.get(override.channel)
        if column is None:
            continue
        serves = frozenset(
            r for r in regions if not world.load.serves[world.region_index[r], column]
        )
        row = override_row(override, regions, limits.out | serves)
        if row is not None:
            goal[:, column] = round_columns(row[:, None])[:, 0]
            fixed[column] = True
    return fixed


def build_routes(
    world: World,
    previous: tuple[Route, ...],
    weights: Weights,
    anew: Mask,
    reasons: Sequence[tuple[str, ...]] | None,
) -> tuple[Route, ...]:
    """Return the routes in the order of the topology's channels; those that did not change keep
    their object. `previous` are this topology's, or none.

    `anew` are channels that have another weight or share to shed. `reasons`, one entry a channel,
    is None while the situation is the same: then old ones hold.
    """
    if reasons is None:
        reasons = tuple(map(attrgetter("reasons"), previous))
    elif not anew.all():
        anew = anew | list(map(ne, reasons, map(attrgetter("reasons"), previous)))
    columns, chosen = np.flatnonzero(anew), anew.tolist()
    if not columns.size:
        return previous
    made = routes(
        compress(world.channels, chosen),
        _named(world, weights.weight, columns),
        weights.shed[columns].astype(np.int64).tolist(),
        compress(reasons, chosen),
    )
    if columns.size == anew.size:
        return tuple(made)
    out = list(previous)
    for column in columns.tolist():
        out[column] = next(made)
    return tuple(out)


def _named(world: World, weight: Table, columns: Numbers) -> Iterator[Named]:
    """Return the weights of `columns` with names; equal ones are one object."""
    weight = weight[:, columns]
    of = alike(world.kind[columns], weight)
    one = members(of)
    named = [
        tuple((name, int(row[world.region_index[name]])) for name in world.serving[column])
        for column, row in zip(columns[one].tolist(), weight[:, one].T, strict=True)
    ]
    return map(named.__getitem__, of.tolist())


def closed_by(memory: Memory, region: RegionName, channel: ChannelName) -> BreakerMemory | None:
    """Return the breaker of a cell when it is not closed."""
    breaker = memory.breakers.get(f"{region}/{channel}")
    return breaker if breaker is not None and breaker.state is not Breaker.CLOSED else None
