"""Which epoch comes next, and which reported epochs are believed.

Epochs rise for ever, also across a restore of etcd from an old backup: agents and replicas report
the highest epoch they have seen and the leader goes above it. An epoch rises at most once a tick,
so what is far above the committed one is a lie or a broken disk; following it would use up the
numbers. It is refused, and the plan goes on from the highest that can be believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from controlplane.model.ids import Epoch

EPOCH_JUMP_MAX: Final = 1_000_000_000
"""How far a reported epoch may lie above the committed one: 15 years of two plans a second."""
EPOCH_MAX: Final = (1 << 53) - 1
"""The last epoch: above it, JSON readers would round."""


def believable(reported: int, committed: int) -> bool:
    """Tell whether somebody can have seen epoch `reported` when etcd holds `committed`."""
    return 0 <= reported <= min(EPOCH_MAX - 1, committed + EPOCH_JUMP_MAX)


def next_epoch(committed: int, reported: Iterable[int]) -> Epoch:
    """Return the epoch of the next plan: above the committed and every believable report."""
    return Epoch(max([committed, *(r for r in reported if believable(r, committed))]) + 1)
