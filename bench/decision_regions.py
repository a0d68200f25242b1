"""Regions: how soon a crash is found, what a noisy month does, and what simpler detectors would do.

    .venv/bin/python bench/decision_regions.py [--days 30] [--crashes 300] [--curve 2]

1. Crash to weight moved and to failed, 0.5 s reports, 5 % loss: even, in bursts, leader in the dead
   region or not.
2. A noisy but healthy time: failures and moves.
3. The trade-off: time to move against moves a month, by `suspect_after_ms`.
4. On the same trace: three misses in a row, and phi-accrual (phi = 8), per watched link.
"""

import argparse
import math
from collections import Counter
from dataclasses import replace

import numpy as np

from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import MEAN_5_PERCENT, Fault, Noise
from controlplane.simulation.network import Network
from controlplane.simulation.run import Simulation

DAY_MS = 86_400_000
BURSTS = Noise(between_ms=130_000)
EVEN = Noise(floor_loss=0.05)


def crashes(runs, leader, noise, topology):
    """Ms from a crash of East to weight moved and to failed, one pair a run."""
    dice = np.random.default_rng(5)
    moved, failed = [], []
    for seed in range(runs):
        at = 30_000 + int(dice.integers(0, 20_000))
        result = Simulation(
            topology,
            [Fault(kind="crash", region="east", start_ms=at)],
            noise=noise,
            seed=seed,
            duration_ms=at + 25_000,
            with_payments=False,
            leader=leader,
        ).run()
        moved.append(next((t - at for t in result.moved.get("east", []) if t >= at), 99_999))
        failed.append(next((t - at for t in result.failed.get("east", []) if t >= at), 99_999))
    return moved, failed


def noisy(days, topology, seed=11):
    """Failures, moves and the longest return after the evidence cleared, in `days` of weather."""
    result = Simulation(
        topology,
        noise=MEAN_5_PERCENT,
        seed=seed,
        duration_ms=int(days * DAY_MS),
        with_payments=False,
    ).run()
    moves = sum(len(times) for times in result.moved.values())
    failures = sum(len(times) for times in result.failed.values())
    return failures, moves, Counter(event.kind for _, event in result.events)


def simpler(days):
    """Count false alarms of three-misses and phi-accrual over all links, a day at a time."""
    names = [region.name for region in demo_topology().regions]
    misses = phis = 0
    for day in range(math.ceil(days)):
        ticks = int(min(1.0, days - day) * DAY_MS / 500)
        rng = np.random.default_rng(100 + day)
        network = Network(names, [], MEAN_5_PERCENT, rng, 0, ticks)
        for v in range(3):
            for r in range(3):
                if v == r:
                    continue
                sent = network.probe_sent[v, r][::2]
                passed = network.probe_ok[v, r][::2] | ~sent
                misses += three_misses(passed)
                phis += phi_accrual(passed)
    return misses, phis


def three_misses(passed):
    """Count runs of at least three failed probes."""
    bad = ~passed
    third = bad[2:] & bad[1:-1] & bad[:-2]
    return int((third & ~np.concatenate(([False], third[:-1]))).sum())


def phi_accrual(passed, limit=8.0, window=1000):
    """Count gaps whose phi exceeds `limit` under a normal fit to the last `window` gaps."""
    gaps = np.diff(np.flatnonzero(passed)) * 0.5
    if gaps.size < 2:
        return 0
    sums = np.concatenate(([0.0], np.cumsum(gaps)))
    squares = np.concatenate(([0.0], np.cumsum(gaps**2)))
    end = np.arange(1, gaps.size)
    start = np.maximum(0, end - window)
    count = end - start
    mean = (sums[end] - sums[start]) / count
    spread = np.sqrt(np.maximum((squares[end] - squares[start]) / count - mean**2, 0.01))
    z = (gaps[1:] - mean) / spread
    tail = np.array([0.5 * math.erfc(value / math.sqrt(2)) for value in z])
    return int((-np.log10(np.maximum(tail, 1e-300)) > limit).sum())


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--crashes", type=int, default=300)
    parser.add_argument("--curve", type=float, default=2.0, help="days for each point")
    options = parser.parse_args()
    topology = demo_topology()
    print("crash of East, ms            moved p50 / p99        failed p50 / p99")
    for label, leader, noise in (
        ("5 % loss, even", "north", EVEN),
        ("5 % loss, in bursts", "north", BURSTS),
        ("even, leader dies too", "east", EVEN),
        ("bursts, leader dies too", "east", BURSTS),
    ):
        moved, failed = crashes(options.crashes, leader, noise, topology)
        row = [f"{np.median(v):7.0f} / {np.percentile(v, 99):7.0f}" for v in (moved, failed)]
        print(f"{label:25}  {row[0]:>18}    {row[1]:>18}", flush=True)
    print("\nsuspect after, s    moved p50 / p99, ms    moves a 30-day month")
    for after_ms in (1500, 2000, 3000, 4000) if options.curve else ():
        other = replace(topology, policy=replace(topology.policy, suspect_after_ms=after_ms))
        moved, _ = crashes(max(20, options.crashes // 4), "north", EVEN, other)
        _, moves, _ = noisy(options.curve, other)
        times = f"{np.median(moved):7.0f} / {np.percentile(moved, 99):7.0f}"
        print(
            f"{after_ms / 1000:16.1f}    {times}    {moves / options.curve * 30:12.0f}", flush=True
        )
    misses, phis = simpler(options.days)
    print(f"\non the same weather, {options.days:g} days, all six links")
    print(f"three misses in a row {misses:10,}\nphi-accrual, phi = 8  {phis:10,}", flush=True)
    failures, moves, kinds = noisy(options.days, topology)
    print(f"Weir                  {failures:10,} failed, {moves:,} moves on suspicion")
    print(dict(sorted(kinds.items())))


if __name__ == "__main__":
    main()
