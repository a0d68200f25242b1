"""The `weir` command.

Global options may stand before or behind the command (`weir -o json status` and `weir status -o
json` are the same).
Modules of daemons are imported only when their command runs: a read command answers in a blink.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from controlplane import __version__
from controlplane.cli import read
from controlplane.cli.client import (
    FAILED,
    UNREACHABLE,
    USAGE,
    CallError,
    Client,
    Credentials,
    local_credentials,
    servers,
)
from controlplane.cli.output import Format
from controlplane.model.errors import InvalidInputError, RefusedError, UnavailableError, WeirError

app = typer.Typer(
    name="weir",
    help="Keeps payments flowing when a region or a provider dies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_GLOBAL = {"-o": 1, "--output": 1, "--server": 1, "--ca-file": 1, "--cert-file": 1,
           "--key-file": 1, "--server-name": 1}  # fmt: skip
_DAEMONS = {"controlplane", "agent", "dev"}


@dataclass(slots=True)
class Options:
    """The global options, as every command finds them in `ctx.obj`."""

    format: Format = Format.TABLE
    server: str | None = None
    credentials: Credentials = field(default_factory=Credentials)

    def client(self) -> Client:
        """Return a client of the replicas asked for."""
        credentials = self.credentials
        if credentials.ca_file is None and self.server is None:
            credentials = local_credentials() or credentials
        return Client(servers(self.server), credentials)


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
        os.environ["WEIR_CONFIG"] = str(config)
    ctx.obj = Options(
        format=output,
        server=server,
        credentials=Credentials(
            ca_file=ca_file, cert_file=cert_file, key_file=key_file, server_name=server_name
        ),
    )


for _command in (
    read.status, read.regions, read.channels, read.routes, read.breakers, read.agents,
    read.events, read.failovers, read.explain,
):  # fmt: skip
    app.command()(_command)


@app.command()
def version(ctx: typer.Context) -> None:
    """Print the version."""
    if ctx.obj.format is Format.TABLE:
        print(f"weir {__version__}")
    else:
        from controlplane.cli.output import print_data  # noqa: PLC0415

        print_data({"version": __version__}, ctx.obj.format)


def _register() -> None:
    """Add the commands that live in modules of their own, importing only what this call needs."""
    from controlplane.cli import lazy  # noqa: PLC0415

    lazy.register(app, sys.argv[1:])


def hoist(argv: list[str]) -> list[str]:
    """Move global options to the front, so that they may stand behind the command too."""
    front: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(argv):
        name = argv[i].split("=", 1)[0]
        if argv[i] == "--":
            rest.extend(argv[i:])
            break
        if name in _GLOBAL:
            width = 1 if "=" in argv[i] else 2
            front.extend(argv[i : i + width])
            i += width
        else:
            rest.append(argv[i])
            i += 1
    return front + rest


def run() -> None:
    """Entry point: runs the command and turns typed errors into one line and the contract's exit
    code."""
    argv = hoist(sys.argv[1:])
    try:
        _register()
        app(args=argv, standalone_mode=True)
    except CallError as error:
        _fail(str(error), error.exit_code)
    except InvalidInputError as error:
        _fail(str(error), USAGE)
    except RefusedError as error:
        _fail(f"refused by {error.rule}: {error}", 3)
    except UnavailableError as error:
        _fail(str(error), UNREACHABLE)
    except WeirError as error:
        _fail(str(error), FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)


def _fail(message: str, code: int) -> None:
    print(f"weir: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    run()
