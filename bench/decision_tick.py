"""What a tick costs: `step` alone with every cell dirty, with few, with none; and fold + step.

    .venv/bin/python bench/decision_tick.py

Median and best of several ticks, CPU time of the thread (the machine may be shared). "all" feeds
every cell in every tick as columns; "calls" feeds what 4,000 payments a second spread over the
channels (Zipf) touch in one tick; "region out" is the worst tick while a region leaves, "objects"
the time to make as many plain objects of four fields as that tick makes routes, and "audit" the
plan checker's time for its plan.
"""

import time
from dataclasses import replace

import numpy as np

from controlplane.decision.fold import Baseline, fold
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.audit import check
from controlplane.model.evidence import (
    CellCounters,
    Digest,
    Evidence,
    Gains,
    IngressView,
    Outcomes,
    RegionEvidence,
)
from controlplane.model.intents import NO_INTENTS
from controlplane.model.topology import Channel, Region, Role, Topology
from controlplane.runtime.tick import uncollected


def topology_of(regions, channels):
    """`regions` regions that all serve `channels` channels."""
    names = tuple(f"r{i:02}" for i in range(regions))
    return Topology(
        regions=tuple(
            Region(
                name=n,
                role=Role.STANDBY,
                share_bp=10_000 // regions,
                capacity_tps=10**6,
                priority=i,
            )
            for i, n in enumerate(names)
        ),
        channels=tuple(
            Channel(name=f"c{i:06}", regions=names, demand_tps=1) for i in range(channels)
        ),
    )


def regions_of(topology):
    """Everybody reports and reaches everybody."""
    names = [region.name for region in topology.regions]
    return tuple(
        RegionEvidence(
            region=name,
            report_age_ms=120,
            agents_live=1,
            ingress=tuple(
                IngressView(target=other, ok=2, last_success_age_ms=90)
                for other in names
                if other != name
            ),
        )
        for name in names
    )


def gains_of(cells, rng):
    """One call or a few on each of `cells`."""
    size = cells.size
    good = rng.poisson(1.0, size) + 1
    bad = rng.binomial(good, 0.01)
    none = np.zeros(size, dtype=np.int64)
    return Gains(
        cell=cells,
        traffic_good=good,
        traffic_bad=bad,
        probe_good=none,
        probe_bad=none,
        latency_cell=cells,
        latency_bucket=np.full(size, 28),
        latency_count=good + bad,
    )


def measure(topology, kind, ticks, rng):
    """Median and best ms of a tick."""
    size = len(topology.regions) * len(topology.channels)
    state, regions, spent = State.initial(topology), regions_of(topology), []
    zipf = 1.0 / np.arange(1, len(topology.channels) + 1)
    for tick in range(ticks + 12):
        if kind == "all":
            gains = gains_of(np.arange(size), rng)
        elif kind == "calls":
            channel = rng.choice(len(topology.channels), 2000, p=zipf / zipf.sum())
            region = rng.integers(0, len(topology.regions), 2000)
            gains = gains_of(np.unique(region * len(topology.channels) + channel), rng)
        else:
            gains = None
        evidence = Evidence(regions=regions, gains=gains)
        began = time.thread_time()
        state = step(topology, state, evidence, NO_INTENTS, 500 * tick).state
        spent.append((time.thread_time() - began) * 1000)
    return float(np.median(spent[12:])), min(spent[12:])


class Bare:
    """What a route costs at least: an object of four fields."""

    __slots__ = ("a", "b", "c", "d")

    def __init__(self, a, b, c, d):
        self.a, self.b, self.c, self.d = a, b, c, d


def failing(topology):
    """Ms of the worst tick while a region is taken out (every route is built anew), of as many bare
    objects, and of the check of the plan."""
    names = [region.name for region in topology.regions]
    state, worst = State.initial(topology), 0.0
    for tick in range(24):
        regions = regions_of(topology)
        if tick > 10:
            age = 500 * (tick - 10)
            regions = tuple(
                RegionEvidence(region=r.region, report_age_ms=age)
                if r.region == names[0]
                else replace(
                    r,
                    ingress=tuple(
                        IngressView(
                            target=v.target,
                            failed=2,
                            last_success_age_ms=age,
                            failures_since_success=2 * (tick - 10),
                        )
                        if v.target == names[0]
                        else v
                        for v in r.ingress
                    ),
                )
                for r in regions
            )
        began = time.thread_time()
        evidence = Evidence(regions=regions, leader_region=names[-1])
        with uncollected():  # as the leader's tick does
            state = step(topology, state, evidence, NO_INTENTS, 500 * tick).state
        if tick > 10:
            worst = max(worst, (time.thread_time() - began) * 1000)
    channels = [channel.name for channel in topology.channels]
    began = time.thread_time()
    with uncollected():
        made = [Bare(name, channels, 0, names) for name in channels]
    objects = (time.thread_time() - began) * 1000
    plan = state.memory.plan
    began = time.thread_time()
    found = check(plan, topology)
    assert not found, len(made)
    return worst, objects, (time.thread_time() - began) * 1000


def folded(channels, dirty):
    """Ms of fold and step together, from digests of objects, `dirty` of the cells changed."""
    topology = topology_of(3, channels)
    names = [region.name for region in topology.regions]
    rng = np.random.default_rng(3)
    cells = {
        name: [CellCounters(channel=c.name, traffic=Outcomes(ok=100)) for c in topology.channels]
        for name in names
    }
    regions, state, base, spent = regions_of(topology), State.initial(topology), Baseline(), []
    for tick in range(1, 20):
        for name in names:
            for i in rng.choice(channels, max(1, int(channels * dirty)), replace=False):
                old = cells[name][i]
                cells[name][i] = CellCounters(
                    channel=old.channel, traffic=Outcomes(ok=old.traffic.ok + 1, latency={28: tick})
                )
        digests = [
            (
                Digest(
                    replica=f"{r.region}-0",
                    region=r.region,
                    boot=1,
                    seq=tick,
                    regions=(replace(r, cells=tuple(cells[r.region])),),
                ),
                0,
            )
            for r in regions
        ]
        began = time.thread_time()
        evidence, base = fold(base, digests, topology)
        state = step(topology, state, evidence, NO_INTENTS, 500 * tick).state
        spent.append((time.thread_time() - began) * 1000)
    return float(np.median(spent[4:]))


def main():
    """Print the tables."""
    rng = np.random.default_rng(1)
    print(
        "step, ms a tick (median / best)      none            calls             all"
        "    region out   objects     audit"
    )
    for regions, channels, ticks in (
        (3, 4, 200),
        (3, 1000, 100),
        (3, 10_000, 40),
        (3, 100_000, 15),
        (12, 10_000, 15),
    ):
        topology = topology_of(regions, channels)
        row = [
            "{:7.2f} /{:7.2f}".format(*measure(topology, kind, ticks, rng))
            for kind in ("none", "calls", "all")
        ]
        label = f"{regions:3} regions x {channels:7,} channels"
        out, objects, audit = np.median([failing(topology) for _ in range(5)], axis=0)
        print(f"{label}  {'  '.join(row)}  {out:9.1f} {objects:9.1f} {audit:9.1f}")
    print("\nfold + step from digests, 3 regions, ms a tick (median)   1 % dirty   10 % dirty")
    for channels in (1000, 10_000):
        print(
            f"{channels:7,} channels {folded(channels, 0.01):46.1f} {folded(channels, 0.1):12.1f}"
        )


if __name__ == "__main__":
    main()
