"""Commands that live in modules of their own: only the one that is called is imported.

A read command answers within a blink because it never loads the daemons; `weir --help` loads
everything.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

import typer

COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "controlplane": ("controlplane.cli.daemon", "controlplane"),
    "agent": ("controlplane.cli.agent", "agent"),
    "dev": ("controlplane.cli.dev", "dev"),
    "chaos": ("controlplane.cli.dev", "chaos"),
    **{
        name: ("controlplane.cli.change_commands", name)
        for name in (
            "drain",
            "undrain",
            "failover",
            "failback",
            "freeze",
            "unfreeze",
            "override",
            "drill",
            "readiness",
        )
    },
    "check-config": ("controlplane.cli.check", "check_config"),
    "simulate": ("controlplane.cli.simulate", "simulate"),
    "replay": ("controlplane.cli.replay", "replay"),
    "lock": ("controlplane.cli.lock", "app"),
    "bootstrap": ("controlplane.cli.bootstrap", "app"),
}
"""Command -> module and attribute (a function, or a typer app for a group)."""


def register(app: typer.Typer, argv: Sequence[str]) -> None:
    """Add the command named in `argv`, or all of them when none of these is."""
    called = [word for word in argv if word in COMMANDS]
    eager = {command.name or "" for command in app.registered_commands}
    asked_for_read = any(
        word in {c.callback.__name__ for c in app.registered_commands if c.callback} | eager
        for word in argv
    )
    names = called[:1] or ([] if asked_for_read else list(COMMANDS))
    for name in names:
        module, attribute = COMMANDS[name]
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name)
        else:
            app.command(name)(target)
