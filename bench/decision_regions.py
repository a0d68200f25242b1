"""Regions: how soon a crash is found, and what a flapping region does.

    .venv/bin/python bench/decision_regions.py [--crashes 300] [--flaps 20]

1. Crash to weight moved and to failed, 0.5 s reports, 5 % loss: even, in bursts, leader in the dead
   region or not.
2. East flaps: 20 s up and 20 s down for an hour, 1.5 s up and down for 30 s; a switch is its weight
   going to 0 or coming back.

The noisy month is `decision_month.py`, the trade-off between the two `decision_curve.py`.
"""

import argparse

import numpy as np

from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault, Noise
from controlplane.simulation.run import Simulation
from controlplane.simulation.scenarios import flapping

BURSTS = Noise(between_ms=130_000)
EVEN = Noise(floor_loss=0.05)
LATE_MS = 99_999
"""Not found within 25 s."""


def crashes(runs, leader, noise, topology):
    """Ms from a crash of East to weight moved and to failed, one pair a run."""
    dice = np.random.default_rng(5)
    moved, failed = [], []
    for seed in range(runs):
        at = 20_000 + int(dice.integers(0, 10_000))
        world = Simulation(
            topology,
            [Fault(kind="crash", region="east", start_ms=at)],
            noise=noise,
            seed=seed,
            duration_ms=at + 25_000,
            with_payments=False,
            leader=leader,
        )
        seen = {}
        for tick in world.ticks():
            for event in tick.step.events:
                if event.region == "east" and tick.at_ms >= at:
                    seen.setdefault(event.kind, tick.at_ms - at)
            if "region_failed" in seen:
                break
        moved.append(seen.get("failover_started", LATE_MS))
        failed.append(seen.get("region_failed", LATE_MS))
    return moved, failed


def flapping_runs(up_ms, down_ms, for_ms, runs, topology):
    """Failures and switches (weight gone, weight back) of East a run, while it flaps."""
    failures, switches = [], []
    for seed in range(runs):
        world = Simulation(
            topology,
            flapping("east", up_ms, down_ms, for_ms),
            seed=seed,
            noise=EVEN,
            duration_ms=for_ms + 90_000,
            with_payments=False,
        )
        carried, turned, failed = True, 0, 0
        for tick in world.ticks():
            carries = dict(tick.step.plan.routes[0].weights)["east"] > 0
            turned += carries is not carried
            carried = carries
            failed += sum(event.kind == "region_failed" for event in tick.step.events)
        failures.append(failed)
        switches.append(turned)
    return failures, switches


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--crashes", type=int, default=300)
    parser.add_argument("--flaps", type=int, default=20, help="hours of flapping")
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
    print(
        "\nEast flaps, 5 % even loss          runs   failovers median / max   switches median / max"
    )
    for label, up_ms, down_ms, for_ms, runs in (
        ("20 s up, 20 s down, one hour", 20_000, 20_000, 3_600_000, options.flaps),
        ("1.5 s up, 1.5 s down, 30 s", 1500, 1500, 30_000, 10 * options.flaps),
    ):
        failures, switches = flapping_runs(up_ms, down_ms, for_ms, runs, topology)
        print(
            f"{label:32} {runs:6}   {np.median(failures):15.0f} / {max(failures)}   "
            f"{np.median(switches):15.0f} / {max(switches)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
