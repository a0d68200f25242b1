"""Payments of a scenario: calls, errors and latency of every cell, by the weights in force.

Each tick a cell carries its share of the channel's demand (Poisson) and one probe a second. A fault
makes a part of the calls fail (binomial) or slow. Latency is reduced to two buckets, the usual and
the slow one: the tests only ask which side of the limit a call is on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from controlplane.model.evidence import Gains
from controlplane.model.ids import FULL_BP
from controlplane.model.latency import bucket_of
from controlplane.model.plan import Plan
from controlplane.model.topology import Topology
from controlplane.simulation.faults import Fault

Table = npt.NDArray[np.float64]


class Payments:
    """Draws what the cells of a topology gain in one tick."""

    def __init__(
        self,
        topology: Topology,
        faults: Sequence[Fault],
        rng: np.random.Generator,
        base_error: float = 0.01,
        probes_per_s: float = 1.0,
    ) -> None:
        self.topology = topology
        self.rng = rng
        self.base_error = base_error
        self.probes_per_s = probes_per_s
        self.faults = [f for f in faults if f.kind in ("errors", "slow")]
        self._regions = [r.name for r in topology.regions]
        serves = [[r in c.regions for c in topology.channels] for r in self._regions]
        self._cells = np.flatnonzero(np.array(serves, dtype=np.bool_).reshape(-1))
        demand = np.array([c.demand_tps for c in topology.channels], dtype=np.float64)
        self._demand = np.tile(demand, len(self._regions))
        usual = [bucket_of(c.p50_ms) for c in topology.channels]
        self._usual = np.tile(np.array(usual, dtype=np.int64), len(self._regions))

    def draw(self, at_ms: int, passed_ms: int, plan: Plan | None, down: frozenset[str]) -> Gains:
        """Draw the calls of one tick; regions in `down` neither pay nor probe."""
        seconds = passed_ms / 1000.0
        weight = self._weights(plan)
        alive = self._alive(down)
        rng, cells = self.rng, self._cells
        calls = rng.poisson((self._demand * weight * seconds * alive)[cells])
        probes = rng.poisson((self.probes_per_s * seconds * alive)[cells])
        rate, slow = self._rates(at_ms)
        bad = rng.binomial(calls, rate[cells])
        probe_bad = rng.binomial(probes, rate[cells])
        timed = np.where(calls > 0, calls, probes)
        bucket = self._usual[cells] + slow[cells]
        keep = calls + probes > 0
        some = keep & (timed > 0)
        return Gains(
            cell=cells[keep].tolist(),
            traffic_good=(calls - bad)[keep].tolist(),
            traffic_bad=bad[keep].tolist(),
            probe_good=(probes - probe_bad)[keep].tolist(),
            probe_bad=probe_bad[keep].tolist(),
            latency_cell=cells[some].tolist(),
            latency_bucket=np.minimum(65, bucket)[some].tolist(),
            latency_count=timed[some].tolist(),
        )

    def _weights(self, plan: Plan | None) -> Table:
        out = np.zeros(len(self._regions) * len(self.topology.channels))
        if plan is None:
            return out
        for c, route in enumerate(plan.routes):
            for name, weight_bp in route.weights:
                row = self._regions.index(name)
                out[row * len(self.topology.channels) + c] = weight_bp / FULL_BP
        return out

    def _alive(self, down: frozenset[str]) -> Table:
        return np.repeat([0.0 if r in down else 1.0 for r in self._regions], self._columns())

    def _rates(self, at_ms: int) -> tuple[Table, npt.NDArray[np.int64]]:
        shape = (len(self._regions), self._columns())
        rate = np.full(shape, self.base_error)
        slow = np.zeros(shape, dtype=np.int64)
        names = [c.name for c in self.topology.channels]
        for fault in self.faults:
            if not fault.holds(at_ms):
                continue
            rows = [i for i, r in enumerate(self._regions) if fault.region in ("", r)]
            columns = [i for i, c in enumerate(names) if fault.channel in ("", c)]
            place = np.ix_(rows, columns)
            if fault.kind == "errors":
                rate[place] = np.maximum(rate[place], fault.rate)
            else:
                slow[place] = round(4 * np.log2(max(1.0, fault.rate)))
        return rate.reshape(-1), slow.reshape(-1)

    def _columns(self) -> int:
        return len(self.topology.channels)
