"""The quick way to a read or a change: its arguments are parsed here, without typer.

Theory. Of the 300 ms that a read command may take (500 for a change), typer with pydantic alone
would need more than the call itself. These commands have a handful of options, so this module takes
the plain cases. It never explains anything: whatever it does not understand (help, completion, an
unknown option, a number out of range) it leaves to typer, which then parses the same line and says
what is wrong.

`import grpc` loads its asyncio half with it, which costs as much again as the rest of it. A client
of one blocking call never touches it, so it is put off until somebody does.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from controlplane.cli.options import Options

GLOBAL: Final = ("-o", "--output", "--config", "--server", "--ca-file", "--cert-file",
                 "--key-file", "--server-name")  # fmt: skip
"""Global options; each takes a value."""
_LIMIT: Final = {"--limit": "limit"}
_FOLLOW: Final = {"--follow": "follow", "-f": "follow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: where it lives, its words, numbers (with their largest), texts and flags.

    `first` is handed to the function before its words; options in `repeated` may come several
    times; `required` is an option that must be there.
    """

    module: str = "controlplane.cli.read"
    function: str
    words: int = 0
    numbers: dict[str, str] = field(default_factory=dict)
    most: int = 1000
    flags: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)
    first: tuple[str, ...] = ()
    required: str = ""


_LOCKS: Final = "controlplane.cli.lock_read"
_CHANGE_TEXTS: Final = {
    "--reason": "reason", "--timeout": "timeout", "--request-id": "request_id",
}  # fmt: skip
_CHANGE_FLAGS: Final = {
    "--dry-run": "dry_run", "--yes": "yes", "-y": "yes", "--wait": "wait",
}  # fmt: skip
_FOR: Final = {"--for": "hold"}
_LOCAL: Final = {"--local": "local"}
_RULES: Final = {"--override-rule": "override_rule"}


def _change(
    name: str,
    *,
    words: int = 1,
    texts: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    rules: bool = True,
    required: str = "",
) -> Command:
    return Command(
        module="controlplane.cli.change",
        function="change",
        first=(name,) if words or required else (name, ""),
        words=words,
        texts=_CHANGE_TEXTS | (texts or {}),
        flags=_CHANGE_FLAGS | (flags or {}),
        repeated=_RULES if rules else {},
        required=required,
    )


COMMANDS: Final[dict[tuple[str, ...], Command]] = {
    **{
        (name,): Command(function=name)
        for name in ("status", "regions", "channels", "routes", "breakers", "version")
    },
    ("agents",): Command(function="agents", numbers=_LIMIT),
    ("failovers",): Command(function="failovers", numbers=_LIMIT),
    ("events",): Command(function="events", numbers=_LIMIT, flags=_FOLLOW),
    ("explain",): Command(function="explain", words=1),
    ("doctor",): Command(module="controlplane.cli.doctor", function="doctor"),
    ("drain",): _change("drain", texts=_FOR, flags=_LOCAL),
    ("undrain",): _change("undrain", flags=_LOCAL),
    ("failover",): _change(
        "failover", words=0, required="--from", texts={**_FOR, "--from": "word"}, flags=_LOCAL
    ),
    ("failback",): _change("failback"),
    ("freeze",): _change("freeze", words=0, texts=_FOR, rules=False),
    ("unfreeze",): _change("unfreeze", words=0, rules=False),
    ("override",): _change(
        "override", texts={**_FOR, "--weights": "weights"}, flags={**_LOCAL, "--clear": "clear"}
    ),
    ("drill",): _change("drill", texts={"--hold": "hold_for"}),
    ("readiness",): _change(
        "readiness", texts={**_FOR, "--lag": "lag"}, flags={"--clear": "clear"}, rules=False
    ),
    ("lock", "get"): Command(module=_LOCKS, function="get", words=1),
    ("lock", "list"): Command(module=_LOCKS, function="list_held", numbers=_LIMIT, most=100_000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A line understood: the command, its arguments, and the global options given."""

    command: Command
    words: tuple[str, ...]
    named: dict[str, Any]
    globals: dict[str, str]


def parse(argv: Sequence[str]) -> Call | None:
    """Understand a line, or return None: then it is typer's."""
    given: dict[str, str] = {}
    rest: list[str] = []
    items = iter(argv)
    for item in items:
        name, equals, value = item.partition("=")
        if name in GLOBAL:
            taken = value if equals else next(items, None)
            if taken is None:
                return None
            given["--output" if name == "-o" else name] = taken
        else:
            rest.append(item)
    if given.get("--output", "table") not in {"table", "json", "yaml"}:
        return None
    for path, command in COMMANDS.items():
        if tuple(rest[: len(path)]) == path:
            return _arguments(command, rest[len(path) :], given)
    return None


def _arguments(command: Command, rest: Sequence[str], given: dict[str, str]) -> Call | None:
    words: list[str] = []
    named: dict[str, Any] = {}
    items = iter(rest)
    for item in items:
        name, equals, value = item.partition("=")
        if item in command.flags:
            named[command.flags[item]] = True
        elif name in {*command.numbers, *command.texts, *command.repeated}:
            text = value if equals else next(items, None)
            if text is None or not _take(command, name, text, named):
                return None
        elif item.startswith("-"):
            return None
        else:
            words.append(item)
    missing = command.required and command.texts[command.required] not in named
    if len(words) != command.words or missing:
        return None
    return Call(command=command, words=(*command.first, *words), named=named, globals=given)


def _take(command: Command, name: str, text: str, named: dict[str, Any]) -> bool:
    """Take the value of an option; False when it is not a plain one."""
    if text.startswith("-") and name != "--reason":
        return False
    if name in command.numbers:
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= command.most):
            return False
        named[command.numbers[name]] = int(text)
    elif name in command.texts:
        named[command.texts[name]] = text
    else:
        named.setdefault(command.repeated[name], []).append(text)
    return True


def run(call: Call) -> None:
    """Run a line that was understood."""
    put_off("grpc.aio")
    function: Callable[..., None] = getattr(
        importlib.import_module(call.command.module), call.command.function
    )
    function(_options(call.globals), *call.words, **call.named)


def _options(given: dict[str, str]) -> Options:
    from controlplane.cli.client import Credentials  # noqa: PLC0415 - grpc comes with it
    from controlplane.cli.options import Options  # noqa: PLC0415
    from controlplane.cli.output import Format  # noqa: PLC0415

    def file(option: str, variable: str) -> Path | None:
        name = given.get(option) or os.environ.get(variable)
        return Path(name) if name else None

    return Options(
        format=Format(given.get("--output", "table")),
        server=given.get("--server") or os.environ.get("WEIR_SERVER"),
        credentials=Credentials(
            ca_file=file("--ca-file", "WEIR_CA_FILE"),
            cert_file=file("--cert-file", "WEIR_CERT_FILE"),
            key_file=file("--key-file", "WEIR_KEY_FILE"),
            server_name=given.get("--server-name"),
        ),
        config=file("--config", "WEIR_CONFIG"),
    )


def put_off(name: str) -> None:
    """Import a module when its first attribute is asked for, not when its package imports it."""
    if name not in sys.modules:
        sys.modules[name] = _Later(name)


class _Later(ModuleType):
    """Stands for a module until somebody needs it."""

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        if attribute.startswith("__") and attribute != "__all__":  # the import system looks around
            raise AttributeError(attribute)
        if sys.modules.get(name) is self:
            del sys.modules[name]
        real = importlib.import_module(name)
        package, _, last = name.rpartition(".")
        setattr(sys.modules[package], last, real)
        return getattr(real, attribute)
