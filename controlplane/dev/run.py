"""`weir dev`: start the local topology, show it, and leave nothing behind.

Everything runs in one task group: the first fatal error, Ctrl-C, SIGTERM or the end of `--for`
cancels the rest, then every child is stopped. If this process itself is killed, the kernel kills
the children.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.live import Live

from controlplane.clock import SystemClock
from controlplane.dev import control, statedir, view
from controlplane.dev.ca import DevelopmentCa
from controlplane.dev.chaos import Chaos
from controlplane.dev.cluster import Cluster
from controlplane.dev.content import load_content
from controlplane.dev.layout import plan_layout
from controlplane.dev.members import Role, State
from controlplane.dev.observe import Observer
from controlplane.dev.process import find_binary
from controlplane.dev.settings import authority, write_configs
from controlplane.dev.topology import describe, versions
from controlplane.model.errors import WeirError

REFRESH_MS = 500
TICK_MS = 1000
REAP_MS = 250
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `weir dev` was asked for. `ports` is the first of a block, None for free ones."""

    state_dir: Path
    headless: bool
    for_s: float | None
    load_per_s: float
    ports: int | None
    policy: Mapping[str, Any] = field(default_factory=dict)
    tls: bool = False


class _Stop(Exception):  # noqa: N818 - not an error: it only ends the task group
    """Somebody wants the demo to end."""


def run(options: Options) -> int:
    """Run until stopped; returns the exit code. WeirError says in one line why not."""
    _clean_environment()
    for server in ("etcd", "redis-server", "envoy"):
        find_binary(server)  # before anything is started
    with statedir.own(options.state_dir) as state_dir:
        layout = plan_layout(state_dir, load_content(), options.ports)
        shutil.rmtree(authority(layout), ignore_errors=True)  # of an earlier run
        ca = DevelopmentCa(authority(layout), SystemClock()) if options.tls else None
        write_configs(layout, dict(options.policy), ca)
        cluster = Cluster(layout, options.load_per_s)
        try:
            return uvloop.run(Session(cluster, options).run())
        finally:
            cluster.stop()


def _clean_environment() -> None:
    """Keep the caller's settings and proxies away from the children: they talk on loopback only."""
    for key in list(os.environ):
        if key.upper().startswith("WEIR_") or key.lower() in _PROXIES:
            del os.environ[key]


