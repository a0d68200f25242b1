"""`weir controlplane`: one replica."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from controlplane import config, logging
from controlplane.clock import SystemClock
from controlplane.model.errors import InvalidInputError


def controlplane(
    config_file: Annotated[
        Path | None, typer.Option("--config", envvar="WEIR_CONFIG", help="Configuration file.")
    ] = None,
) -> None:
    """Run a control-plane replica until SIGTERM."""
    if config_file is None:
        raise InvalidInputError("--config", "is required: pass --config FILE or set WEIR_CONFIG")
    checked = config.load(config_file)
    from controlplane import app  # noqa: PLC0415 - a bad file is told before all is imported

    logging.configure(checked.log.level, checked.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.serve(config_file, checked, SystemClock()))
