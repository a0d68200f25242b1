"""`weir replay FILE`: decide a recorded log again and compare, byte for byte."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.exits import FAILED, USAGE
from controlplane.cli.output import Format, print_data
from controlplane.decision.log import replay as replay_lines
from controlplane.model.errors import InvalidInputError


def replay(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Decision log.")
    ],
) -> None:
    """Replay a decision log; exit 1 at the first difference, 2 when the file is no log."""
    fmt: Format = ctx.obj.format
    try:
        outcome = replay_lines(_lines(file))
    except (InvalidInputError, OSError, EOFError) as error:
        typer.echo(f"{file}: {error}", err=True)
        raise typer.Exit(USAGE) from None
    found = outcome.difference
    if fmt is not Format.TABLE:
        print_data({**asdict(outcome), "same": found is None}, fmt)
    elif found is None:
        tail = "; the last line is cut" if outcome.cut else ""
        typer.echo(f"{file}: {outcome.ticks} ticks, {outcome.plans} plans, all the same{tail}")
    else:
        typer.echo(f"{file}:{found.line}: {found.field} differs")
        typer.echo(f"  recorded {found.recorded}")
        typer.echo(f"  replayed {found.replayed}")
    if found is not None:
        raise typer.Exit(FAILED)


def _lines(file: Path) -> Iterator[bytes]:
    """Yield lines, unpacking a rotated file that was compressed."""
    if file.suffix == ".gz":
        with gzip.open(file, "rb") as packed:
            yield from packed
    else:
        with file.open("rb") as plain:
            yield from plain
