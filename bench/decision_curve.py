"""The trade-off: time to move a dead region's weight against false moves in a noisy, healthy month.

    .venv/bin/python bench/decision_curve.py [--days 5] [--crashes 200] [--svg F] [--known 2000=41]

One point a value of `suspect_after_ms`, and beside them what simpler detectors do on the same
weather and the same crashes, 0.5 s between probes: three misses in a row, and phi-accrual (phi = 8,
a normal fit to the last 1000 gaps). Each is counted twice, as one watcher's word and as the word of
both watchers of a region at once. `--known` takes a point's moves a month from a longer run.
"""

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from decision_month import DAY_MS, month
from decision_regions import EVEN, crashes

from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import MEAN_5_PERCENT, Fault
from controlplane.simulation.network import TIMEOUT_MS, Network

NAMES = ("east", "north", "south")
POINTS_MS = (1000, 1500, 2000, 3000, 4000)
PHI = 8.0
WINDOW = 1000


def with_suspicion(after_ms):
    """Return the demo that suspects after another time."""
    topology = demo_topology()
    return replace(topology, policy=replace(topology.policy, suspect_after_ms=after_ms))


def point(after_ms, days, runs, known):
    """Ms to move (median, p99) and false moves and failures in 30 days for one setting."""
    topology = with_suspicion(after_ms)
    moved, _ = crashes(runs, "north", EVEN, topology)
    if known is None:
        found = month(topology, days, seed=21)
        moves, failed = len(found.moves) * 30 / days, found.failed * 30 / days
    else:
        moves, failed = known, math.nan
    return float(np.median(moved)), float(np.percentile(moved, 99)), moves, failed


def missed(passed):
    """Where the third probe in a row has failed."""
    bad = ~passed
    return np.concatenate(([False, False], bad[2:] & bad[1:-1] & bad[:-2]))


def surprised(passed):
    """Where phi has passed its limit: the silence since the last success, in units of its past."""
    numbers = np.arange(passed.size)
    last = np.maximum.accumulate(np.where(passed, numbers, -1))
    good = np.flatnonzero(passed)
    if good.size < 3:
        return np.zeros(passed.size, dtype=bool)
    gaps = np.diff(good) * 0.5
    sums = np.concatenate(([0.0], np.cumsum(gaps)))
    squares = np.concatenate(([0.0], np.cumsum(gaps**2)))
    # gaps known when the last success came
    end = np.maximum(0, np.searchsorted(good, last, side="right") - 1)
    start = np.maximum(0, end - WINDOW)
    count = np.maximum(1, end - start)
    mean = (sums[end] - sums[start]) / count
    spread = np.sqrt(np.maximum((squares[end] - squares[start]) / count - mean**2, 0.01))
    z = ((numbers - last) * 0.5 - mean) / spread
    # phi = -log10 of the upper tail of the normal: 8 at 5.612 standard deviations
    return (z > 5.612) & (end > 10)


def begins(flags):
    """Count where a run of alarms begins."""
    return int((flags & ~np.concatenate(([False], flags[:-1]))).sum())


def simpler(days):
    """Count false alarms in 30 days of both detectors: by one watcher's word, by both watchers'."""
    out = {missed: [0, 0], surprised: [0, 0]}
    for day in range(math.ceil(days)):
        ticks = int(min(1.0, days - day) * DAY_MS / 500)
        network = Network(NAMES, [], MEAN_5_PERCENT, np.random.default_rng(100 + day), 0, ticks)
        for detector, counts in out.items():
            for r in range(3):
                seen = [detector(answered(network, v, r)) for v in range(3) if v != r]
                counts[0] += sum(begins(flags) for flags in seen)
                counts[1] += begins(seen[0] & seen[1])
    return {detector: [n * 30 / days for n in counts] for detector, counts in out.items()}


def answered(network, v, r):
    """Probes of `r` by `v` every 0.5 s; what was not sent counts as answered."""
    return network.probe_ok[v, r][::2] | ~network.probe_sent[v, r][::2]


def simpler_moves(detector, runs):
    """Median ms from a crash to one watcher's alarm and to both watchers'."""
    first, both = [], []
    dice = np.random.default_rng(5)
    for seed in range(runs):
        at = 60_000 + int(dice.integers(0, 20_000))
        faults = [Fault(kind="crash", region="east", start_ms=at)]
        network = Network(NAMES, faults, EVEN, np.random.default_rng(seed), 0, 240)
        times = []
        for v in (1, 2):
            when = network.probe_at[v, 0][::2]
            flags = detector(answered(network, v, 0)) & (when >= at)
            times.append(int(when[np.argmax(flags)]) + TIMEOUT_MS - at)
        first.append(min(times))
        both.append(max(times))
    return float(np.median(first)), float(np.median(both))


