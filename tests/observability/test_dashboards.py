"""The dashboards are what their generator makes, and a person can read every panel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from controlplane.adapters.metric_catalogue import EXPOSED
from tests.observability.grafana import (
    ANYTHING,
    dashboards,
    generator,
    panels,
    queries,
    substituted,
)
from tests.observability.promtool import names_in, promtool, rules

UIDS = ("overview", "region", "channel", "failover", "locks", "internals")


def test_checked_in_json_is_generated() -> None:
    """Nobody edited a dashboard by hand, and nobody forgot to generate."""
    done = subprocess.run(
        [sys.executable, generator("generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_six_are_there_and_know_each_other() -> None:
    """Six dashboards, each linking to the others with its time range and variables."""
    assert set(dashboards()) == {f"weir-{uid}" for uid in UIDS}
    for uid, board in dashboards().items():
        assert board["uid"] == uid
        assert board["description"]
        assert any(link["keepTime"] and link["includeVars"] for link in board["links"])


@pytest.mark.parametrize("uid", UIDS)
def test_every_panel_explains_itself(uid: str) -> None:
    """Title, description, unit and the dashboard's datasource variable; no two panels overlap and
    the first row says in numbers or bands whether anything is wrong."""
    board = dashboards()[f"weir-{uid}"]
    names = [variable["name"] for variable in board["templating"]["list"]]
    assert names[:2] == ["datasource", "cluster"]
    taken: set[tuple[int, int]] = set()
    for panel in panels(board):
        assert panel["title"]
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    first = [panel for panel in panels(board) if panel["gridPos"]["y"] == 0]
    assert {panel["type"] for panel in first} <= {
        "stat", "state-timeline", "bargauge", "table", "timeseries",
    }  # fmt: skip
    assert any(panel["type"] != "timeseries" for panel in first)


def test_queries_ask_for_metrics_that_exist() -> None:
    """A renamed metric empties a panel in silence; here it makes a test red."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = EXPOSED | recorded | {"ALERTS", "process_cpu_seconds_total"}
    known |= {"process_resident_memory_bytes"}
    for uid, title, expr in queries():
        assert names_in(substituted(expr, ANYTHING)) <= known, (uid, title, expr)


def test_queries_are_valid_and_respect_the_variables(tmp_path: Path) -> None:
    """The real promtool parses every expression; each filters by the chosen cluster."""
    made = []
    for number, (uid, title, expr) in enumerate(queries()):
        assert "$cluster" in expr or "ALERTS" in expr, (uid, title)
        made.append({"record": f"panel:{number}", "expr": substituted(expr, ANYTHING)})
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_query_without_its_variable_is_noticed() -> None:
    """The substitution knows exactly the variables of Grafana and of the dashboards."""
    with pytest.raises(KeyError):
        substituted("up{x=~'$nobody'}", ANYTHING)
