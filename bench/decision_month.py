"""A noisy but healthy month: failures, moves on suspicion, and how long each outlives its evidence.

    .venv/bin/python bench/decision_month.py [--days 30] [--seed 11] [--suspect-ms 2000]

One simulation in virtual time: 5 % mean loss in bursts of 80 % (one link, or a whole region every
other hour), agents and the leader standing still now and then. Nothing is really dead, so every
move is false. "Evidence" is judged beside the decision, by what reached the leader: it has cleared
when the region's newest report is younger than `silent_after_ms` and a vantage with a report of its
own reached it within the time that makes a vote UP. From the start of the last uninterrupted clear
stretch are counted: until the suspicion is withdrawn, and until the weight is whole again.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from controlplane.model.plan import Phase
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import MEAN_5_PERCENT
from controlplane.simulation.run import Simulation

DAY_MS = 86_400_000
FULL_SHARE = {"east": 7000, "north": 2500, "south": 500}


@dataclass
class Move:
    """One region's weight leaving on suspicion. Times in virtual ms."""

    region: str
    at_ms: int
    kind: str
    clear_ms: int | None = None
    withdrawn_ms: int | None = None
    whole_ms: int | None = None
    failed: bool = False
    damped: bool = False


@dataclass
class Month:
    """What a month showed."""

    days: float
    moves: list = field(default_factory=list)
    failed: int = 0
    kinds: Counter = field(default_factory=Counter)

    def line(self):
        """One line of figures."""
        undone = [m for m in self.moves if m.withdrawn_ms is not None and not m.failed]
        after = [(m.withdrawn_ms - m.clear_ms) / 1000 for m in undone]
        whole = [(m.whole_ms - m.clear_ms) / 1000 for m in undone if m.whole_ms is not None]
        return (
            f"{self.days:g} days: {self.failed} failed, {len(self.moves)} moves "
            f"({dict(Counter(m.kind for m in self.moves))}, {sum(m.damped for m in self.moves)} "
            f"damped); after the evidence cleared: withdrawn {spread(after)} s, "
            f"whole {spread(whole)} s (median / p99 / max)"
        )


def spread(values):
    """Median, p99 and max."""
    if not values:
        return "-"
    return f"{np.median(values):.1f} / {np.percentile(values, 99):.1f} / {max(values):.1f}"


class Watch:
    """Follows moves tick by tick; `evidence` is what the leader was given."""

    def __init__(self, topology):
        self.policy = topology.policy
        self.up_ms = 3 * self.policy.report_interval_ms + self.policy.up_margin_ms
        self.open = {}
        self.clear_since = {}

    def tick(self, month, at_ms, evidence, decided):
        """Take one tick."""
        for event in decided.events:
            month.kinds[event.kind] += 1
            if event.kind == "failover_started":
                month.moves.append(Move(event.region, at_ms, str(event.data.get("kind", ""))))
                self.open[event.region] = month.moves[-1]
                self.clear_since.pop(event.region, None)
            elif event.kind == "region_failed":
                month.failed += 1
                if event.region in self.open:
                    self.open[event.region].failed = True
            elif event.kind == "region_damped" and event.region in self.open:
                self.open[event.region].damped = True
        if not self.open:
            return
        weights = dict(decided.plan.routes[0].weights)
        for name, move in list(self.open.items()):
            if not self.clear(name, evidence):
                self.clear_since.pop(name, None)
            else:
                self.clear_since.setdefault(name, at_ms)
            memory = decided.state.memory.regions[name]
            if move.withdrawn_ms is None and memory.phase in (Phase.HEALTHY, Phase.RECOVERING):
                move.withdrawn_ms = at_ms
                move.clear_ms = self.clear_since.get(name, at_ms)
            if move.withdrawn_ms is not None and weights[name] >= FULL_SHARE[name] - 50:
                move.whole_ms = at_ms
                del self.open[name]

    def clear(self, name, evidence):
        """Tell whether what reached the leader speaks for the region."""
        fresh = {
            r.region
            for r in evidence.regions
            if r.report_age_ms is not None and r.report_age_ms <= self.policy.silent_after_ms
        }
        if name not in fresh:
            return False
        return any(
            view.last_success_age_ms is not None and view.last_success_age_ms < self.up_ms
            for r in evidence.regions
            if r.region in fresh and r.region != name
            for view in r.ingress
            if view.target == name
        )


def month(topology, days, seed, progress=False):
    """Run it."""
    out, watch = Month(days=days), Watch(topology)
    world = Simulation(
        topology,
        noise=MEAN_5_PERCENT,
        seed=seed,
        duration_ms=int(days * DAY_MS),
        with_payments=False,
    )
    day = 0
    for tick in world.ticks():
        watch.tick(out, tick.at_ms, tick.evidence, tick.step)
        if progress and tick.at_ms // DAY_MS > day:
            day = tick.at_ms // DAY_MS
            said = Month(days=day, moves=out.moves, failed=out.failed).line()
            print(f"  {said}", file=sys.stderr, flush=True)
    return out


def main():
    """Print the figures of one month and its longest moves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--suspect-ms", type=int, default=0, help="another suspect_after_ms")
    options = parser.parse_args()
    topology = demo_topology()
    if options.suspect_ms:
        policy = replace(topology.policy, suspect_after_ms=options.suspect_ms)
        topology = replace(topology, policy=policy)
    found = month(topology, options.days, options.seed, progress=True)
    print(found.line())
    done = [m for m in found.moves if m.withdrawn_ms is not None]
    done.sort(key=lambda m: m.clear_ms - m.withdrawn_ms)
    for move in done[:8]:
        took = (move.withdrawn_ms - move.clear_ms) / 1000
        print(f"  {move.region} at {move.at_ms / DAY_MS:.3f} d ({move.kind}): {took:.1f} s after")
    print(dict(sorted(found.kinds.items())))


if __name__ == "__main__":
    main()
