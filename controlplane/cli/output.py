"""Three ways to print: tables for people, JSON and YAML for machines. Colour only on a terminal.

A terminal gets tables fitted to its width; a pipe gets plain aligned columns, one row a line, for
grep and awk. rich and yaml are imported only when they print: a read command spends most
of its time on imports.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
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
GAP: Final = 2
"""Blanks between columns."""
READABLE: Final = 36
"""A text in fewer columns than this is put below its row instead."""


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
        _print_terminal(columns, rows)
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


def _print_terminal(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.text import Text  # noqa: PLC0415

    terminal = _terminal()
    for line in fitted(columns, rows, terminal.width):
        terminal.print(Text.assemble(*line), soft_wrap=True)


def fitted(
    columns: Sequence[str], rows: Iterable[Sequence[str]], width: int
) -> Iterator[list[tuple[str, str]]]:
    """Lay a table out in `width` columns; yields lines of (text, style).

    A last column that is too long is wrapped where it stands while it has room to be read, else
    it and what else does not fit stand below their row, each with its name: a cause in a column
    of eight letters explains nothing. Columns without any content are left out.
    """
    right = {column.removeprefix(">"): column.startswith(">") for column in columns}
    names = [column.removeprefix(">") for column in columns]
    cells = [[(_clean(cell), getattr(cell, "style", "")) for cell in row] for row in rows]
    used = [i for i in range(len(names)) if not cells or any(row[i][0] for row in cells)]
    size = {i: max(len(names[i]), *(len(row[i][0]) for row in cells), 0) for i in used}
    kept = len(used)
    while kept > 1 and _width(size, used[:kept]) > width:
        kept -= 1
    inline, below = used[:kept], used[kept:]
    end = inline[-1]
    room = max(1, width - _width(size, inline[:-1], last=False))
    pad = {i: (str.rjust if right[names[i]] else str.ljust, size[i]) for i in inline}
    pad[end] = (str.rjust, min(size[end], room)) if right[names[end]] else (str.ljust, 0)

    def line(texts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        parts: list[tuple[str, str]] = []
        for i, (text, style) in zip(inline, texts, strict=True):
            align, to = pad[i]
            parts += [(align(text, to), style), (" " * GAP, "")]
        return parts[:-1]

    yield line([(names[i], "bold") for i in inline])
    indent = [("", "")] * (len(inline) - 1)
    for row in cells:
        texts = _wrapped(row[end][0], room)
        yield line([*(row[i] for i in inline[:-1]), (texts[0], row[end][1])])
        for text in texts[1:]:
            yield line([*indent, (text, row[end][1])])
        for i in below:
            if row[i][0]:
                head = f"  {names[i].lower()}  "
                for n, text in enumerate(_wrapped(row[i][0], width - len(head))):
                    yield [(head if n == 0 else " " * len(head), "dim"), (text, row[i][1])]


def _width(size: dict[int, int], columns: Sequence[int], *, last: bool = True) -> int:
    """Columns a row needs; its last one may be wrapped, down to READABLE."""
    sizes = [size[i] for i in columns]
    if last and sizes:
        sizes[-1] = min(sizes[-1], READABLE)
    return sum(sizes) + GAP * (len(sizes) - (1 if last else 0))


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 10), break_on_hyphens=False) or [""]


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
