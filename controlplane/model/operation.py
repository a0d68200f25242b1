"""One operator's command on its way, as the keeper of operations sees it. Times are wall ms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.model.ids import Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationState:
    """Kind and target are fixed; the rest moves.

    `wanted` are the weights of an override in bp; `hold_s` and `held_since_ms` belong to drills;
    `revision` is what etcd calls the version that was read.
    """

    id: str
    kind: str
    target: str
    stage: str
    accepted_ms: int
    done: bool = False
    epoch: Epoch = Epoch(0)
    message: str = ""
    commit_ms: int = -1
    converge_ms: int = -1
    hold_s: int = 0
    held_since_ms: int = 0
    wanted: Mapping[str, int] = field(default_factory=dict)
    revision: int = 0
