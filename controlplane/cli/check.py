"""`weir check-config FILE`: says what is wrong before a daemon meets it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlplane import config
from controlplane.cli.exits import USAGE
from controlplane.cli.output import Format, print_data


def check_config(
    ctx: typer.Context, file: Annotated[Path, typer.Argument(help="Configuration file.")]
) -> None:
    """Check a configuration file; exit 2 and name file, line, key and remedy when it is refused."""
    fmt: Format = ctx.obj.format
    try:
        checked = config.load(file)
    except config.ConfigError as error:
        if fmt is Format.TABLE:
            typer.echo(str(error), err=True)
        else:
            print_data({"ok": False, "faults": error.faults}, fmt)
        raise typer.Exit(USAGE) from None
    summary = {
        "ok": True,
        "cluster": checked.cluster.name,
        "regions": sorted(checked.regions),
        "channels": sorted(checked.channels),
    }
    if fmt is Format.TABLE:
        typer.echo(f"{file}: ok ({len(checked.regions)} regions, {len(checked.channels)} channels)")
    else:
        print_data(summary, fmt)
