"""The `weir` command.

Global options may stand before or behind the command (`weir -o json status` and `weir status -o
json` are the same). A read command takes the quick way (`cli.quick`); everything else, and every
line that is not understood there, goes to typer (`cli.app`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from controlplane.cli import exits, quick
from controlplane.model.errors import (
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)


def hoist(argv: Sequence[str]) -> list[str]:
    """Move global options to the front, so that they may stand behind the command too."""
    front: list[str] = []
    rest: list[str] = []
    i = 0
    while i < len(argv):
        name = argv[i].split("=", 1)[0]
        if argv[i] == "--":
            rest.extend(argv[i:])
            break
        if name in quick.GLOBAL:
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
    argv = sys.argv[1:]
    completing = any(key.endswith("_COMPLETE") for key in os.environ if key.startswith("_"))
    call = None if completing else quick.parse(argv)
    if call is not None:
        _guarded(lambda: quick.run(call))
        return
    from controlplane.cli import app  # noqa: PLC0415 - typer is heavy

    _guarded(lambda: app.run(hoist(argv)))


def _guarded(command: Callable[[], None]) -> None:
    try:
        _flushed(command)
    except exits.CallError as error:
        _fail(str(error), error.exit_code)
    except InvalidInputError as error:
        _fail(str(error), exits.USAGE)
    except RefusedError as error:
        _fail(f"refused by {error.rule}: {error}", exits.REFUSED)
    except UnavailableError as error:
        _fail(str(error), exits.UNREACHABLE)
    except WeirError as error:
        _fail(str(error), exits.FAILED)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(exits.CLOSED_PIPE)


def _flushed(command: Callable[[], None]) -> None:
    """Run a command and write out what it printed; BrokenPipeError when nobody reads it any more,
    also where typer or rich made exit code 1 of that."""
    try:
        command()
    except SystemExit as end:
        cause: BaseException | None = end
        while cause is not None:
            if isinstance(cause, BrokenPipeError):
                raise cause from None
            cause = cause.__context__
        raise
    finally:
        sys.stdout.flush()


def _fail(message: str, code: int) -> None:
    print(f"weir: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    run()
