"""Everything the agent knows, as one report. Building it never fails and never waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import controlplane
from agents.apply import Applier
from agents.counters import Counters
from agents.lag import LoopLag
from agents.sources import Queues
from controlplane.adapters.wire_evidence import encode_report
from controlplane.clock import Clock
from controlplane.model.evidence import Report
from controlplane.model.ids import AgentId, Epoch, RegionName
from controlplane.v1 import agent_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who reports. `boot` is drawn anew at each start."""

    agent: AgentId
    region: RegionName
    boot: int

    @property
    def subscriber(self) -> str:
        """Name under which the agent follows plans."""
        return f"{self.region}/{self.agent}"


class Reporter:
    """Numbers the reports of one life of the agent, starting at 1."""

    def __init__(
        self,
        identity: Identity,
        counters: Counters,
        applier: Applier,
        lag: LoopLag,
        queues: Queues,
        clock: Clock,
        *,
        clock_offset_ms: Callable[[], float | None] = lambda: None,
        lag_noted: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.identity = identity
        self._counters = counters
        self._applier = applier
        self._lag = lag
        self._queues = queues
        self._clock = clock
        self._clock_offset_ms = clock_offset_ms
        self._lag_noted = lag_noted
        self._seq = 0

    def build(self) -> agent_pb2.ReportRequest:
        """Return the next report."""
        self._seq += 1
        lag_ms = self._lag.take()
        self._lag_noted(lag_ms)
        return encode_report(
            Report(
                agent=self.identity.agent,
                region=self.identity.region,
                boot=self.identity.boot,
                seq=self._seq,
                sent_at_ms=self._clock.wall_ms(),
                cells=self._counters.cells(),
                phases=self._counters.phases(),
                ingress=self._counters.ingress(self._clock.monotonic_ms()),
                loop_lag_ms=lag_ms,
                clock_offset_ms=self._clock_offset_ms(),
                queue_lag_s=self._queues.lags_s,
                applied_epoch=Epoch(self._applier.applied_epoch),
                highest_epoch=Epoch(self._applier.highest_epoch),
                version=controlplane.__version__,
            )
        )
