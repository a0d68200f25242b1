"""The documentation hangs together: links and pictures lead somewhere, commands and pages exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.adapters.metric_catalogue import CATALOGUE
from tests.observability.promtool import ROOT
from tests.observability.test_runbooks import command_tree

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "controlplane/**/*.md")
    for page in ROOT.glob(pattern)
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PICTURES = {".png", ".svg"}
VALUE = "…"
"""Stands in a page for whatever the reader has."""


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def targets(page: Path) -> list[str]:
    """Return what a page links to or shows, outside addresses left out."""
    text = prose(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    bare = (re.sub(r"[^\w\- ]", "", heading).lower() for heading in headings)
    return {heading.replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    """Every relative link and picture of a page is a file of the repository, every anchor a heading
    of it."""
    page = ROOT / name
    for target in targets(page):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_every_page_and_picture_is_reached() -> None:
    """From the README every page of docs/ is reached by links, and every picture is shown."""
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        if page.is_dir():
            waiting += page.glob("*.md")
        elif page.suffix == ".md":
            waiting += ((page.parent / t.partition("#")[0]).resolve() for t in targets(page))
    docs = ROOT / "docs"
    there = {path for path in docs.rglob("*") if path.suffix in PICTURES | {".md"}}
    assert there - reached == set()


def written_commands(page: Path) -> Iterator[str]:
    """Yield the `weir` commands in a page's code blocks, each with its continued lines."""
    for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL):
        whole = block.replace("\\\n", " ")
        yield from re.findall(r"^(?:\$ )?(?:\.venv/bin/)?(weir [^\n]*)$", whole, re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in NAMES if [*written_commands(ROOT / n)]])
def test_commands_are_real(name: str) -> None:
    """Every `weir` command that a page shows exists, with the options it is given."""
    for line in written_commands(ROOT / name):
        words = shlex.split(re.split(r" [>|] ?", line)[0], comments=True)[1:]
        command = command_tree()
        options: dict[str, bool] = {}
        while words:
            word = words.pop(0)
            options |= {
                name: parameter.is_flag if hasattr(parameter, "is_flag") else True
                for parameter in command.params
                for name in (*parameter.opts, *parameter.secondary_opts)
            }
            if word.startswith("-"):
                option, given, _ = word.partition("=")
                assert option in options, (line, option)
                if not options[option] and not given:
                    words.pop(0)
            elif hasattr(command, "commands") and VALUE not in word:
                assert word in command.commands, (line, word)
                command = command.commands[word]


LABELS_OF_SCRAPES = {"weir_cluster", "weir_region"}
NAMED = r"(?<![\w/.])(weir[_:][a-z0-9_:]*[a-z0-9])(?:\{([^}]*)\})?(?![\w.*-])"


def known_metrics() -> dict[str, frozenset[str] | None]:
    """Return every metric and recording rule with its labels, None where any is right."""
    metrics: dict[str, frozenset[str] | None] = {}
    for spec in CATALOGUE:
        family = (spec.name,) if spec.kind == "histogram" else ()
        metrics |= dict.fromkeys((*family, *spec.exposed), frozenset(spec.labels) | {"le"})
    for path in (ROOT / "deploy/prometheus").glob("*.rules.yaml"):
        for name in re.findall(r"record: (\S+)", path.read_text()):
            metrics[name] = None
    return metrics


@pytest.mark.parametrize("name", [n for n in NAMES if re.search(NAMED, (ROOT / n).read_text())])
def test_metrics_named_exist(name: str) -> None:
    """Every metric and recorded series that a page names is exported or recorded, with the labels
    it is named with."""
    metrics = known_metrics()
    for metric, braces in re.findall(NAMED, (ROOT / name).read_text()):
        if metric in LABELS_OF_SCRAPES:
            continue
        assert metric in metrics, metric
        labels, given = (
            metrics[metric],
            re.findall(r"(\w+)(?==|,|$)", re.sub(r'"[^"]*"', "", braces)),
        )
        assert labels is None or set(given) <= labels | LABELS_OF_SCRAPES, (metric, braces)
