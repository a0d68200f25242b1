"""`weir agent`: the daemon of a region that measures, reports and applies the plan."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from agents.agent import serve
from controlplane import config, logging
from controlplane.model.errors import InvalidInputError


def agent(
    config_file: Annotated[
        Path | None, typer.Option("--config", envvar="WEIR_CONFIG", help="Configuration file.")
    ] = None,
) -> None:
    """Probe the channels of a region, report to the control plane, and apply its plan."""
    if config_file is None:
        raise InvalidInputError("--config", "is required: pass --config FILE or set WEIR_CONFIG")
    checked = config.load(config_file)
    logging.configure(checked.log.level, checked.log.format)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(checked))
