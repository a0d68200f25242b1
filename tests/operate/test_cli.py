"""The command line as a whole process against real replicas: quick, quiet, exact."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import pytest

from controlplane.cli import quick
from controlplane.cli.exits import OK, REFUSED, UNREACHABLE, USAGE
from tests.operate.lab import Lab

READS = (
    ("status",), ("regions",), ("channels",), ("routes",), ("breakers",), ("agents",),
    ("events", "--limit", "5"), ("failovers",), ("explain", "alipay"), ("doctor",), ("version",),
)  # fmt: skip
HEAVY = (
    "typer", "rich", "pydantic", "yaml", "numpy", "structlog", "aiohttp", "uvloop", "cryptography",
    "redis", "etcd3", "envoy", "xds", "grpc_status", "google.rpc", "google.api", "grpc.aio._call",
    "google.protobuf.json_format", "controlplane.config", "controlplane.app", "controlplane.cli.app",
)  # fmt: skip
"""What no read command may import: each costs more than the call itself, or nearly."""

ALL_READS = """
import json, sys
from controlplane.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["weir", "-o", "json", *line]
    try:
        main.run()
    except SystemExit as end:
        print(line, end.code, file=sys.stderr)
print(json.dumps(sorted(sys.modules)))
"""


async def weir(lab: Lab, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line against the replicas of a lab."""
    servers = ",".join(lab.address(region) for region in lab.ports)
    return await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "controlplane.cli.main", *args],
        env={**os.environ, "WEIR_SERVER": servers, **env},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip


async def test_reads_import_nothing_heavy(lab: Lab) -> None:
    """Every read command answers valid JSON without importing what makes a command slow."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", ALL_READS, json.dumps(READS)],
        env={**os.environ, "WEIR_SERVER": lab.address()},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    *answers, modules = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(READS), done.stderr
    loaded = {name for name in HEAVY if name in modules}
    assert not loaded


async def test_what_a_command_prints_and_how_it_ends(lab: Lab) -> None:
    """Tables without colour in a pipe, exit codes by the contract, one line for every error."""
    drain = ("drain", "south", "--reason", "test")
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
        (("failover", "--from", "east", "--reason", "x", "--override-rule", "capacity",
          "--request-id", "seven"), USAGE, "UUID", ""),
        (("status", "--no-such-option"), USAGE, "No such option", ""),
        (("events", "--limit", "0"), USAGE, "--limit", ""),
        (("status", "--server", "127.0.0.1:9"), UNREACHABLE, "no replica answers", ""),
    ]  # fmt: skip
    done = await asyncio.gather(*(weir(lab, *line) for line, *_ in cases))
    for (line, code, error, out), seen in zip(cases, done, strict=True):
        told = f"{line}: {seen.returncode}\n{seen.stdout}\n{seen.stderr}"
        assert seen.returncode == code, told
        assert error in seen.stderr, told
        assert out in seen.stdout, told
        assert "\x1b" not in seen.stdout, told
        assert "Traceback" not in seen.stderr, told


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
        ["-o", "xml", "status"], ["--server"], ["drain", "east"], [], ["status", "-x"],
    ],
)  # fmt: skip
def test_the_quick_way_leaves_the_rest_to_typer(line: list[str]) -> None:
    """Help, mistakes and changes are not parsed by the quick way: typer tells what is wrong."""
    assert quick.parse(line) is None


def test_the_quick_way_takes_options_before_and_behind() -> None:
    """Global options may stand anywhere, with a space or an equals sign."""
    call = quick.parse(["--server=a:1", "events", "-f", "--limit=7", "-o", "json"])
    assert call is not None
    assert call.named == {"follow": True, "limit": 7}
    assert call.globals == {"--server": "a:1", "--output": "json"}
