"""The whole command line as typer sees it: every command, help, completion, usage errors.

`cli.main` comes here for everything that its quick way does not take.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import doctor as _doctor
from controlplane.cli import lazy, read
from controlplane.cli.client import Credentials
from controlplane.cli.options import Options
from controlplane.cli.output import Format

app = typer.Typer(
    name="weir",
    help="Keeps payments flowing when a region or a provider dies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="WEIR_CONFIG", help="Configuration file.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server",
            envvar="WEIR_SERVER",
            help="HOST:PORT of replicas, comma-separated; tried in turn.",
        ),
    ] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="How to print.")] = Format.TABLE,
    ca_file: Annotated[
        Path | None, typer.Option(envvar="WEIR_CA_FILE", help="CA bundle: mutual TLS on.")
    ] = None,
    cert_file: Annotated[
        Path | None, typer.Option(envvar="WEIR_CERT_FILE", help="Client certificate.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(envvar="WEIR_KEY_FILE", help="Client key.")
    ] = None,
    server_name: Annotated[
        str | None, typer.Option(help="Name expected in the server's certificate.")
    ] = None,
) -> None:
    """Keep the global options for the command."""
    if config is not None:
        os.environ["WEIR_CONFIG"] = str(config)  # the daemons have an option of that name too
    ctx.obj = Options(
        format=output,
        server=server,
        credentials=Credentials(
            ca_file=ca_file, cert_file=cert_file, key_file=key_file, server_name=server_name
        ),
        config=config,
    )


Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most this many.")]


def _plain(function: Callable[[Options], None]) -> None:
    """Add a read command without options of its own."""

    def command(ctx: typer.Context) -> None:
        function(ctx.obj)

    app.command(function.__name__, help=function.__doc__)(command)


for _function in (
    read.status, read.regions, read.channels, read.routes, read.breakers, read.version,
    _doctor.doctor,
):  # fmt: skip
    _plain(_function)


@app.command(help=read.agents.__doc__)
def agents(ctx: typer.Context, limit: Limit = 100) -> None:
    """List the agents."""
    read.agents(ctx.obj, limit=limit)


@app.command(help=read.events.__doc__)
def events(
    ctx: typer.Context,
    limit: Limit = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
) -> None:
    """List or follow events."""
    read.events(ctx.obj, limit=limit, follow=follow)


@app.command(help=read.failovers.__doc__)
def failovers(ctx: typer.Context, limit: Limit = 20) -> None:
    """List failovers."""
    read.failovers(ctx.obj, limit=limit)


@app.command(help=read.explain.__doc__)
def explain(ctx: typer.Context, channel: str) -> None:
    """Explain a route."""
    read.explain(ctx.obj, channel)


def run(argv: Sequence[str]) -> None:
    """Run the command line with its global options in front."""
    lazy.register(app, argv)
    app(args=list(argv), standalone_mode=True)
