"""Breakers: how soon 30 % errors on one cell are found, and how often a healthy cell trips.

    .venv/bin/python bench/decision_cells.py [--days 100] [--runs 200]

Every "channel" is one cell of a one-region-per-row world, fed by Poisson calls and binomial errors
through the tests of `controlplane.decision.cells`, all cells of one setting at once. A healthy cell
that trips is reset and counted; a sick one is timed from its first bad call.
"""

import argparse
import math
import time
from dataclasses import replace

import numpy as np

from controlplane.decision.cells import observe_cells
from controlplane.decision.state import State
from controlplane.decision.world import compiled
from controlplane.model.evidence import Evidence, Gains
from controlplane.model.topology import Channel, Region, Role, Topology

TICK_MS = 500
LEARN_S = 3600


def world_of(cells):
    """One region that serves `cells` channels, and a sound other region."""
    names = ("a", "b")
    return Topology(
        regions=tuple(
            Region(name=n, role=Role.PRIMARY, share_bp=5000, capacity_tps=10**6, priority=i)
            for i, n in enumerate(names)
        ),
        channels=tuple(Channel(name=f"c{i:05}", regions=names) for i in range(cells)),
    )


class Bench:
    """Cells of region `a`, all at one rate of calls."""

    def __init__(self, cells, rng):
        self.world = compiled(world_of(cells))
        self.state = State.initial(self.world.topology)
        self.cells, self.rng = cells, rng
        self.numbers = np.arange(cells)

    def tick(self, rate, share):
        """One tick; returns which cells tripped. `share` is a number or one per cell."""
        calls = self.rng.poisson(rate * TICK_MS / 1000, self.cells)
        bad = self.rng.binomial(calls, share)
        none = np.zeros(self.cells, dtype=np.int64)
        gains = Gains(
            cell=self.numbers,
            traffic_good=calls - bad,
            traffic_bad=bad,
            probe_good=none,
            probe_bad=none,
        )
        memory = self.state.memory
        memory = replace(memory, now_ms=memory.now_ms + TICK_MS)
        self.state, tested = observe_cells(
            self.world, self.state.having(memory), Evidence(regions=(), gains=gains), TICK_MS
        )
        return tested.tripped

    def clear(self, tripped):
        """Let tripped cells start again."""
        if tripped.any():
            columns = dict(self.state.columns)
            for name in ("error_sum", "slow_sum"):
                column = columns[name].copy()
                column[: self.cells][tripped] = 0
                columns[name] = column
            self.state = self.state.having(self.state.memory, columns)


def detect(rate, base, runs, rng):
    """Seconds until 30 % errors are found after an hour of learning; one value a cell."""
    bench = Bench(runs, rng)
    # learning at one call a second takes long; the baseline is what an hour would have taught
    columns = dict(bench.state.columns)
    columns["error_base"] = np.full_like(columns["error_base"], base)
    columns["learned"] = np.full_like(columns["learned"], min(2000.0, LEARN_S * rate))
    columns["rate"] = np.full_like(columns["rate"], rate)
    bench.state = bench.state.having(bench.state.memory, columns)
    for _ in range(240):
        bench.clear(bench.tick(rate, base))
    found = np.full(runs, np.nan)
    for tick in range(1, 2 * 600):
        tripped = bench.tick(rate, 0.3)
        found = np.where(np.isnan(found) & tripped, tick * TICK_MS / 1000, found)
        if not np.isnan(found).any():
            break
    return found


def false_opens(rate, base, days, cells, rng):
    """Trips of healthy cells in `days` channel-days, learning from nothing included."""
    bench = Bench(cells, rng)
    opens = 0
    for _ in range(int(days / cells * 86_400_000 / TICK_MS)):
        tripped = bench.tick(rate, base)
        if tripped.any():
            opens += int(tripped.sum())
            bench.clear(tripped)
    return opens


LATTICE = 0.005
"""Nats between two values of the exact test's sum."""


def floor(rate, base, days=300.0):
    """Median seconds that any test needs with one false alarm of a cell in `days`.

    CUSUM for exactly this change is the quickest of all tests with its rate of false alarms
    (Moustakides 1986). Its sum is a Markov chain, so threshold and delay are computed, not
    simulated. Nothing has to be learned here, and calls are seen at once: Weir adds ticks of 0.5 s
    and the doubt in what it has learned.
    """
    up = round(math.log(0.3 / base) / LATTICE)
    down = round(-math.log(0.7 / (1 - base)) / LATTICE)

    def after(sums, share):
        good = np.bincount(np.maximum(0, np.arange(sums.size) - down), sums * (1 - share))
        bad = np.zeros(sums.size)
        bad[up:] = sums[:-up] * share
        return np.pad(good, (0, sums.size - good.size)) + bad

    low, high = 1000, 5000
    while high - low > 1:
        # a healthy cell's sums, and what leaves above the threshold at each call
        sums, before = np.eye(1, (low + high) // 2)[0], np.zeros(1)
        while before.size != sums.size or np.abs(sums - before).sum() > 1e-9:
            before, sums = sums, after(sums, base)
            sums /= sums.sum()
        often = sums[-up:].sum() * base * rate * days * 86_400 > 1
        low, high = (sums.size, high) if often else (low, sums.size)
    calls = 0
    while sums.sum() > 0.5:
        sums, calls = after(sums, 0.3), calls + 1
    return calls / rate


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=float, default=300.0, help="channel-days per setting")
    parser.add_argument("--runs", type=int, default=400)
    options = parser.parse_args()
    rng = np.random.default_rng(7)
    print(
        "30 % errors found after, s: p50 / p99 (floor: no test is quicker at 1 alarm in 300 days)"
    )
    print("calls/s    usual 2 %               5 %                     10 %")
    for rate in (100, 10, 1):
        row = []
        for base in (0.02, 0.05, 0.10):
            found = detect(rate, base, options.runs, rng)
            late = np.where(np.isnan(found), 600, found)
            least = floor(rate, base)
            row.append(f"{np.median(late):5.1f} / {np.percentile(late, 99):5.1f} ({least:4.1f})")
        print(f"{rate:7}  " + "   ".join(row))
    print(f"\nfalse opens in {options.days:g} channel-days each")
    print("calls/s    usual 2 %   5 %   10 %")
    for rate in (100, 10, 1):
        started = time.process_time()
        row = [false_opens(rate, base, options.days, 1000, rng) for base in (0.02, 0.05, 0.10)]
        spent = time.process_time() - started
        print(f"{rate:7}   " + "   ".join(f"{n:7}" for n in row) + f"   ({spent:.0f} s CPU)")


if __name__ == "__main__":
    main()
