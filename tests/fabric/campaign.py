"""Runs scenarios again and again; writes results as JSON, a table, and one timeline each."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from controlplane.dev.servers import scratch_root
from tests.fabric.figures import Payment, Run, figures, read_payments, regions_in, summary
from tests.fabric.lab import Lab, LabError, laboratory, paying
from tests.fabric.network import Network, run
from tests.fabric.peers import FAULTS, PEERS, one
from tests.fabric.plot import timeline
from tests.fabric.scenarios import SCENARIOS, Scenario

WARM_S = 4.0
"""Payments before the fault."""
DRAIN_S = 9.0
"""Longest deadline of a channel and a second: what hangs is answered by then."""
COLUMNS = ("outage_ms", "failed", "slow", "sent", "suspect_ms", "committed_ms", "applied_ms", "failed_ms",
           "switches", "leaked", "double_charges", "first_payment_ms")  # fmt: skip


def say(text: str) -> None:
    """Tell progress on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def campaign(names: Sequence[str], *, runs: int, rate: float, out: Path, add: bool) -> int:
    """Run everything; 1 when a promise was broken or no run of a scenario counted.

    With `add`, runs are added to those that `out` holds, so that a long campaign can be done in
    parts.
    """
    network, state = _enter(out)
    broken = 0
    tables = []
    try:
        for name in names:
            done = _kept(out / f"{name}.json") if add else []
            done += _scenario(SCENARIOS[name], network, state, runs=runs, rate=rate, out=out)
            if not done:
                broken += 1
                continue
            tables.append(summary(done))
            broken += _broken(tables[-1])
            _write(out / f"{name}.json", done)
            (out / f"{name}.svg").write_text(timeline(done[-1]))
            (out / "table.txt").write_text(text_table(_tables(out)))
    finally:
        network.close()
        shutil.rmtree(state, ignore_errors=True)
    sys.stdout.write(text_table(tables))
    return 1 if broken else 0


def compare(wanted: Sequence[str], *, runs: int, rate: float, out: Path, add: bool) -> int:
    """Run the peers (all, or those named) through the faults that everybody can have."""
    network, state = _enter(out)
    try:
        for peer in PEERS:
            for fault in FAULTS if not wanted or peer.name in wanted else ():
                path = out / f"peer-{peer.name}-{fault}.json"
                done = _kept(path) if add else []
                for number in range(1, runs + 1):
                    shutil.rmtree(state, ignore_errors=True)
                    with asyncio.Runner() as runner:
                        done.append(runner.run(one(peer, fault, number, network, state, rate)))
                    say(f"{done[-1].scenario} {number}/{runs}: {done[-1].figures}")
                _write(path, done)
    finally:
        network.close()
        shutil.rmtree(state, ignore_errors=True)
    tables = [json.loads(path.read_text())["summary"] for path in sorted(out.glob("peer-*.json"))]
    (out / "peers.txt").write_text(text_table(tables))
    sys.stdout.write(text_table(tables))
    return 0


def _enter(out: Path) -> tuple[Network, Path]:
    """Build the network in the namespaces of this process; return it and a state folder."""
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    out.mkdir(parents=True, exist_ok=True)
    state = Path(tempfile.mkdtemp(dir=scratch_root(), prefix="weir-fabric-"))
    network = Network(("east", "north", "south"))
    network.build(out / "delay.log")
    return network, state


def _write(path: Path, done: Sequence[Run]) -> None:
    document = {"summary": summary(done), "runs": [_as_json(r) for r in done]}
    path.write_text(json.dumps(document, indent=1))


def _tables(out: Path) -> list[dict[str, Any]]:
    """Return the summaries of all scenarios that have results, in their order."""
    paths = [out / f"{name}.json" for name in SCENARIOS]
    return [json.loads(path.read_text())["summary"] for path in paths if path.exists()]


def _broken(table: dict[str, Any]) -> int:
    never = ("leaked", "double_charges")
    return table["violations"] + sum(bool(table.get(name, {}).get("max")) for name in never)


def _scenario(
    scenario: Scenario, network: Network, state: Path, *, runs: int, rate: float, out: Path
) -> list[Run]:
    done: list[Run] = []
    for number in range(1, runs + 1):
        try:
            with asyncio.Runner() as runner:
                found = runner.run(_one(scenario, number, network, state, rate))
        except (LabError, OSError, RuntimeError):
            logs = out / f"{scenario.name}-{number}-logs"
            shutil.rmtree(logs, ignore_errors=True)
            shutil.copytree(state / "logs", logs, dirs_exist_ok=True)
            say(f"{scenario.name} {number}: does not count\n{traceback.format_exc(limit=3)}")
            continue
        done.append(found)
        shown = {k: v for k, v in found.figures.items() if k in COLUMNS}
        say(f"{scenario.name} {number}/{runs}: {shown} {dict(regions_in(found.payments))}")
        for fault in found.faults:
            say(f"  BROKEN {fault}")
    return done


async def _one(scenario: Scenario, number: int, network: Network, state: Path, rate: float) -> Run:
    async with laboratory(state, network, {}) as lab, asyncio.TaskGroup() as group:
        await scenario.prepare(lab)
        watching = group.create_task(lab.watch())
        path = lab.start_payer(rate)
        await lab.until(lambda: paying(path), "payments succeed")
        await asyncio.sleep(WARM_S)
        t0_ms = lab.clock.monotonic_ms()
        await scenario.inject(lab)
        await asyncio.sleep(scenario.watch_s)
        cold = state / "payer-cold.jsonl"
        found = await _finish(lab, scenario, number, t0_ms, cold if cold.exists() else path)
        watching.cancel()
    return found


async def _finish(lab: Lab, scenario: Scenario, number: int, t0_ms: int, path: Path) -> Run:
    end_ms = lab.clock.monotonic_ms() - t0_ms
    await asyncio.sleep(DRAIN_S)
    for child in lab.named("payer"):
        child.terminate()
        await asyncio.to_thread(child.wait_end, 3.0)
    payments = [p for p in read_payments(path, t0_ms) if p.due_ms <= end_ms]
    result = figures(lab, scenario, number, t0_ms, payments)
    if path.name == "payer-cold.jsonl":
        served = [p.end_ms for p in payments if p.region]
        result.figures["first_payment_ms"] = min(served, default=None)
    return result


def _kept(path: Path) -> list[Run]:
    """Read the runs of an earlier part."""
    if not path.exists():
        return []
    return [
        Run(
            scenario=path.stem,
            number=number,
            figures=kept["figures"],
            marks=kept["marks"],
            payments=[Payment(*line) for line in kept["payments"]],
            faults=kept["faults"],
        )
        for number, kept in enumerate(json.loads(path.read_text())["runs"], 1)
    ]


def _as_json(found: Run) -> dict[str, Any]:
    return {
        "figures": found.figures,
        "marks": found.marks,
        "faults": found.faults,
        "payments": [dataclasses.astuple(p) for p in found.payments],
    }


def text_table(tables: Sequence[dict[str, Any]]) -> str:
    """Return p50 / p99 / max of the columns that matter, one line per scenario."""
    rows = [["scenario", "runs", *COLUMNS]]
    for table in tables:
        cells = [str(table["scenario"]), str(table["runs"])]
        for name in COLUMNS:
            cell = table.get(name)
            if cell is None or cell["p50"] is None:
                cells.append("never" if cell else "-")
                continue
            figure = " / ".join(f"{cell[key]:.0f}" for key in ("p50", "p99", "max"))
            cells.append(figure + (f" (never: {cell['never']})" if cell["never"] else ""))
        rows.append(cells)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        + "\n"
        for row in rows
    )
