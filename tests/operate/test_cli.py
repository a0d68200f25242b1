"""The command line as a whole process against real replicas: quick, quiet, exact."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import typer

from controlplane.cli import app, lazy, quick
from controlplane.cli.exits import DEADLINE, OK, REFUSED, UNREACHABLE, USAGE
from tests.operate.lab import Lab

DRAIN = ("drain", "south", "--dry-run", "--reason", "x")
READS = (
    ("status",), ("regions",), ("channels",), ("routes",), ("breakers",), ("agents",),
    ("events", "--limit", "5"), ("failovers",), ("explain", "alipay"), ("doctor",), ("version",), DRAIN,
)  # fmt: skip
HEAVY = (
    "typer", "rich", "pydantic", "yaml", "numpy", "structlog", "aiohttp", "uvloop", "cryptography",
    "redis", "etcd3", "envoy", "xds", "grpc_status", "google.rpc", "google.api", "grpc.aio._call",
    "google.protobuf.json_format", "controlplane.config", "controlplane.app", "controlplane.cli.app",
)  # fmt: skip
"""What no read command may import: each costs more than the call itself, or nearly."""

DRIVER = """
import contextlib, io, json, sys
from controlplane.cli import main
told, tries = [], 0
for line, expected in json.loads(sys.argv[1]):
    for _ in range(100):
        tries += 1
        sys.argv = ["weir", *line]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main.run()
            except SystemExit as end:
                code = end.code or 0
        if code not in (4, 5) or code == expected:  # these say: try again
            break
    told.append((code, out.getvalue(), err.getvalue()))
print(json.dumps([told, sorted(sys.modules) if tries == len(told) else []]))
"""
"""Runs many lines in one process: a slow machine is not made slower by a dozen of them. A replica that
is starved for a while answers too late, and exit codes 4 and 5 ask for another try. What such an error
imports says nothing of the rest: then no modules are told."""


async def driven(
    address: str, lines: Sequence[tuple[Sequence[str], int]]
) -> tuple[list[tuple[int, str, str]], list[str]]:
    """Run lines with the exit codes expected; return what each gave, and the modules imported."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", DRIVER, json.dumps(lines)],
        env={**os.environ, "WEIR_SERVER": address}, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told, modules = json.loads(done.stdout)
    return told, modules


