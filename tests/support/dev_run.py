"""A real `weir dev --headless` as a subprocess, as a user or a script would run it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.dev.remote import ask
from tests.support.kept import Kept

WEIR = (sys.executable, "-P", "-m", "controlplane.cli.main")
READY_S = 200.0
"""Generous: the machine may be busy with other tests. Nothing is asserted about speed."""
SETTLED_S = 120.0
END_S = 60.0
CALM_S = 3
# A region that is well again may come back within the test's patience; detection is untouched.
QUICK_RETURN = (
    "hold_down_ms=1500", "ramp_bp=[2500]", "ramp_step_ms=500", "step_limit_bp=10000",
    "flap_penalty=0", "max_failovers_per_h=1000",
)  # fmt: skip


def weir(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run one `weir` command to its end."""
    return subprocess.run(
        [*WEIR, *args],
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
        env={**os.environ, **(env or {})},
    )


def eventually(condition: Callable[[], Any], what: str, deadline_s: float = SETTLED_S) -> Any:
    """Wait for something observable and return it."""
    end = time.perf_counter() + deadline_s
    while not (found := condition()):
        assert time.perf_counter() < end, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.05)
    return found


def get_json(address: str, path: str) -> Any:
    """GET JSON; None when nobody answers well."""
    url = f"http://{address}{path}"
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return json.load(answer)
    except (OSError, ValueError, http.client.HTTPException):  # gone, or killed in its answer
        return None


def descendants(pid: int) -> set[tuple[int, str]]:
    """Every process below `pid`, as (pid, start time): a pid alone may be somebody else's later."""
    children = set()
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            children |= {int(child) for child in (task / "children").read_text().split()}
    found = {(child, began) for child in children if (began := start_time(child))}
    for child in children:
        found |= descendants(child)
    return found


def start_time(pid: int) -> str:
    """Start time of a process in clock ticks; empty when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in {"Z", "X"} else fields[19]


class DevRun:
    """One running `weir dev`."""

    def __init__(self, state_dir: Path, *args: str) -> None:
        self.state_dir = state_dir
        self.lines: list[dict[str, Any]] = []
        command = [*WEIR, "dev", "--headless", "--state-dir", str(state_dir), *args]
        self._log = (state_dir.parent / f"{state_dir.name}.stderr").open("w+")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    @property
    def stderr(self) -> str:
        """What it said on stderr so far."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def until_ready(self) -> DevRun:
        """Wait until topology.json says ready."""

        def ready() -> bool:
            assert self.process.poll() is None, f"ended at start: {self.stderr}"
            return (self.state_dir / "topology.json").exists()

        eventually(ready, "weir dev ready", READY_S)
        return self

    @property
    def topology(self) -> dict[str, Any]:
        """What topology.json says now."""
        return json.loads((self.state_dir / "topology.json").read_text())

    def chaos(self, action: str, **what: Any) -> dict[str, Any]:
        """Do something to it, over the socket that the command uses, and return the answer."""
        return ask(self.state_dir, {"action": action, **what})

    def plans(self) -> dict[str, dict[str, Any]]:
        """Replica -> the plan it serves, of those that answer."""
        answers = {r["id"]: get_json(r["http"], "/api/plan") for r in self.topology["replicas"]}
        return {name: plan for name, plan in answers.items() if plan}

    def payments(self) -> dict[str, Any]:
        """Return the payer's statistics."""
        return eventually(
            lambda: get_json(self.topology["payer"]["http"], "/stats"), "the payer answers"
        )

    def unsuccessful(self) -> list[str]:
        """What the payer wrote down of payments that did not succeed, oldest first."""
        return (self.state_dir / "payer.jsonl").read_text().splitlines()

    def settled(self) -> bool:
        """Every process runs, every replica serves the same plan, every region is healthy, and the
        last payments all succeeded."""
        listed = self.chaos("list")
        if listed["faults"] or any(p["state"] != "running" for p in listed["processes"]):
            return False
        plans = self.plans()
        lately = self.payments()["seconds"][-CALM_S:]
        return (
            not any(second.get(kind) for second in lately for kind in ("failed", "unknown"))
            and len(plans) == len(self.topology["replicas"])
            and len({plan["epoch"] for plan in plans.values()}) == 1
            and all(r["phase"] == "healthy" for p in plans.values() for r in p["regions"])
        )

    def stop(self) -> int:
        """Stop it as Ctrl-C does and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(2)
        code = self.process.wait(END_S)
        self._reader.join(END_S)
        if self.process.stdout:
            self.process.stdout.close()
        self._log.close()
        return code


@contextlib.contextmanager
def running(state_dir: Path, *args: str) -> Iterator[DevRun]:
    """Run `weir dev` and stop it at the end, whatever happens."""
    run = DevRun(state_dir, *args)
    try:
        yield run
    finally:
        run.stop()


@contextlib.contextmanager
def whole(devs: Kept[DevRun], test: pytest.Item) -> Iterator[DevRun]:
    """Give a topology with everything running, and see that it is again afterwards: one that does
    not come back is told, and is not given to anybody else."""
    dev = devs.get(test)
    try:
        eventually(dev.settled, "everything runs")
        yield dev
        dev.chaos("restore-region")
        for fault in dev.chaos("list")["faults"]:
            dev.chaos("heal-channel", channel=fault["channel"])
        eventually(dev.settled, "everything runs again")
    except BaseException:
        devs.drop()
        raise
