"""Three ways to print: tables for people, JSON and YAML for machines. Colour only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Format(StrEnum):
    """The values of -o."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


STYLES = {
    "healthy": "green",
    "closed": "green",
    "completed": "green",
    "suspect": "yellow",
    "half_open": "yellow",
    "recovering": "yellow",
    "running": "yellow",
    "warning": "yellow",
    "unknown": "dim",
    "failed": "bold red",
    "unhealthy": "bold red",
    "open": "bold red",
    "critical": "bold red",
    "drained": "magenta",
}
"""Words of the contract and how they look."""


_SECOND_MS = 1000


def console() -> Console:
    """Return the console of stdout; it notices by itself whether it is a terminal."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def word(text: str) -> Text:
    """Colour a word of the contract."""
    return Text(text, style=STYLES.get(text, ""))


def print_data(data: Any, fmt: Format) -> None:
    """Print for machines."""
    if fmt is Format.YAML:
        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table that fits the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    console().print(table)


def bar(weight_bp: int, width: int = 20) -> str:
    """Draw a weight as a bar of `width` cells."""
    eighths = round(weight_bp * width * 8 / 10_000)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")


def percent(weight_bp: int) -> str:
    """Show basis points as per cent."""
    return f"{weight_bp / 100:g}%"


def age(ms: int) -> str:
    """Show an age in ms."""
    if ms < 0:
        return "never"
    return f"{ms} ms" if ms < _SECOND_MS else f"{ms / _SECOND_MS:.1f} s"
