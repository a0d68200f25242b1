"""Results of a campaign: one JSON file a run, so that parts and parallel laboratories add up.

    DIR/runs/SCENARIO/NNN.json     one run each, written by rename
    DIR/runs/SCENARIO/NNN.claim    the pid of the laboratory that is at it
    DIR/uncounted.txt              runs that never reached their fault, with the reason
    DIR/SCENARIO.json, .svg        summary of all runs, timeline of the last
    DIR/table.txt                  all scenarios

A number is claimed before its run, so that several laboratories share the work evenly; the claim of
one that died is void.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fabric.figures import Payment, Run, summary
from tests.fabric.plot import timeline

COLUMNS = ("outage_ms", "failed", "slow", "sent", "suspect_ms", "committed_ms", "applied_ms", "everywhere_ms",
           "failed_ms", "switches", "leaked", "double_charges", "first_payment_ms")  # fmt: skip


class Results:
    """A folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def clear(self, name: str) -> None:
        """Forget the runs of a scenario."""
        for path in self._at(name).glob("*.json"):
            path.unlink()

    def _at(self, name: str) -> Path:
        return self.folder / "runs" / name

    def claim(self, names: Sequence[str], runs: int) -> tuple[str, int] | None:
        """Take the scenario with the fewest runs, done or under way; None when each has `runs`."""
        while True:
            taken = {name: self._numbers(name) for name in names}
            name = min(names, key=lambda each: len(taken[each]))
            if len(taken[name]) >= runs:
                return None
            number = next(n for n in range(1, runs + 1) if n not in taken[name])
            path = self._at(name) / f"{number:03}.claim"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue  # another laboratory was quicker
            os.write(fd, str(os.getpid()).encode())
            os.close(fd)
            return name, number

    def _numbers(self, name: str) -> set[int]:
        folder = self._at(name)
        folder.mkdir(parents=True, exist_ok=True)
        for claim in folder.glob("*.claim"):
            pid = claim.read_text()
            if pid and not Path(f"/proc/{pid}").exists():
                claim.unlink(missing_ok=True)
        return {int(path.stem) for path in folder.iterdir()}

    def put(self, run: Run) -> None:
        """Keep a run."""
        path = self._at(run.scenario) / f"{run.number:03}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(_as_json(run)))
        part.rename(path)
        path.with_suffix(".claim").unlink(missing_ok=True)

    def discard(self, name: str, number: int, reason: str) -> None:
        """Note that a run never reached its fault, and free its number."""
        with (self.folder / "uncounted.txt").open("a") as out:
            out.write(f"{name} {number}: {reason}\n")
        (self._at(name) / f"{number:03}.claim").unlink(missing_ok=True)

    def runs(self, name: str) -> list[Run]:
        """Read every run of a scenario."""
        paths = sorted(self._at(name).glob("*.json"))
        return [_from_json(name, int(path.stem), json.loads(path.read_text())) for path in paths]

    def summarise(self, names: Sequence[str], file: str) -> list[dict[str, Any]]:
        """Write summaries, timelines and the table `file`; return the summaries."""
        tables = []
        for name in names:
            done = self.runs(name)
            if not done:
                continue
            tables.append(summary(done))
            flat = name.replace("/", "-")
            (self.folder / f"{flat}.json").write_text(json.dumps(tables[-1], indent=1))
            (self.folder / f"{flat}.svg").write_text(timeline(done[-1]))
        (self.folder / file).write_text(text_table(tables))
        return tables


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "figures": run.figures,
        "marks": run.marks,
        "faults": run.faults,
        "payments": [dataclasses.astuple(p)[:5] for p in run.payments],
    }


def _from_json(name: str, number: int, kept: dict[str, Any]) -> Run:
    payments = [Payment(*line) for line in kept["payments"]]
    return Run(name, number, kept["figures"], kept["marks"], payments, kept["faults"])


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


def markdown(tables: Sequence[dict[str, Any]]) -> str:
    """Return the table of the documentation: median / p99 / max, seconds where it is time."""
    columns = {
        "client outage": ("outage_ms", 1000),
        "unanswered": ("failed", 1),
        "slower than 1 s": ("slow", 1),
        "weight 0 at every live subscriber": ("everywhere_ms", 1000),
        "region failed": ("failed_ms", 1000),
        "switches": ("switches", 1),
        "leaked": ("leaked", 1),
        "charged twice": ("double_charges", 1),
        "first payment": ("first_payment_ms", 1000),
    }
    shown = {head: how for head, how in columns.items() if any(how[0] in t for t in tables)}
    lines = ["| | runs | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for table in tables:
        cells = [_cell(table.get(name), unit) for name, unit in shown.values()]
        lines.append(f"| {table['scenario']} | {table['runs']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(cell: dict[str, Any] | None, unit: int) -> str:
    """Return median / p99 / max of a figure; how often it never came."""
    if cell is None:
        return ""
    if cell["p50"] is None:
        return "never"
    values = [cell[key] / unit for key in ("p50", "p99", "max")]
    text = " / ".join(f"{value:.2f}" if unit > 1 else f"{value:.0f}" for value in values)
    text += " s" if unit > 1 else ""
    return text + (f", {cell['never']} never" if cell["never"] else "")
