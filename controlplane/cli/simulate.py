"""`weir simulate SCENARIO`: the decision function in virtual time.

The same seed gives the same run. Nothing real is touched: no server, no clock.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from controlplane.cli.exits import USAGE
from controlplane.cli.output import Format, print_data
from controlplane.model.errors import InvalidInputError
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.network import PERIOD_MS
from controlplane.simulation.plot import svg
from controlplane.simulation.run import Result, note
from controlplane.simulation.scenarios import DAY_MS, SCENARIOS, scenario
from controlplane.simulation.summary import simulation, summary


def simulate(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="SCENARIO", help=f"One of {', '.join(SCENARIOS)}.")
    ],
    days: Annotated[
        float | None, typer.Option(min=0.001, max=366.0, help="Virtual days; else the scenario's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 1,
    plot: Annotated[
        Path | None, typer.Option(help="Write the weights over time to this SVG file.")
    ] = None,
) -> None:
    """Run a scenario in virtual time and print detection times and false failovers."""
    fmt: Format = ctx.obj.format
    try:
        chosen = scenario(name)
        if plot is not None:
            _check_plot(plot)
    except InvalidInputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(USAGE) from None
    topology = demo_topology()
    duration_ms = chosen.duration_ms if days is None else round(days * DAY_MS)
    result = Result()
    run = simulation(topology, chosen, seed, duration_ms)
    ticks = track(
        run.ticks(),
        description=f"{chosen.name}, {duration_ms / 1000:g} s",
        total=duration_ms // PERIOD_MS,
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    for tick in ticks:
        note(result, tick)
    data = summary(chosen, seed, duration_ms, result)
    if plot is not None:
        names = sorted(topology.channels[0].regions)
        drawing = svg(f"{chosen.name}: {chosen.shows}", names, result, run.faults, duration_ms)
        plot.write_text(drawing, encoding="utf-8")
    if fmt is Format.TABLE:
        _table(data)
    else:
        print_data(data, fmt)


def _check_plot(file: Path) -> None:
    """Refuse before the run what would be found out after it."""
    if file.suffix.lower() != ".svg":
        raise InvalidInputError(
            "--plot", f"{file} is no .svg file; browsers and editors show those"
        )
    if not file.parent.is_dir():
        raise InvalidInputError("--plot", f"there is no folder {file.parent}; make it first")


def _table(data: dict[str, Any]) -> None:
    typer.echo(f"{data['scenario']}: {data['shows']}")
    typer.echo(
        f"{data['virtual_s']:g} s of virtual time, seed {data['seed']}, {data['ticks']} ticks, "
        f"{data['plans']} plans"
    )
    typer.echo(
        f"moves on suspicion {data['moves_on_suspicion']}, failed regions "
        f"{data['failed_regions']}, false failovers {data['false_failovers']}"
    )
    for found in data["detection"]:
        typer.echo(
            f"{found['region']}: weight moved after {_ms(found['moved_ms'])}, "
            f"failed after {_ms(found['failed_ms'])}"
        )
    for entry in data["timeline"][:40]:
        typer.echo(f"{entry['at_s']:>10.1f} s  {entry['kind']:<20} {entry['message']}")
    if len(data["timeline"]) > 40:  # noqa: PLR2004 - one screen
        typer.echo("  … more with -o json")


def _ms(value: int | None) -> str:
    return "never" if value is None else f"{value} ms"