async def weir(lab: Lab, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a process, again while it says that nobody answered in time."""
    servers = ",".join(lab.address(region) for region in lab.ports)
    for _ in range(20):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-m", "controlplane.cli.main", *args],
            env={**os.environ, "WEIR_SERVER": servers},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        if done.returncode not in {UNREACHABLE, DEADLINE}:
            break
    return done


async def test_reads_import_nothing_heavy(lab: Lab) -> None:
    """Every read command answers valid JSON without importing what makes a command slow."""
    lines = [(("-o", "json", *line), OK) for line in READS]
    for _ in range(20):
        told, modules = await driven(lab.address(), lines)
        assert [code for code, _, _ in told] == [OK] * len(READS), told
        assert all(json.loads(out) for _, out, _ in told)
        if modules:
            break
    assert "controlplane.cli.main" in modules
    assert not {name for name in HEAVY if name in modules}


async def test_what_a_command_prints_and_how_it_ends(lab: Lab) -> None:
    """Tables without colour in a pipe, exit codes by the contract, one line for every error."""
    drain = ("drain", "south", "--reason", "test")
    again = "--request-id=8b5f7a52-9d6c-4a35-9d3e-0c5d6c1c2b12"
    cases = [
        (("status",), OK, "", "REGION"),
        (("-o", "yaml", "regions"), OK, "", "regions:"),
        ((*drain, "--dry-run"), OK, "", "UTILISATION"),
        ((*drain, "--dry-run", "-o", "json"), OK, "", '"validate_only": true'),
        (("drain", "south"), USAGE, "weir: --reason: is required", ""),
        (("drain", "mars", "--reason", "x"), USAGE, "known: east, north, south", ""),
        (("explain", "paypal"), USAGE, "known: alipay, unionpay", ""),
        (("override", "alipay", "--weights", "east=1", "--reason", "x"), USAGE, "10000", ""),
        (("override", "alipay", "--weights", "east:1", "--reason", "x"), USAGE, "BASISPOINTS", ""),
        (("override", "alipay", "--reason", "x"), USAGE, "--clear", ""),
        (("readiness", "south", "--reason", "x"), USAGE, "give either --lag", ""),
        (("readiness", "south", "--lag", "200h", "--reason", "x"), USAGE, "--lag: must be 0", ""),
        (("readiness", "south", "--lag", "4s", "--reason", "x"), OK, "", "readiness south: completed"),
        (("failover", "--from", "east", "--reason", "x", "--override-rule", "capacity",
          "--request-id", "seven"), USAGE, "UUID", ""),
        (("freeze", "--reason", "x", "--yes", again), OK, "", "freeze: "),
        (("unfreeze", "--reason", "x", "--yes", again), USAGE, "--request-id: 8b5f", ""),
        (("status", "--no-such-option"), USAGE, "No such option", ""),
        (("events", "--limit", "0"), USAGE, "--limit", ""),
        (("status", "--server", "127.0.0.1:9"), UNREACHABLE, "no replica answers", ""),
    ]  # fmt: skip
    done, _ = await driven(lab.address(), [(line, code) for line, code, *_ in cases])
    for (line, code, error, out), (gave, stdout, stderr) in zip(cases, done, strict=True):
        told = f"{line}: {gave}\n{stdout}\n{stderr}"
        assert gave == code, told
        assert error in stderr, told
        assert out in stdout, told
        assert "\x1b" not in stdout, told
        assert "Traceback" not in stderr, told


async def test_waiting_tells_the_stages_and_a_repeat_changes_nothing(lab: Lab) -> None:
    """`--wait` ends when it is applied everywhere; the same --request-id gives the same operation,
    asking for what already holds succeeds, and a rule that refuses is named with exit code 3."""
    line = ("drain", "south", "--reason", "test", "--yes", "--wait", "--timeout", "80s")
    again = "--request-id=8b5f7a52-9d6c-4a35-9d3e-0c5d6c1c2b11"
    first = await weir(lab, *line, again)
    assert first.returncode == OK, first.stderr
    assert "completed" in first.stdout
    repeat = await weir(lab, *line, again, "-o", "json")
    name = json.loads(repeat.stdout)["id"]
    assert f"[{name}]" in first.stdout
    held = await weir(lab, *line)
    assert held.returncode == OK, held.stderr
    assert "already so" in held.stdout
    both = [
        await weir(lab, "drain", region, "--reason", "test", "--yes", "--wait", "--timeout", "80s")
        for region in ("north", "east")
    ]
    assert [b.returncode for b in both][-1] == REFUSED, [b.stderr for b in both]
    assert "weir: refused by " in both[-1].stderr


@pytest.mark.parametrize(
    "line",
    [
        ["status", "--help"], ["events", "--limit", "0"], ["events", "--limit", "1001"],
        ["events", "--limit"], ["explain"], ["explain", "a", "b"], ["lock", "acquire", "x"],
        ["-o", "xml", "status"], ["--server"], ["drain"], [], ["status", "-x"], ["failover", "east"],
        ["failover", "--from"], ["drain", "east", "--help"], ["freeze", "now"], ["drain", "a", "b"],
        ["freeze", "--override-rule", "capacity"], ["drain", "east", "--for", "--yes"],
    ],
)  # fmt: skip
def test_the_quick_way_leaves_the_rest_to_typer(line: list[str]) -> None:
    """Help and mistakes are not parsed by the quick way: typer tells what is wrong."""
    assert quick.parse(line) is None


def test_the_quick_way_takes_options_before_and_behind() -> None:
    """Global options may stand anywhere, with a space or an equals sign."""
    call = quick.parse(["--server=a:1", "events", "-f", "--limit=7", "-o", "json"])
    assert call is not None
    assert call.named == {"follow": True, "limit": 7}
    assert call.globals == {"--server": "a:1", "--output": "json"}


def test_the_quick_way_takes_changes_as_typer_would() -> None:
    """Every option of a change arrives under the name the command knows it by."""
    call = quick.parse(
        ["failover", "--from", "east", "--reason=r", "--override-rule", "a", "--override-rule=b", "--for",
         "5m", "-y", "--wait", "--local"]
    )  # fmt: skip
    assert call is not None
    assert call.words == ("failover",)
    assert call.named == {
        "word": "east", "reason": "r", "override_rule": ["a", "b"], "hold": "5m", "yes": True, "wait": True, "local": True,
    }  # fmt: skip
    call = quick.parse(["readiness", "north", "--lag", "4s", "--for=5m", "--reason", "r"])
    assert call is not None
    assert call.words == ("readiness", "north")
    assert call.named == {"lag": "4s", "hold": "5m", "reason": "r"}
    call = quick.parse(["freeze", "--reason", "r", "--dry-run"])
    assert call is not None
    assert call.words == ("freeze", "")


def test_both_ways_know_the_same_options() -> None:
    """The quick way has exactly the options that typer has, so that neither is forgotten."""
    lazy.register(app.app, ["--help"])
    group = typer.main.get_command(app.app)
    for path, command in quick.COMMANDS.items():
        found = group
        for word in path:
            found = found.commands[word]
        told = {o for p in found.params if p.param_type_name == "option" for o in p.opts} - {
            "--help"
        }
        ours = {*command.numbers, *command.texts, *command.flags, *command.repeated}
        assert told == ours, path
