"""The dashboards as they are checked in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.observability.promtool import ROOT

FOLDER = ROOT / "deploy/grafana/dashboards"


def dashboards() -> dict[str, dict[str, Any]]:
    """Return every dashboard by uid."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every panel but the headings."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panels({"panels": panel.get("panels") or []})
        else:
            yield panel


def queries() -> Iterator[tuple[str, str, str]]:
    """Yield (dashboard, panel, expression) of every query."""
    for uid, board in dashboards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield uid, panel["title"], target["expr"]


def substituted(expr: str, variables: Mapping[str, str]) -> str:
    """Return the expression as Grafana would send it; KeyError for an unknown variable."""
    return re.sub(r"\$(\w+)", lambda match: variables[match.group(1)], expr)


ANYTHING: dict[str, str] = {
    "cluster": ".*",
    "region": ".*",
    "channel": ".*",
    "__rate_interval": "30s",
    "__range": "10m",
}


def generator(name: str) -> Path:
    """Return a file of the generator."""
    return ROOT / "deploy/grafana" / name
