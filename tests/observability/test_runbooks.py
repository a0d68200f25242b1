"""A runbook that is missing, or whose commands do not exist, is found out at the worst hour."""

from __future__ import annotations

import functools
import re
import shlex
from typing import Any

import pytest
import typer

from controlplane.cli import lazy
from controlplane.cli.app import app
from tests.observability.promtool import ROOT, alerts

PAGES = ROOT / "docs/runbooks"
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


@pytest.mark.parametrize("name", NAMES)
def test_first_commands_are_real(name: str) -> None:
    """Every `weir` command of a page exists, with the options it is given."""
    root = command_tree()
    for line in re.findall(r"`(weir [^`]+)`", (PAGES / f"{name}.md").read_text()):
        words = shlex.split(line.replace("…", "x"))[1:]
        command = root
        while words:
            word = words.pop(0)
            options = {o: p for p in command.params for o in (*p.opts, *p.secondary_opts)}
            if word.startswith("-"):
                assert word in options, (line, word)
                if not options[word].is_flag:
                    words.pop(0)
            elif hasattr(command, "commands"):
                assert word in command.commands, (line, word)
                command = command.commands[word]
