"""What `weir dev` does when it cannot run, and that it never leaves anything behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.dev.members import Role
from tests.support.dev_run import END_S, DevRun, descendants, eventually, running, start_time, weir

CHILDREN = 11
"""Processes below `weir dev` once etcd, Redis and the gateways have been started."""


def one_line(stderr: str) -> str:
    """Return the only line of an error message."""
    lines = [line for line in stderr.strip().splitlines() if not line.startswith("weir dev:")]
    assert len(lines) == 1, stderr
    return lines[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--load", "0"), "--load"),
        (("--load", "nan"), "--load"),
        (("--for", "-1"), "--for"),
        (("--for", "soon"), "--for"),
        (("--ports", "80"), "--ports"),
        (("--policy", "hold_down_ms"), "KEY=VALUE"),
    ],
)
def test_senseless_options_are_usage_errors(
    tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    """An option out of range ends with exit code 2 and one line that names it, before anything is
    written."""
    done = weir("dev", "--headless", "--state-dir", str(tmp_path / "state"), *args)
    assert done.returncode == 2
    assert said in one_line(done.stderr)
    assert not (tmp_path / "state").exists()


def test_unknown_policy_key_names_the_nearest(tmp_path: Path) -> None:
    """A misspelt policy key is refused before any process starts, with the key that was meant."""
    args = ("--policy", "hold_dwn_ms=5")
    done = weir("dev", "--headless", "--state-dir", str(tmp_path / "state"), *args)
    assert done.returncode == 2
    assert "hold_down_ms" in done.stderr
    assert not (tmp_path / "state" / "logs").exists()


def test_taken_port_is_named(tmp_path: Path) -> None:
    """A port of the block that is in use ends the start with exit code 1 and its number."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        args = ("--state-dir", str(tmp_path / "state"), "--ports", str(port))
        done = weir("dev", "--headless", *args)
    assert done.returncode == 1
    assert str(port) in one_line(done.stderr)


def test_directory_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    """A directory with files that no `weir dev` wrote is refused (exit 2) and left as it was."""
    (tmp_path / "letter.txt").write_text("dear reader")
    done = weir("dev", "--headless", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "holds other files" in one_line(done.stderr)
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_missing_binary_says_what_to_do(tmp_path: Path) -> None:
    """Without etcd on PATH and in the environment, the start ends with exit code 1, names it, and
    nothing has been started."""
    code = (
        "import controlplane.dev.process as p; p._WHEELS = {};"
        "from controlplane.cli.main import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "dev", "--headless", "--state-dir", str(tmp_path / "state")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert "etcd" in line
    assert "make demo" in line
    assert not (tmp_path / "state").exists()


def test_child_that_dies_at_start_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    """When an etcd member ends at once, the start ends with exit code 1 and its last words; every
    process that had been started is gone."""
    fake = tmp_path / "bin" / "etcd"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'disk on fire'\nexit 3\n")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    env = {"PATH": f"{fake.parent}:{os.environ['PATH']}"}
    state = tmp_path / "state"
    done = weir("dev", "--headless", "--state-dir", str(state), env=env)
    assert done.returncode == 1
    line = one_line(done.stderr)
    assert "etcd-east-0" in line
    assert "disk on fire" in line
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        assert str(state).encode() not in command, command
    assert not (state / "topology.json").exists()


def test_chaos_without_dev_is_unreachable(tmp_path: Path) -> None:
    """`weir chaos` without a running `weir dev` ends with exit code 4 and says where it looked."""
    for state_dir in (tmp_path, tmp_path / "nowhere"):
        done = weir("chaos", "list", "--state-dir", str(state_dir))
        assert done.returncode == 4
        assert str(state_dir) in one_line(done.stderr)


def started(run: DevRun) -> set[tuple[int, str]]:
    """Wait until servers have been started; return all their processes."""

    def enough() -> set[tuple[int, str]]:
        assert run.process.poll() is None, run.stderr
        found = descendants(run.process.pid)
        return found if len(found) >= CHILDREN else set()

    return eventually(enough, f"{CHILDREN} processes started")


def gone(processes: set[tuple[int, str]]) -> bool:
    """Whether none of these processes lives any more."""
    return not any(start_time(pid) == began for pid, began in processes)


def hang_one(processes: set[tuple[int, str]]) -> None:
    """Stop one of these processes; a short-lived one (asked for its version) may have ended."""
    for pid, began in sorted(processes):
        if start_time(pid) == began:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                return
    pytest.fail("none of the children lives")


@pytest.mark.parametrize(("ending", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
def test_nothing_survives_its_end(tmp_path: Path, ending: signal.Signals, code: int) -> None:
    """Killed with -9 or told to end, even in the middle of the start: no child survives, and the
    same state directory serves the next run."""
    with running(tmp_path / "state") as run:
        children = started(run)
        second = weir("dev", "--headless", "--state-dir", str(tmp_path / "state"))
        assert second.returncode == 1
        assert f"pid {run.process.pid}" in one_line(second.stderr)
        hang_one(children)  # not even a child that hangs
        run.process.send_signal(ending)
        assert run.process.wait(END_S) == code
        eventually(lambda: gone(children), "every child is gone")
        assert not (tmp_path / "state" / "topology.json").exists()
    with running(tmp_path / "state") as again:
        eventually(lambda: again.lines, "the next run starts in the same directory")
        assert str(Role.ETCD) in again.lines[0]["message"]
