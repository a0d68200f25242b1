"""`weir dev` and `weir chaos`: the local topology and how to hurt it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane.cli.durations import parse_ms
from controlplane.cli.output import Format, print_data, print_table, word
from controlplane.dev.remote import ask
from controlplane.dev.statedir import default_state_dir
from controlplane.model.errors import InvalidInputError

LOAD_MAX = 1000.0
"""Payments per second beyond which one machine measures itself instead of Weir."""
PORT_MIN, PORT_MAX = 1024, 65_535 - 64

StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        envvar="WEIR_STATE_DIR",
        help="Everything the topology writes; .weir/dev if unset.",
    ),
]


def dev(
    state_dir: StateDir = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="One JSON line a second instead of the view.")
    ] = False,
    duration: Annotated[
        str | None, typer.Option("--for", help="Stop so long after being ready: 60 or 60s, 5m.")
    ] = None,
    load: Annotated[float, typer.Option("--load", help="Payments per second.")] = 40.0,
    ports: Annotated[
        int | None, typer.Option("--ports", help="First of a block of fixed ports.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", help="KEY=VALUE of the policy to try; may be repeated."),
    ] = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Mutual TLS everywhere on gRPC, from a development CA.")
    ] = False,
) -> None:
    """Run three regions on this machine: etcd, Redis, replicas, agents, gateways, Envoy, payments.

    Stays until Ctrl-C and leaves nothing behind but its state directory.
    """
    for_s = _seconds(duration)
    if not 0 < load <= LOAD_MAX:
        raise InvalidInputError("--load", f"must be above 0 and at most {LOAD_MAX:g}, not {load:g}")
    if ports is not None and not PORT_MIN <= ports <= PORT_MAX:
        raise InvalidInputError("--ports", f"must be {PORT_MIN} to {PORT_MAX}, not {ports}")
    from controlplane.dev.run import Options, run  # noqa: PLC0415 - loads the whole topology
    from controlplane.dev.settings import parse_policy  # noqa: PLC0415

    watched = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    options = Options(
        state_dir=state_dir or default_state_dir(),
        headless=headless or not watched,
        for_s=for_s,
        load_per_s=load,
        ports=ports,
        policy=parse_policy(policy or ()),
        tls=tls,
    )
    raise typer.Exit(run(options))


def _seconds(text: str | None) -> float | None:
    """Read a duration; a plain number is seconds."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = parse_ms(text, "--for") / 1000
    if not 0 < seconds < float("inf"):
        raise InvalidInputError("--for", f"must be above 0 seconds, not {text}")
    return seconds


def chaos(
    ctx: typer.Context,
    action: Annotated[str, typer.Argument(help="What to do; `list` shows every action.")],
    region: Annotated[str | None, typer.Option("--region", help="Region to hit.")] = None,
    channel: Annotated[str | None, typer.Option("--channel", help="Channel to hit.")] = None,
    duration: Annotated[
        str | None, typer.Option("--for", help="Undo it after so long: 20 or 20s, 5m.")
    ] = None,
    errors: Annotated[
        float | None, typer.Option("--errors", help="Share of technical errors, 0 to 1.")
    ] = None,
    latency_ms: Annotated[
        float | None, typer.Option("--latency-ms", help="Latency added to every call.")
    ] = None,
    declines: Annotated[
        float | None, typer.Option("--declines", help="Share of declined payments, 0 to 1.")
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Hurt the running local topology: kill, hang, degrade, restore."""
    figures = {"errors": errors, "latency_ms": latency_ms, "declines": declines}
    request = {
        "action": action,
        "region": region,
        "channel": channel,
        "for_s": _seconds(duration),
        "faults": {name: value for name, value in figures.items() if value is not None},
    }
    answer = ask(state_dir or default_state_dir(), request)
    if ctx.obj.format is not Format.TABLE:
        print_data(answer, ctx.obj.format)
    elif action == "list":
        _print_list(answer)
    else:
        _print_done(answer)


def _print_list(answer: dict[str, Any]) -> None:
    print_table(["action", "does"], [list(item) for item in answer["actions"].items()])
    print()
    rows = [
        [p["region"] or "-", p["name"], p["role"], str(p["pid"]), word(p["state"])]
        for p in answer["processes"]
    ]
    print_table(["region", "process", "role", ">pid", "state"], rows)
    for fault in answer["faults"]:
        print(f"degraded: {fault}")


def _print_done(answer: dict[str, Any]) -> None:
    said = [str(answer["action"])]
    if "processes" in answer:
        said.append(" ".join(f"{n}({pid})" for n, pid in answer["processes"].items()) or "nothing")
    for key in ("channel", "regions", "unreached", "faults", "woken", "started"):
        if answer.get(key):
            value = answer[key]
            said.append(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    if "undone_after_s" in answer:
        said.append(f"undone after {answer['undone_after_s']:g} s")
    print("; ".join(said))
