"""Target weights: where every channel's payments should go, rule by rule.

Theory. A table of shares, one row a region and one column a channel, is shaped by rules in a fixed
order. Each rule is one array operation over all channels, because capacity couples them: a region
that is full of one channel has no room for another.

Rules, in order (the names that explanations carry)
1. base_share   a region's configured share, for the channels it serves.
2. phase        failed, drained and suspect regions keep nothing; a returning one its ramp's part.
3. breaker      an open cell keeps nothing, a half-open one a trickle; in a provider's outage (open
                everywhere) breakers are disregarded: there is nowhere better.
4. tilt         cells with more errors or slower than usual keep less, at least half.
5. capacity     no region is filled above 80 % of its capacity by its own share.
6. spill        what is missing goes to regions by priority, each up to 80 %.
7. equalise     what is still missing is spread in proportion to capacity.
8. shed         what is above 100 % is published, not hidden.
9. override     an operator's fixed weights, without failed and drained regions.

Failure modes. A channel that no region may serve keeps its last good weights (`no_region`), and the
route says what is missing. Without demand figures capacity does not bind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.intents import Override
from controlplane.model.topology import Topology

Table = npt.NDArray[np.float64]
"""Shape (regions, channels): shares from 0 to 1."""
Mask = npt.NDArray[np.bool_]

LEAST: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The configured load as arrays: shape (regions,), (channels,) and (regions, channels)."""

    share: Table
    capacity: Table
    order: tuple[int, ...]
    demand: Table
    serves: Mask

    @staticmethod
    def of(topology: Topology) -> Load:
        """Read it from the topology; `order` is the order of spilling."""
        regions, channels = topology.regions, topology.channels
        index = {region.name: i for i, region in enumerate(regions)}
        serves = np.zeros((len(regions), len(channels)), dtype=np.bool_)
        for c, channel in enumerate(channels):
            for name in channel.regions:
                if name in index:
                    serves[index[name], c] = True
        by_priority = sorted(range(len(regions)), key=lambda i: (regions[i].priority, i))
        return Load(
            share=np.array([region.share_bp / FULL_BP for region in regions], dtype=np.float64),
            capacity=np.array([region.capacity_tps for region in regions], dtype=np.float64),
            order=tuple(by_priority),
            demand=np.array([channel.demand_tps for channel in channels], dtype=np.float64),
            serves=serves,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the rules ask for: shares, the shed share per channel, and where nobody may serve."""

    share: Table
    shed: Table
    orphans: Mask
    utilisation: Table


Trace = Callable[[str, Table], None]


def untraced(rule: str, share: Table) -> None:
    """Trace nothing."""
    del rule, share


def target(
    load: Load,
    available: Table,
    cell: Table,
    tilt: Table,
    utilisation_limit: float,
    trace: Trace = untraced,
) -> Target:
    """Apply rules 1 to 8.

    `available` (regions,) is 0 to 1 by phase; `cell` (regions, channels) is 1, 0, or a trickle's
    largest share; `tilt` (regions, channels) is 0.5 to 1. Returned columns sum to 1, except
    orphans', which are all 0.
    """
    share = np.where(load.serves, load.share[:, None], 0.0)
    total = share.sum(axis=0)
    # a channel served from few regions still has a whole: shares are relative to who serves it
    share = share / np.where(total > LEAST, total, 1.0)
    bare = (total <= LEAST) & load.serves.any(axis=0)
    if bare.any():
        share = np.where(bare, load.serves / np.maximum(1, load.serves.sum(axis=0)), share)
    trace("base_share", share)
    share = share * available[:, None]
    trace("phase", share)
    usable = load.serves & (available[:, None] > 0) & (cell >= 1.0)
    share = np.minimum(share, cell)
    orphans: Mask = np.asarray(~usable.any(axis=0))
    # where only trickles are left, they are all there is
    usable |= orphans & load.serves & (available[:, None] > 0) & (cell > 0)
    orphans = np.asarray(~usable.any(axis=0))
    trace("breaker", share)
    share = share * tilt
    trace("tilt", share)
    room = load.capacity * utilisation_limit * np.clip(available, 0.0, 1.0)
    used = share @ load.demand
    factor = np.where(used > room, room / np.maximum(used, LEAST), 1.0)
    share = share * factor[:, None]
    trace("capacity", share)
    # a returning region takes its ramp's part and nothing of what others lack
    whole = usable & (available >= 1.0)[:, None]
    share = _spill(load, share, whole, tilt, room)
    trace("spill", share)
    share = _equalise(load, share, usable, available)
    share[:, orphans] = 0.0
    trace("equalise", share)
    used = share @ load.demand
    utilisation = np.where(used > 0, used / np.maximum(load.capacity, LEAST), 0.0)
    over = np.where(utilisation > 1.0, 1.0 - 1.0 / np.maximum(utilisation, 1.0), 0.0)
    return Target(share=share, shed=over @ share, orphans=orphans, utilisation=utilisation)


def _spill(load: Load, share: Table, usable: Mask, tilt: Table, room: Table) -> Table:
    """Give what is missing to regions by priority, each as far as it has room."""
    missing = np.maximum(0.0, 1.0 - share.sum(axis=0))
    # two rounds: sound cells first, those tilted down only for what is left
    for wanted in (usable & (tilt >= 1.0), usable):
        if not np.any(missing > LEAST):
            break
        for region in load.order:
            take = np.where(wanted[region], missing, 0.0)
            demand = float(take @ load.demand)
            spare = float(room[region] - share[region] @ load.demand)
            if demand > spare:
                take = take * max(0.0, spare / demand)
            share = share.copy()
            share[region] += take
            missing = missing - take
    return share


def _equalise(load: Load, share: Table, usable: Mask, available: Table) -> Table:
    """Spread what nobody has room for in proportion to capacity, so that nobody drowns alone."""
    missing = 1.0 - share.sum(axis=0)
    weight = np.where(usable, (load.capacity * available)[:, None], 0.0)
    total = weight.sum(axis=0)
    even = np.where(total > LEAST, weight / np.where(total > LEAST, total, 1.0), 0.0)
    alone = (total <= LEAST) & usable.any(axis=0)
    if alone.any():
        even = np.where(alone, usable / np.maximum(1, usable.sum(axis=0)), even)
    return np.asarray(share + even * np.maximum(0.0, missing), dtype=np.float64)


def override_row(
    override: Override, regions: tuple[RegionName, ...], out: frozenset[RegionName]
) -> Table | None:
    """Return an operator's weights without regions that are out; None when nothing is left."""
    row = np.zeros(len(regions))
    weights: Mapping[RegionName, int] = dict(override.weights)
    for i, name in enumerate(regions):
        if name not in out:
            row[i] = weights.get(name, 0)
    total = row.sum()
    return row / total if total > 0 else None


def channel_trace(
    channel: ChannelName, channels: tuple[ChannelName, ...]
) -> tuple[Trace, list[tuple[str, list[float]]]]:
    """Return a trace that keeps one channel's shares after each rule, and the list it fills."""
    column = channels.index(channel)
    kept: list[tuple[str, list[float]]] = []

    def keep(rule: str, share: Table) -> None:
        kept.append((rule, [float(value) for value in share[:, column]]))

    return keep, kept
