"""One agent's report, after its fields were checked at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.model.evidence import CellCounters, IngressView
from controlplane.model.ids import AgentId, Epoch, RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentReport:
    """Everything is cumulative since `boot`; `seq` starts at 1. Ages and offsets in ms, lags in
    s."""

    agent: AgentId
    region: RegionName
    boot: int
    seq: int
    cells: tuple[CellCounters, ...] = ()
    ingress: tuple[IngressView, ...] = ()
    loop_lag_ms: float = 0.0
    clock_offset_ms: float | None = None
    queue_lag_s: Mapping[str, float] = field(default_factory=dict)
    applied_epoch: Epoch = Epoch(0)
    highest_epoch: Epoch = Epoch(0)
    version: str = ""
