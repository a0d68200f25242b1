"""Three ways to print: tables for people, JSON and YAML for machines. Colour only on a terminal.

A terminal gets rich's tables, folded to its width; a pipe gets plain aligned columns, one row a
line, for grep and awk. rich and yaml are imported only when they print: a read command spends most
of its time on imports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final, Self


class Format(StrEnum):
    """The values of -o."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


STYLES: Final = {
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

_SECOND_MS: Final = 1000


class Styled(str):
    """A text with the look it has on a terminal."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: str, style: str = "") -> Self:
        """Return `text` in a style of rich."""
        made = super().__new__(cls, text)
        made.style = style
        return made


def word(text: str) -> Styled:
    """Colour a word of the contract."""
    return Styled(text, STYLES.get(text, ""))


def say(*parts: str) -> None:
    """Print one line made of parts."""
    if sys.stdout.isatty():
        from rich.text import Text  # noqa: PLC0415

        styled = ((_clean(part), getattr(part, "style", "")) for part in parts)
        _terminal().print(Text.assemble(*styled))
    else:
        sys.stdout.write(_clean("".join(parts)).rstrip() + "\n")


def print_data(data: Any, fmt: Format) -> None:
    """Print for machines."""
    if fmt is Format.YAML:
        import yaml  # noqa: PLC0415

        sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    else:
        sys.stdout.write(json.dumps(data, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; a column whose name begins with > is aligned to the right."""
    if sys.stdout.isatty():
        _print_rich(columns, rows)
        return
    right = [column.startswith(">") for column in columns]
    cells = [[column.removeprefix(">") for column in columns]]
    cells += [[_clean(cell) for cell in row] for row in rows]
    width = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        padded = (
            cell.rjust(width[i]) if right[i] else cell.ljust(width[i])
            for i, cell in enumerate(line)
        )
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def _print_rich(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_clean(cell), style=getattr(cell, "style", "")) for cell in row))
    _terminal().print(table)


def _terminal() -> Any:
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False)


def _clean(text: str) -> str:
    """Leave out what could steer a terminal: reasons and names come from other people."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


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
