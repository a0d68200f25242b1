"""Runs scenarios again and again, in turn, until each has the runs that were asked for.

A campaign may be cut at any moment and be continued by the same command, and several laboratories
may work on one folder at once: see `results`. Scenarios take turns, so that a campaign that was cut
has equal counts.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.clock import SystemClock
from controlplane.dev.servers import scratch_root
from tests.fabric.figures import Run, figures, outcome, read_payments, regions_in
from tests.fabric.lab import Lab, LabError, laboratory, paying
from tests.fabric.network import Network, run
from tests.fabric.nursery import Nursery
from tests.fabric.peers import FAULTS, PEERS, one
from tests.fabric.results import COLUMNS, Results, text_table
from tests.fabric.scenarios import SCENARIOS, Scenario

WARM_S = 4.0
"""Payments before the fault."""
OBSERVED_S = 5.0
"""How long a run goes on after its outcome is complete: for late leaks, and for second thoughts."""
POLL_S = 0.1
UNCOUNTED_MAX = 10
"""Runs that may not reach their fault before a campaign gives up."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where runs take place: a network, a state folder, a nursery."""

    network: Network
    state: Path
    nursery: Nursery


Act = Callable[[Bench, str, int], Coroutine[Any, Any, Run]]


def say(text: str) -> None:
    """Tell progress on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def campaign(
    names: Sequence[str], *, runs: int, rate: float, out: Path, add: bool, minutes: float
) -> int:
    """Run everything; 1 when a promise was broken or no run of a scenario counted."""

    async def act(bench: Bench, name: str, number: int) -> Run:
        return await _one(SCENARIOS[name], number, bench, rate)

    results = _work(names, act, runs=runs, out=out, add=add, minutes=minutes)
    tables = results.summarise(list(SCENARIOS), "table.txt")
    sys.stdout.write(text_table(tables))
    counted = {table["scenario"] for table in tables}
    broken = sum(_broken(table) for table in tables) + len(set(names) - counted)
    return 1 if broken else 0


def compare(
    wanted: Sequence[str], *, runs: int, rate: float, out: Path, add: bool, minutes: float
) -> int:
    """Run the peers (all, or those named) through the faults that everybody can have."""
    peers = {peer.name: peer for peer in PEERS if not wanted or peer.name in wanted}
    names = [f"{peer}/{fault}" for peer in peers for fault in FAULTS]

    async def act(bench: Bench, name: str, number: int) -> Run:
        peer, _, fault = name.partition("/")
        lab = Lab.at(bench.state, bench.network, bench.nursery)
        return await one(lab, peers[peer], fault, number, rate)

    results = _work(names, act, runs=runs, out=out, add=add, minutes=minutes)
    every = [f"{peer.name}/{fault}" for peer in PEERS for fault in FAULTS]
    sys.stdout.write(text_table(results.summarise(every, "peers.txt")))
    return 0


def _work(
    names: Sequence[str], act: Act, *, runs: int, out: Path, add: bool, minutes: float
) -> Results:
    """Do run after run until all have `runs`, or until no time is left to begin another."""
    results, clock = Results(out), SystemClock()
    end_ms = clock.monotonic_ms() + minutes * 60_000 if minutes else None
    if not add:
        for name in names:
            results.clear(name)
    uncounted = 0
    with _bench(out) as bench:
        while end_ms is None or clock.monotonic_ms() < end_ms:
            claimed = results.claim(names, runs)
            if claimed is None:
                break
            began_ms = clock.monotonic_ms()
            if _run(bench, act, *claimed, results):
                say(f"  took {(clock.monotonic_ms() - began_ms) / 1000:.1f} s")
                continue
            uncounted += 1
            if uncounted >= UNCOUNTED_MAX:
                say("too many runs never reached their fault: giving up")
                break
    return results


def _run(bench: Bench, act: Act, name: str, number: int, results: Results) -> bool:
    """Do one run; False when it never reached its fault."""
    try:
        with asyncio.Runner() as runner:
            found = runner.run(act(bench, name, number))
    except* (LabError, OSError, RuntimeError) as group:
        logs = results.folder / f"{name.replace('/', '-')}-{number}-logs"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(bench.state / "logs", logs, dirs_exist_ok=True)
        say(f"{name} {number}: does not count\n{traceback.format_exc(limit=3)}")
        results.discard(name, number, "; ".join(str(error) for error in group.exceptions))
        found = None
    if found is None:
        return False
    results.put(found)
    shown = {k: v for k, v in found.figures.items() if k in COLUMNS}
    say(f"{name} {number}: {shown} {dict(regions_in(found.payments))}")
    for fault in found.faults:
        say(f"  BROKEN {fault}")
    return True


@contextmanager
def _bench(out: Path) -> Iterator[Bench]:
    """Build the network in the namespaces of this process, and what runs need besides."""
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    out.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(dir=scratch_root(), prefix="weir-fabric-"))
    network = Network(("east", "north", "south"))
    network.build(out / "delay.log")
    nursery = Nursery(out / "nursery.log")
    try:
        yield Bench(network, state, nursery)
    finally:
        nursery.close()
        network.close()
        shutil.rmtree(state, ignore_errors=True)


def _broken(table: dict[str, Any]) -> int:
    never = ("leaked", "double_charges")
    return table["violations"] + sum(bool(table.get(name, {}).get("max")) for name in never)


async def _one(scenario: Scenario, number: int, bench: Bench, rate: float) -> Run:
    async with laboratory(bench.state, bench.network, bench.nursery, {}) as lab:
        await scenario.prepare(lab)
        path = lab.start_payer(rate)
        async with lab.recorder.recording():
            await lab.until(lambda: paying(path), "payments succeed")
            await asyncio.sleep(WARM_S)
            t0_ms = lab.clock.monotonic_ms()
            await scenario.inject(lab)
            await _outcome(lab, scenario, t0_ms)
            end_ms = lab.clock.monotonic_ms() - t0_ms
            await lab.stop_payers()
        ended = lab.ended()
    cold = bench.state / "payer-cold.jsonl"
    payments = [
        p for p in read_payments(cold if cold.exists() else path, t0_ms) if p.due_ms <= end_ms
    ]
    found = figures(lab, scenario, number, t0_ms, payments)
    found.faults += ended
    if cold.exists():
        # what fails before Envoy is up is the start itself, and has a figure of its own
        first = min((p for p in payments if p.region), key=lambda p: p.end_ms, default=None)
        since = [p for p in payments if first and p.due_ms > first.due_ms and p.unanswered]
        found.figures["first_payment_ms"] = first.end_ms if first else None
        found.figures["failed"] = len(since)
        found.figures["outage_ms"] = max((p.due_ms for p in since), default=0)
    return found


async def _outcome(lab: Lab, scenario: Scenario, t0_ms: int) -> None:
    """Watch until what must happen has happened, and a while longer; `watch_s` where nothing must,
    or where it does not happen."""
    if not scenario.moves_weight:
        await asyncio.sleep(scenario.watch_s)
        return

    end_ms = t0_ms + scenario.watch_s * 1000
    while None in outcome(lab, scenario, t0_ms).values() and lab.clock.monotonic_ms() < end_ms:
        await asyncio.sleep(POLL_S)
    await asyncio.sleep(OBSERVED_S)
