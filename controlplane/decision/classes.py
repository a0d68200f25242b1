"""Classes: channels that the rules cannot tell apart are weighed once.

Theory. Two channels of the same regions whose cells are all closed and not tilted get the same
shares, whatever their demand. At 100,000 channels there are a handful of such classes and some odd
channels, so what the rules compute has a few columns instead of 100,000. A channel with a cell of
its own (a breaker that is not closed, a tilt) is a class of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from controlplane.decision.weights import Load
from controlplane.decision.world import World

Table = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The class of each channel, and what the rules need with one column a class."""

    of: Numbers
    load: Load
    cell: Table
    tilt: Table


def classes(world: World, cell: Table, tilt: Table) -> Classes:
    """Put the channels into classes by who serves them; those with an odd cell stand alone."""
    load, kinds = world.load, len(world.kinds)
    odd = np.flatnonzero(((cell < 1.0) | (tilt < 1.0)).any(axis=0))
    of = world.kind.copy()
    of[odd] = np.arange(kinds, kinds + odd.size)
    serves = [[region in kind for kind in world.kinds] for region in world.regions]
    usual = np.ones((len(world.regions), kinds))
    return Classes(
        of=of,
        load=replace(
            load,
            demand=np.bincount(of, load.demand, kinds + odd.size).astype(np.float64),
            serves=np.hstack((np.array(serves, dtype=np.bool_), load.serves[:, odd])),
        ),
        cell=np.hstack((usual, cell[:, odd])),
        tilt=np.hstack((usual, tilt[:, odd])),
    )


def alike(of: Numbers, rows: Table) -> Numbers:
    """Divide classes (channels,) until all channels of one agree in every row of `rows`.

    Rows that divide nothing, which is the usual case, cost no sorting.
    """
    for row in rows:
        if not np.array_equal(row, row[members(of)[of]]):
            keys = np.stack((of.astype(np.float64), row))
            of = np.unique(keys, axis=1, return_inverse=True)[1]
    return of


def members(of: Numbers) -> Numbers:
    """Return one channel of each class; of a class without channels any channel."""
    found = np.zeros(int(of.max(initial=-1)) + 1, dtype=np.intp)
    found[of] = np.arange(of.size)
    return found
