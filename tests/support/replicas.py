"""Leader processes of tests and benches: start, kill, stop, and read what they did."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.dev.process import Child

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 120.0
"""Generous: what is waited for happens within seconds, or the test is red."""


@dataclass(slots=True)
class LeaderProcess:
    """One process of `tests.support.leader_process`."""

    child: Child
    settings: dict[str, Any]
    _read: int = 0
    _lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its replica name."""
        return str(self.settings["replica"])

    def history(self) -> list[dict[str, Any]]:
        """Everything it has said so far."""
        with self.child.log.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        self._lines += [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        return self._lines

    def said(self, op: str, since: int = 0) -> list[dict[str, Any]]:
        """Lines of one kind at or after a moment."""
        return [line for line in self.history() if line["op"] == op and line["at_ms"] >= since]

    def is_stopped(self) -> bool:
        """Whether the kernel has it stopped (SIGSTOP)."""
        return Path(f"/proc/{self.child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


@dataclass(slots=True)
class Replicas:
    """Several leader processes on one etcd."""

    directory: Path
    endpoints: Sequence[str]
    cluster: str = "t"
    processes: list[LeaderProcess] = field(default_factory=list)

    def start(self, count: int = 3, **settings: Any) -> list[LeaderProcess]:
        """Start processes a0, a1, …; ranks follow their order."""
        first = len(self.processes)
        regions = ("east", "north", "south")
        for i in range(first, first + count):
            self.add(replica=f"a{i}", region=regions[i % 3], rank=i, **settings)
        return self.processes[first:]

    def add(self, **settings: Any) -> LeaderProcess:
        """Start one process."""
        settings = {"endpoints": list(self.endpoints), "cluster": self.cluster, **settings}
        argv = [sys.executable, "-m", "tests.support.leader_process", json.dumps(settings)]
        child = Child(
            settings["replica"],
            argv,
            self.directory / f"{settings['replica']}.log",
            env={"GRPC_ENABLE_FORK_SUPPORT": "0", **settings.pop("env", {})},
            cwd=ROOT,
        )
        process = LeaderProcess(child.start(), settings)
        self.processes.append(process)
        return process

    async def leader(
        self, since_ms: int = 0, other_than: LeaderProcess | None = None
    ) -> LeaderProcess:
        """Wait until a process has committed a plan at or after a moment; return it."""

        def found() -> LeaderProcess | None:
            for process in self.processes:
                if process is not other_than and process.child.alive:
                    oks = process.said("ok", since_ms)
                    if oks and process.history()[-1]["op"] in ("ok", "try"):
                        return process
            return None

        return await until(found, "a leader that commits")

    def stop(self) -> None:
        """Kill every process."""
        for process in self.processes:
            process.child.resume()
            process.child.kill()


def now_ms() -> int:
    """Read the clock of the histories."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


async def until(found: Callable[[], Any], what: str, deadline_s: float = WAIT_S) -> Any:
    """Poll other processes' output until `found` gives something true; the deadline is a failure,
    not a measure."""
    end = time.perf_counter() + deadline_s
    while not (result := found()):
        assert time.perf_counter() < end, f"{what}: not within {deadline_s:g} s"
        await asyncio.sleep(0.01)
    return result
