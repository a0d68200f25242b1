"""The real promtool, amtool, Prometheus and Alertmanager of the machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from controlplane.dev.process import find_binary

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULE_FILES = (PROMETHEUS / "weir-recording.rules.yaml", PROMETHEUS / "weir-alerts.rules.yaml")
_HINT = "apt-get install prometheus prometheus-alertmanager"

# what stands in PromQL without being the name of a metric
_WORDS = frozenset(
    [
        "sum",
        "min",
        "max",
        "avg",
        "count",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "and",
        "or",
        "unless",
        "offset",
        "bool",
        "rate",
        "increase",
        "changes",
        "scalar",
        "vector",
        "absent",
        "time",
        "abs",
        "histogram_quantile",
        "label_replace",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
        "last_over_time",
        "Inf",
    ]
)


def promtool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool to its end."""
    return _run("promtool", *args)


def amtool(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run amtool to its end."""
    return _run("amtool", *args)


def _run(name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [find_binary(name, hint=_HINT), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def rules() -> Iterator[dict[str, Any]]:
    """Yield every rule, recording and alert."""
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """Return every alert; one name may stand more than once (mild and grave)."""
    return [rule for rule in rules() if "alert" in rule]


def names_in(expr: str) -> set[str]:
    """Return the metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|on|without|group_left|group_right) *\([^)]*\)", "", bare)
    return {
        word
        for word in re.findall(r"(?<![\w.])[a-zA-Z_][a-zA-Z0-9_:]*", bare)
        if word not in _WORDS
    }
