"""The network of a scenario: who hears what of whom, and when.

Theory. Three kinds of message, each with a phase of its own: a probe from a region's agents to
another region's ingress every 250 ms, a report from the agents to their replica and a digest from
that replica to the leader's every 500 ms. All outcomes of a stretch of time are drawn at once as
arrays; what the leader sees at tick k is then looked up. That makes a month of ticks affordable.

Rules
- A probe's success is known after a round trip, its failure after the timeout.
- A report holds what was known when it was built; a digest the newest report; a lost digest is
  made good by the next one.
- Ages are true ages: ms between the event and the leader's tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from controlplane.model.evidence import IngressView, RegionEvidence
from controlplane.model.ids import RegionName
from controlplane.simulation.faults import Fault, Noise

PERIOD_MS: Final = 500
PROBE_MS: Final = 250
ROUND_TRIP_MS: Final = 40
TIMEOUT_MS: Final = 300
ONE_WAY_MS: Final = 20
NEVER: Final = -(10**9)

Times = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class View:
    """What one leader sees, tick by tick. Shapes: (regions, ticks), (regions, regions, ticks)."""

    report_age: Times
    loop_lag: Times
    success_age: Times
    failures: Times
    ok: Times
    failed: Times

    def region(self, names: Sequence[RegionName], v: int, k: int) -> RegionEvidence:
        """Evidence of region `v` at tick `k`, gained since tick k - 1."""
        age_ms = int(self.report_age[v, k])
        if age_ms < 0:
            return RegionEvidence(region=names[v])
        before = max(0, k - 1)
        ingress = []
        for r, target in enumerate(names):
            if r == v:
                continue
            since = int(self.success_age[v, r, k])
            ingress.append(
                IngressView(
                    target=target,
                    ok=int(self.ok[v, r, k] - self.ok[v, r, before]),
                    failed=int(self.failed[v, r, k] - self.failed[v, r, before]),
                    last_success_age_ms=None if since < 0 else since,
                    failures_since_success=int(self.failures[v, r, k]),
                )
            )
        return RegionEvidence(
            region=names[v],
            report_age_ms=age_ms,
            agents_live=1,
            loop_lag_ms=float(self.loop_lag[v, k]),
            ingress=tuple(ingress),
        )


class Network:
    """All messages of one stretch of virtual time."""

    def __init__(
        self,
        names: Sequence[RegionName],
        faults: Sequence[Fault],
        noise: Noise,
        rng: np.random.Generator,
        start_ms: int,
        ticks: int,
    ) -> None:
        self.names = list(names)
        self.faults = list(faults)
        self.noise = noise
        self.start_ms = start_ms
        self.ticks = ticks
        self.rng = rng
        n = len(self.names)
        self._slots = ticks + 1
        base = start_ms + PERIOD_MS * np.arange(self._slots, dtype=np.int64)
        self._probes = 2 * self._slots
        probes = start_ms + PROBE_MS * np.arange(self._probes, dtype=np.int64)
        self.probe_at = probes + rng.integers(0, PROBE_MS, (n, n, 1))
        self.report_at = base + rng.integers(0, PERIOD_MS, (n, 1))
        self.digest_at = base + rng.integers(0, PERIOD_MS, (n, 1))
        self.tick_at: Times = start_ms + PERIOD_MS * np.arange(1, ticks + 1, dtype=np.int64)
        self._link_bursts = [
            [self._intervals(noise.between_ms, noise.burst_ms) for _ in range(n)] for _ in range(n)
        ]
        self._region_bursts = [
            self._intervals(noise.regional_between_ms, noise.burst_ms) for _ in range(n)
        ]
        self._pauses = [self._intervals(noise.pause_between_ms, noise.pause_ms) for _ in range(n)]
        self.leader_pauses = self._intervals(noise.leader_pause_between_ms, noise.pause_ms)
        self.probe_ok = np.zeros((n, n, self._probes), dtype=np.bool_)
        self.probe_sent = np.zeros((n, n, self._probes), dtype=np.bool_)
        for v in range(n):
            for r in range(n):
                if v != r:
                    self._probe(v, r)

    def view(self, leader: int) -> View:
        """Return what a leader in region number `leader` sees at every tick."""
        n = len(self.names)
        shape = (n, self.ticks)
        report_age = np.full(shape, -1, dtype=np.int64)
        lag = np.zeros(shape, dtype=np.int64)
        success_age = np.full((n, n, self.ticks), -1, dtype=np.int64)
        failures = np.zeros((n, n, self.ticks), dtype=np.int64)
        ok, failed = failures.copy(), failures.copy()
        for v in range(n):
            report = self._report_seen(v, leader)
            known = report >= 0
            at = np.where(known, self.report_at[v][report], NEVER)
            report_age[v] = np.where(known, self.tick_at - at, -1)
            lag[v] = np.where(known, self._lag(v)[report], 0)
            for r in range(n):
                if r == v:
                    continue
                success, fails, oks, faileds = self._knowledge(v, r, at)
                success_age[v, r] = np.where(success > NEVER, self.tick_at - success, -1)
                failures[v, r], ok[v, r], failed[v, r] = fails, oks, faileds
        return View(report_age, lag, success_age, failures, ok, failed)

    def _intervals(self, between_ms: float, length_ms: float) -> tuple[Times, Times]:
        """Draw starts and ends of exponential intervals over the stretch."""
        if between_ms <= 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        span = self.ticks * PERIOD_MS
        count = int(span / between_ms * 2) + 16
        gaps = self.rng.exponential(between_ms, count)
        lengths = self.rng.exponential(length_ms, count)
        starts = self.start_ms + np.cumsum(gaps + np.concatenate(([0.0], lengths[:-1])))
        keep = starts < self.start_ms + span
        return starts[keep].astype(np.int64), (starts + lengths)[keep].astype(np.int64)

    def _probe(self, v: int, r: int) -> None:
        at = self.probe_at[v, r]
        loss = self._loss(v, r, at)
        for fault in self._faults("loss", r):
            loss = np.where(_during(fault, at), np.maximum(loss, fault.rate), loss)
        passed = self.rng.random(self._probes) >= loss
        passed &= ~self._any(("crash", "ingress"), r, at) & ~self._cut(v, r, at)
        passed &= ~self._cut(r, v, at)
        for fault in self._faults("liar", v):
            if fault.peer in ("", self.names[r]):
                passed &= ~_during(fault, at)
        self.probe_ok[v, r] = passed
        self.probe_sent[v, r] = ~self._any(("crash", "agents"), v, at) & ~_inside(
            self._pauses[v], at
        )

    def _loss(self, v: int, r: int, at: Times) -> npt.NDArray[np.float64]:
        bad = _inside(self._link_bursts[v][r], at)
        bad |= _inside(self._region_bursts[v], at) | _inside(self._region_bursts[r], at)
        return np.where(bad, self.noise.burst_loss, self.noise.floor_loss)

    def _report_seen(self, v: int, leader: int) -> npt.NDArray[np.int64]:
        """Return the newest report of `v` that the leader has at each tick, by number; -1: none."""
        report_at, digest_at = self.report_at[v], self.digest_at[v]
        built = ~self._any(("crash", "agents"), v, report_at) & ~_inside(self._pauses[v], report_at)
        newest_report = _latest(report_at, built, digest_at)
        sent = ~self._any(("crash",), v, digest_at)
        if v != leader:
            sent &= self.rng.random(self._slots) >= self._loss(v, leader, digest_at)
            sent &= ~self._cut(v, leader, digest_at)
            arrived = digest_at + ONE_WAY_MS
        else:
            # the leader's own replica folds its inbox at the tick itself
            return _latest(report_at, built & sent, self.tick_at)
        digest = _latest(arrived, sent, self.tick_at)
        return np.where(digest >= 0, newest_report[np.maximum(digest, 0)], -1)

    def _lag(self, v: int) -> Times:
        """Loop lag in each report: the length of a pause that ended within the last second."""
        starts, ends = self._pauses[v]
        lag = np.zeros(self._slots, dtype=np.int64)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            first, last = np.searchsorted(self.report_at[v], (end, end + 1000))
            lag[first:last] = end - start
        return lag

    def _knowledge(self, v: int, r: int, at: Times) -> tuple[Times, Times, Times, Times]:
        """Return what `v` knows of `r`: last success, failures since, all ok and all failed."""
        sent, passed = self.probe_sent[v, r], self.probe_ok[v, r]
        probe_at = self.probe_at[v, r]
        good_at = probe_at + ROUND_TRIP_MS
        bad_at = probe_at + TIMEOUT_MS
        good_until = np.searchsorted(good_at, at, side="right")
        bad_until = np.searchsorted(bad_at, at, side="right")
        goods = np.concatenate(([0], np.cumsum(sent & passed)))
        bads = np.concatenate(([0], np.cumsum(sent & ~passed)))
        last_good = _latest(good_at, sent & passed, at)
        success = np.where(last_good >= 0, probe_at[np.maximum(last_good, 0)], NEVER)
        bads_then = np.where(last_good >= 0, bads[last_good + 1], 0)
        ok, failed = goods[good_until], bads[bad_until]
        return success, np.maximum(0, failed - bads_then), ok, failed

    def _faults(self, kind: str, region: int) -> list[Fault]:
        name = self.names[region]
        return [f for f in self.faults if f.kind == kind and f.region == name]

    def _any(self, kinds: Sequence[str], region: int, at: Times) -> Flags:
        out = np.zeros(at.shape, dtype=np.bool_)
        for kind in kinds:
            for fault in self._faults(kind, region):
                out |= _during(fault, at)
        return out

    def _cut(self, v: int, r: int, at: Times) -> Flags:
        out = self._any(("isolate",), v, at) | self._any(("isolate",), r, at)
        for fault in self._faults("cut", v):
            if fault.peer == self.names[r]:
                out |= _during(fault, at)
        return out


def _during(fault: Fault, at: Times) -> Flags:
    return (at >= fault.start_ms) & (at < fault.end_ms)


def _inside(intervals: tuple[Times, Times], at: Times) -> Flags:
    starts, ends = intervals
    if starts.size == 0:
        return np.zeros(at.shape, dtype=np.bool_)
    place = np.searchsorted(starts, at, side="right") - 1
    return (place >= 0) & (at < ends[np.maximum(place, 0)])


def _latest(times: Times, flags: Flags, at: Times) -> npt.NDArray[np.int64]:
    """Return the number of the newest flagged event at or before each of `at`; -1 for none."""
    numbers = np.where(flags, np.arange(times.size), -1)
    newest = np.maximum.accumulate(numbers)
    place = np.searchsorted(times, at, side="right") - 1
    return np.where(place >= 0, newest[np.maximum(place, 0)], -1)