class Session:
    """One run of the topology."""

    def __init__(self, cluster: Cluster, options: Options) -> None:
        self._cluster = cluster
        self._layout = cluster.layout
        self._options = options
        self._clock = SystemClock()
        self._stop = asyncio.Event()
        self._observer = Observer(cluster, self._on_event)
        self._versions: dict[str, str] = {}
        self._dead: set[str] = set()
        self._redis_primary = self._layout.ports[f"redis-{self._layout.regions[0]}/redis"]

    async def run(self) -> int:
        """Start, serve until the end, return 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        failed: WeirError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._until_stopped())
                tasks.create_task(self._serve(tasks))
        except* _Stop:
            pass
        except* WeirError as group:
            # raised below: what is raised in here comes out as a group before Python 3.11.4
            failed = _first(group)
        finally:
            await self._cluster.close()
        if failed is not None:
            raise failed from None
        return 0

    async def _until_stopped(self) -> None:
        await self._stop.wait()
        raise _Stop

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        await self._cluster.start(self._say)
        self._versions = await versions()
        chaos = Chaos(self._cluster, tasks, self._on_chaos)
        async with control.serve(self._layout.state_dir, chaos):
            self._publish()
            tasks.create_task(self._observer.run())
            tasks.create_task(self._watch_children())
            tasks.create_task(self._watch_redis())
            if self._options.for_s is not None:
                tasks.create_task(self._end_after(self._options.for_s))
            await (self._print_lines() if self._options.headless else self._draw())

    async def _end_after(self, for_s: float) -> None:
        await self._clock.sleep_ms(1000 * for_s)
        self._stop.set()

    def _publish(self) -> None:
        self._write_topology()
        if self._options.headless:
            self._line({"type": "ready", "topology": str(self._layout.topology_file)})

    def _write_topology(self) -> None:
        topology = describe(self._cluster, self._versions, self._redis_primary)
        statedir.write_topology(self._layout.topology_file, topology)

    async def _watch_redis(self) -> None:
        """Keep topology.json true about the primary."""
        while True:
            await self._clock.sleep_ms(TICK_MS)
            primary = await self._cluster.redis_primary()
            if primary and primary.port != self._redis_primary:
                self._redis_primary = primary.port
                self._observer.note(f"{primary.name} is the primary of the locks", "redis")
                self._write_topology()

    async def _watch_children(self) -> None:
        """Reap and report what dies, and keep topology.json true about process ids."""
        pids = self._pids()
        while True:
            await self._clock.sleep_ms(REAP_MS)
            dead = {m.name for m in self._cluster.members.values() if m.state is State.DEAD}
            if died := sorted(dead - self._dead):
                self._observer.note(f"dead: {', '.join(died)}", "process")
            if back := sorted(self._dead - dead):
                self._observer.note(f"runs again: {', '.join(back)}", "process")
            self._dead = dead
            if (now := self._pids()) != pids:
                pids = now
                self._write_topology()

    def _pids(self) -> dict[str, int]:
        return {member.name: member.child.pid for member in self._cluster.members.values()}

    # -- output --

    async def _print_lines(self) -> None:
        try:
            while True:
                self._line(view.tick_line(self._layout, self._observer.snapshot()))
                await self._clock.sleep_ms(TICK_MS)
        finally:
            last = view.tick_line(self._layout, self._observer.snapshot())
            self._line(last | {"type": "summary"})

    async def _draw(self) -> None:
        console = Console()
        # no refresh thread: children are forked from this process
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                drawn = view.render(self._layout, self._observer.snapshot(), self._where())
                live.update(drawn, refresh=True)
                await self._clock.sleep_ms(REFRESH_MS)

    def _where(self) -> dict[str, str]:
        consoles = [f"http://127.0.0.1:{m.port}/" for m in self._cluster.of_role(Role.REPLICA)]
        listener = self._layout.address("envoy/listener")
        # in a clone, the command is in the clone's environment and not on the user's PATH
        command = Path(sysconfig.get_path("scripts")) / "weir"
        inside = command.is_relative_to(Path.cwd())
        weir = str(command.relative_to(Path.cwd())) if inside else "weir"
        elsewhere = self._layout.state_dir != statedir.DEFAULT_STATE_DIR.absolute()
        return {
            "console": "  ".join(consoles),
            "envoy": f"http://{listener}/v1/channels/alipay/payments",
            "try": f"{weir} chaos kill-region --region east   {weir} chaos restore-region",
            "": f"{weir} status   {weir} routes   {weir} failovers   {weir} chaos list",
            **({"first": f"export WEIR_STATE_DIR={self._layout.state_dir}"} if elsewhere else {}),
            "state": f"{self._layout.state_dir}   (Ctrl-C stops everything)",
        }

    def _say(self, message: str) -> None:
        if self._options.headless:
            self._line({"type": "starting", "message": message})
        else:
            print(f"weir dev: {message}", file=sys.stderr, flush=True)  # noqa: T201

    def _on_event(self, event: dict[str, Any]) -> None:
        if self._options.headless:
            self._line({"type": "event", **event})

    def _on_chaos(self, message: str) -> None:
        self._write_topology()  # true before the one who asked gets the answer
        self._observer.note(message, "chaos")

    def _line(self, value: dict[str, Any]) -> None:
        try:
            print(json.dumps(value), flush=True)  # noqa: T201
        except BrokenPipeError:  # nobody reads any more: the demo has no purpose left
            self._stop.set()


def _first(group: BaseExceptionGroup[WeirError]) -> WeirError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, WeirError)
    return error