def svg(points, others):
    """Draw the curve: time to move across, false moves a month upwards (logarithmic)."""
    wide, high, left, top = 720, 400, 70, 40
    most_s, most = 6.0, 1e6

    def x(ms):
        return left + (wide - left - 30) * min(ms / 1000, most_s) / most_s

    def y(moves):
        return top + (high - top - 60) * (1 - math.log10(max(1.0, moves)) / math.log10(most))

    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}"'
    title = "Time to move a dead region, and false moves a month (5 % loss in bursts of 80 %)"
    parts = [
        f'{head} font-family="sans-serif" font-size="12">',
        f'<rect width="{wide}" height="{high}" fill="#ffffff"/>',
        f'<text x="{left}" y="22" font-size="15">{title}</text>',
    ]
    for power in range(7):
        at = y(10**power)
        parts.append(
            f'<line x1="{left}" y1="{at:.0f}" x2="{wide - 30}" y2="{at:.0f}" stroke="#e0e0e0"/>'
            f'<text x="{left - 8}" y="{at + 4:.0f}" text-anchor="end">{10**power:,}</text>'
        )
    parts.extend(
        f'<text x="{x(s * 1000):.0f}" y="{high - 38}" text-anchor="middle">{s} s</text>'
        for s in range(int(most_s) + 1)
    )
    line = " ".join(f"{x(ms):.1f},{y(moves):.1f}" for _, ms, moves in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0b6e99" stroke-width="2"/>')
    for after_ms, ms, moves in points:
        bold = ' font-weight="bold"' if after_ms == 2000 else ""
        parts.append(
            f'<circle cx="{x(ms):.1f}" cy="{y(moves):.1f}" r="5" fill="#0b6e99"/>'
            f'<text x="{x(ms) + 9:.1f}" y="{y(moves) + 4:.1f}"{bold}>Weir, {after_ms / 1000:g} s'
            f" ({moves:,.0f})</text>"
        )
    for label, ms, moves in others:
        parts.append(
            f'<circle cx="{x(ms):.1f}" cy="{y(moves):.1f}" r="5" fill="#d9730d"/>'
            f'<text x="{x(ms) + 9:.1f}" y="{y(moves) + 4:.1f}">{label} ({moves:,.0f})</text>'
        )
    parts.append(
        f'<text x="{(left + wide) / 2:.0f}" y="{high - 14}" text-anchor="middle">median time from '
        "the crash until the weight moves</text></svg>"
    )
    return "\n".join(parts) + "\n"


def main():
    """Print the table, draw the plot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=float, default=5.0, help="simulated days for each point")
    parser.add_argument("--crashes", type=int, default=200)
    parser.add_argument("--svg", default="")
    parser.add_argument("--known", action="append", default=[], help="MS=MOVES of a longer run")
    options = parser.parse_args()
    known = {int(k): float(v) for k, v in (item.split("=") for item in options.known)}
    print("suspect after, s    moved p50 / p99, ms    false moves / failed regions in 30 days")
    points = []
    with ProcessPoolExecutor(2) as pool:
        work = [
            pool.submit(point, ms, options.days, options.crashes, known.get(ms)) for ms in POINTS_MS
        ]
        for after_ms, job in zip(POINTS_MS, work, strict=True):
            p50, p99, moves, failed = job.result()
            points.append((after_ms, p50, moves))
            print(
                f"{after_ms / 1000:16.1f}    {p50:7.0f} / {p99:7.0f}    {moves:16.0f} / {failed:g}",
                flush=True,
            )
    others = []
    alarms = simpler(options.days)
    for label, detector in (("3 misses", missed), ("phi = 8", surprised)):
        one_ms, both_ms = simpler_moves(detector, options.crashes)
        one, both = alarms[detector]
        print(f"{label:>16}    {one_ms:7.0f}    {one:22,.0f}  (one watcher)")
        print(f"{label:>16}    {both_ms:7.0f}    {both:22,.0f}  (both watchers)")
        others += [(f"{label}, one watcher", one_ms, one), (f"{label}, both", both_ms, both)]
    if options.svg:
        Path(options.svg).write_text(svg(points, others), encoding="utf-8")


if __name__ == "__main__":
    main()
