"""A runbook that is missing, or whose commands do not exist, is found out at the worst hour."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from controlplane.cli import lazy
from controlplane.cli.app import app
from tests.observability.promtool import ROOT, alerts

PAGES = ROOT / "docs/runbooks"
BOARDS = ROOT / "deploy/grafana/dashboards"
NAMES = sorted({rule["alert"] for rule in alerts()})
SECTIONS = ("Symptom", "Meaning", "First three commands", "When to wake whom")


@functools.cache
def command_tree() -> Any:
    """Return the whole CLI as click sees it."""
    lazy.register(app, ["--help"])
    return typer.main.get_command(app)


def commands(name: str) -> list[str]:
    """Return the first commands of a page."""
    return re.findall(r"^\d\. `([^`]+)`", (PAGES / f"{name}.md").read_text(), re.MULTILINE)


def test_one_page_per_alert_and_none_besides() -> None:
    """Pages and alerts match, and the index lists them all."""
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(NAMES)
    index = (PAGES / "README.md").read_text()
    assert all(f"({name}.md)" in index for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_what_a_person_needs_at_night(name: str) -> None:
    """Its sections, in order and none empty; exactly three first commands; its severities; its links."""
    text = (PAGES / f"{name}.md").read_text()
    assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == SECTIONS
    assert all(len(part.strip()) > 20 for part in text.split("## ")[1:])
    assert len(commands(name)) == 3
    stated = text.split("Severity: ")[1].split("\n")[0]
    for rule in alerts():
        if rule["alert"] == name:
            assert rule["labels"]["severity"] in stated
    for target in re.findall(r"\]\(([^)]+\.md)\)", text):
        assert (PAGES / target).is_file(), target


MEANT = {
    "CHANNEL": "alipay",
    "REGION": "east",
    "NAME": "account/42",
    "HOST:PORT": "127.0.0.1:7700",
    "R=N,...": "east=5000,north=5000",
    "--weights …": "--weights east=5000,north=5000",
    "--reason …": "--reason INC-42",
}
"""What a reader puts in for a page's words."""


def parsed(words: list[str]) -> str:
    """Parse a line as `weir` does, without running it, and return the command's whole name.

    Whatever `weir` would refuse (no such command or option, a word missing, a value that is none)
    raises what it raises there.
    """
    context = command_tree().make_context("weir", list(words))
    while hasattr(context.command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return str(context.command_path)


def meant(line: str, file: str) -> list[str]:
    """Return the words of a page's line as somebody would type them, `file` for FILE."""
    for word, value in (MEANT | {"FILE": file}).items():
        line = line.replace(word, value)
    assert "…" not in line, "say what stands here"
    return shlex.split(line)[1:]


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_accepted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real CLI takes every `weir` command of a page: its options, words and required ones."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.delenv("WEIR_CONFIG", raising=False)
    lines = re.findall(r"`(weir [^`]+)`", (PAGES / f"{name}.md").read_text())
    assert lines
    for line in lines:
        asked = parsed(meant(line, str(file)))
        assert asked.split()[-1] in line.split()


@pytest.mark.parametrize(
    "line", ["stauts", "explain", "drain east --raeson x", "replay /no/such/file", "lock got x"]
)
def test_what_weir_refuses_is_not_accepted(line: str) -> None:
    """The check above would see a slip: an unknown command or option, a word or file missing."""
    with pytest.raises(Exception, match=r"(?i)no such|missing|does not exist"):
        parsed(line.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_dashboard_and_panel_named_exists(name: str) -> None:
    """What a page sends its reader to look at is there under that name."""
    boards = [json.loads(path.read_text()) for path in BOARDS.glob("*.json")]
    titles = {board["title"].removeprefix("Weir / ") for board in boards}
    titles |= {panel["title"] for board in boards for panel in board["panels"]}
    text = (PAGES / f"{name}.md").read_text()
    for title in re.findall(r"\*([A-Z][^*\n]+)\*", text):
        assert title in titles, title
