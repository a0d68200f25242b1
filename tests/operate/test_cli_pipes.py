"""A reader that goes away (`weir … | head`) is no failure, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from controlplane.cli.exits import CLOSED_PIPE, UNREACHABLE

WEIR = (sys.executable, "-P", "-m", "controlplane.cli.main")


def run(line: Sequence[str], out: int) -> subprocess.CompletedProcess[bytes]:
    """Run the command line with `out` as its output."""
    return subprocess.run(
        [*WEIR, *line], stdout=out, stderr=subprocess.PIPE, timeout=100, check=False
    )


@pytest.mark.parametrize(
    "line",
    [["version"], ["-o", "json", "version"], ["--help"], ["drain", "--help"],
     ["bootstrap", "grpc", "--node-id", "n", "--xds-server", "127.0.0.1:1"],
     ["simulate", "crash", "--days", "0.001"], ["check-config", "FILE"]],
)  # fmt: skip
def test_a_closed_pipe_is_quiet(line: list[str], tmp_path: Path) -> None:
    """By the quick way, by typer and by rich: exit code 141, as of a process that SIGPIPE ends."""
    file = tmp_path / "weir.yaml"
    file.write_text(
        "regions: {east: {role: primary, share_bp: 10000, capacity_tps: 1}}\n"
        "channels: {alipay: {regions: [east]}}\ncoordination: {endpoints: ['127.0.0.1:1']}\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run([word.replace("FILE", str(file)) for word in line], writer)
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode == CLOSED_PIPE


def test_an_error_is_still_told_when_nobody_reads_the_output() -> None:
    """What fails fails with its own exit code: nothing was printed, so the pipe does not matter."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run(["--server", "127.0.0.1:9", "status"], writer)
    finally:
        os.close(writer)
    assert done.returncode == UNREACHABLE
    assert b"no replica answers" in done.stderr
