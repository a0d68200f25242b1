"""Results of the benches on etcd, kept in parts: every part appends, the table adds them up.

    python bench/etcd_results.py FILE

A part is {"what", "members", "gap": {name: [ms, …]}, "count": {name: number}}. Prints one line of
Markdown for every kind of gap: runs, median, p99 (of fewer than 100 runs: the largest), largest.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any


def figures(values: list[float]) -> dict[str, float]:
    """Median, p99 and largest."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {
        "median": round(ordered[len(ordered) // 2]), "p99": round(p99), "max": round(ordered[-1])
    }  # fmt: skip


def record(path: Path | None, part: dict[str, Any]) -> None:
    """Print one part's figures and append the part itself to a file."""
    shown = {name: {"runs": len(ms), **figures(ms)} for name, ms in part["gap"].items() if ms}
    line = {"what": part["what"], "members": part["members"], **shown, **part.get("count", {})}
    print(json.dumps(line), flush=True)
    if path:
        with path.open("a") as out:
            out.write(json.dumps(part) + "\n")


def main() -> None:
    """Add up the parts of a file."""
    if len(sys.argv) < 2:
        print(__doc__)
        return
    gaps: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    counts: dict[tuple[str, int, str], int] = defaultdict(int)
    for line in Path(sys.argv[1]).read_text().splitlines():
        part = json.loads(line)
        for name, values in part["gap"].items():
            gaps[part["what"], part["members"], name] += values
        for name, number in part.get("count", {}).items():
            counts[part["what"], part["members"], name] += number
    print("| What | members | ms | runs | median | p99 | max |\n|---|---|---|---|---|---|---|")
    for (what, members, name), values in sorted(gaps.items()):
        f = figures(values)
        print(
            f"| {what} | {members} | {name} | {len(values)} | {f['median']} | {f['p99']} "
            f"| {f['max']} |"
        )
    for (what, members, name), number in sorted(counts.items()):
        print(f"| {what} | {members} | {name} | | {number} | | |")


if __name__ == "__main__":
    main()
