"""From shares to basis points, and from the present weights towards the target.

Rules
- Largest remainder: every column becomes integers that sum to exactly 10,000; ties go to the
  region that comes first.
- Dead band: a column whose target is less than 50 bp away everywhere stays as it is.
- Step limit: a column moves along the straight line to its target, at most 250 bp a tick in any
  region, so it sums to 10,000 at every point.
- A jump is allowed where standing still hurts: weight on a cell that may have none, an overloaded
  region, an operator's override.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controlplane.model.ids import FULL_BP

Table = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def round_columns(share: Table) -> Table:
    """Round shares (regions, channels) that sum to 1 to whole bp that sum to 10,000."""
    exact = share * FULL_BP
    whole = np.floor(exact + 1e-6)
    short = FULL_BP - whole.sum(axis=0)
    if not short.any():
        return whole
    rest = np.where(share > 0, exact - whole, -1.0)
    rank = np.argsort(np.argsort(-rest, axis=0, kind="stable"), axis=0, kind="stable")
    return np.asarray(whole + (rank < short), dtype=np.float64)


def approach(
    current: Table, goal: Table, jump: Mask, step_limit_bp: int, dead_band_bp: int
) -> Table:
    """Move whole-bp columns `current` towards `goal`; columns in `jump` arrive at once."""
    if jump.all():
        return goal.copy()
    delta = goal - current
    largest = np.abs(delta).max(axis=0) if delta.size else np.zeros(delta.shape[1])
    # one bp is kept back for rounding
    reach = np.minimum(1.0, max(1, step_limit_bp - 1) / np.maximum(largest, 1.0))
    reach = np.where(largest < dead_band_bp, 0.0, reach)
    reach = np.where(jump, 1.0, reach)
    moved = current + delta * reach
    whole = reach >= 1.0
    if whole.all():
        return goal.copy()
    part = round_columns(moved / FULL_BP)
    out = np.where(whole, goal, part)
    return np.where(reach <= 0.0, current, out)
