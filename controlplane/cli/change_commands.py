"""The changes as typer sees them: their options and help. What they do is in `cli.change`.

A command is a line of the table at the end: its words and options by name, then those that all
changes share.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Annotated, Any, Final

import typer

from controlplane.cli.change import HOLD_DEFAULT, WAIT_DEFAULT, change

NO_DEFAULT: Final = Parameter.empty
"""Of what must be given."""


def _given(name: str, kind: Any, default: Any = NO_DEFAULT) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _option(name: str, kind: Any, told: str, default: Any, *flags: str) -> Parameter:
    return _given(name, Annotated[kind, typer.Option(*flags, help=told)], default)


CONTEXT: Final = _given("ctx", typer.Context)
REGION: Final = _given("region", str)
CHANNEL: Final = _given("channel", str)
FROM: Final = _option("from_region", str, "Region to leave.", NO_DEFAULT, "--from")
WORDS: Final = (REGION.name, CHANNEL.name, FROM.name)
"""What a change is about; all else are its options."""

FOR: Final = _option("hold", str, "How long it holds, e.g. 30m.", "", "--for")
RULES: Final = _option(
    "override_rule", list[str] | None, "Safety rule to override (breakglass).", None,
    "--override-rule",
)  # fmt: skip
LOCAL: Final = _option(
    "local", bool,
    "Only what the data planes of the replica that answers follow, without a quorum.",
    False, "--local",
)  # fmt: skip
WEIGHTS: Final = _option("weights", str, "east=5000,north=5000; sum 10000.", "", "--weights")
CLEAR: Final = _option("clear", bool, "End it.", False, "--clear")
HOLD: Final = _option("hold_for", str, "How long it stays out.", HOLD_DEFAULT, "--hold")
LAG: Final = _option("lag", str, "How far its replication lags, e.g. 250ms.", "", "--lag")

SHARED: Final = (
    _option("reason", str, "Why; kept in the audit. Required.", "", "--reason"),
    _option("dry_run", bool, "Only show what would happen.", False, "--dry-run"),
    _option("yes", bool, "Do not ask.", False, "--yes", "-y"),
    _option("wait", bool, "Wait until it is applied everywhere.", False, "--wait"),
    _option("timeout", str, "Longest wait, e.g. 90s.", WAIT_DEFAULT, "--timeout"),
    _option(
        "request_id", str, "UUID; a repeat changes nothing. Drawn if absent.", "", "--request-id"
    ),
)
"""Options of every change."""


def _command(name: str, told: str, *own: Parameter) -> Callable[..., None]:
    """Make a command that typer can read: it looks at signature, annotations and docstring."""

    def command(ctx: typer.Context, **given: Any) -> None:
        word = next((given.pop(word) for word in WORDS if word in given), "")
        change(ctx.obj, name, word, **given)

    parameters = (CONTEXT, *own, *SHARED)
    command.__name__, command.__doc__ = name, told
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__dict__["__signature__"] = Signature(parameters)
    return command


drain = _command(
    "drain", "Take a region out of service: no new payment goes there, those under way finish.",
    REGION, FOR, RULES, LOCAL,
)  # fmt: skip
undrain = _command("undrain", "End a drain; the region returns by ramp.", REGION, RULES, LOCAL)
failover = _command(
    "failover", "Move all traffic off a region and fence it, timed as a failover.",
    FROM, FOR, RULES, LOCAL,
)  # fmt: skip
failback = _command(
    "failback", "Let a failed or drained region return now, by ramp; weir drain aborts it.",
    REGION, RULES,
)  # fmt: skip
freeze = _command("freeze", "Forbid automatic change of the plan.", FOR)
unfreeze = _command("unfreeze", "Allow automatic change again.")
override = _command(
    "override", "Fix one channel's weights until the override expires, or end it.",
    CHANNEL, WEIGHTS, CLEAR, FOR, RULES, LOCAL,
)  # fmt: skip
drill = _command(
    "drill", "Fail a region over as an exercise, timed against the budget, and bring it back.",
    REGION, HOLD, RULES,
)  # fmt: skip
readiness = _command(
    "readiness", "Say how far a region's replication lags, where no agent can read it.",
    REGION, LAG, CLEAR, FOR,
)  # fmt: skip
