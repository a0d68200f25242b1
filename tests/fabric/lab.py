"""The whole product in three regions, and the means to break it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from controlplane.clock import SystemClock
from controlplane.dev.measure import Recorder
from controlplane.dev.process import Child
from controlplane.model.errors import WeirError
from tests.fabric import places
from tests.fabric.network import SHOP, Network
from tests.fabric.nursery import Forked, Nursery
from tests.fabric.places import Places

READY_S = 90.0
POLL_MS = 50
ASK_S = 1.0
DRAIN_S = 12.0
"""Above the longest deadline of a channel with the payer's margin: every payment has its answer."""


class LabError(WeirError):
    """The laboratory did not get where the scenario starts; the run does not count."""


class Lab:
    """Processes by name, grouped by region, and a record of what replicas and Envoy say."""

    def __init__(self, layout: Places, network: Network, nursery: Nursery) -> None:
        self.layout, self.network, self.nursery = layout, network, nursery
        self.clock = SystemClock()
        self.children: dict[str, Child] = {}
        self.regions: dict[str, list[str]] = {region: [] for region in layout.regions}
        self.recorder = Recorder(self._topology(), self.clock)
        self._http: aiohttp.ClientSession | None = None

    @classmethod
    def at(cls, state_dir: Path, network: Network, nursery: Nursery) -> Lab:
        """Make a laboratory in an empty state folder, without faults; nothing runs yet."""
        shutil.rmtree(state_dir, ignore_errors=True)
        (state_dir / "config").mkdir(parents=True)
        network.heal()
        return cls(places.places(state_dir), network, nursery)

    def _topology(self) -> dict[str, Any]:
        replicas = [
            {"id": f"{region}-0", "grpc": self.layout.address(f"{region}-0/grpc")}
            for region in self.layout.regions
        ]
        return {"replicas": replicas, "envoy": {"admin": self.layout.address("envoy/admin")}}

    # -- processes --

    def start(self, name: str, place: str, argv: list[str]) -> Child:
        """Start a program at a place."""
        child = Child(name, self.network.enter(place, argv), self.layout.log(name))
        return self._start(child, place)

    def fork(self, name: str, place: str, argv: list[str]) -> Child:
        """Start a Python module (the first of `argv`) at a place."""
        return self._start(Forked(name, argv, self.layout.log(name)).at(self.nursery, place), place)

    def _start(self, child: Child, place: str) -> Child:
        name = child.name
        self.children[name] = child.start()
        if place in self.regions and name not in self.regions[place]:
            self.regions[place].append(name)
        return child

    def start_stores(self) -> None:
        """Start etcd and Redis."""
        for name, region in self.layout.etcd_members.items():
            self.start(name, region, places.etcd_argv(self.layout, name))
        for region in self.layout.regions:
            self.start(f"redis-{region}", region, places.redis_argv(self.layout, region))

    def start_replica(self, region: str) -> None:
        """Start a region's replica."""
        name = f"{region}-0"
        self.fork(name, region, places.weir_argv(self.layout, "controlplane", name))

    def start_agent(self, region: str) -> None:
        """Start a region's agent."""
        name = f"{region}-agent-0"
        self.fork(name, region, places.weir_argv(self.layout, "agent", name))

    def start_gateway(self, region: str) -> None:
        """Start a region's gateway."""
        self.fork(f"gateway-{region}", region, places.gateway_argv(self.layout, region))

    def start_payer(
        self, rate: float, target: str = "", name: str = "payer", *, everywhere: bool = False
    ) -> Path:
        """Start paying through a listener; return the file with one line per payment."""
        path = self.layout.state_dir / f"{name}.jsonl"
        target = target or self.layout.address("envoy/listener")
        argv = ["tests.fabric.payer", target, f"{rate:g}", str(path)]
        if everywhere:
            argv.append("everywhere")
        self.fork(name, SHOP, argv)
        return path

    async def stop_payers(self) -> None:
        """Send no more payments, and wait until each that is under way has its answer."""
        payers = self.named("payer")
        for child in payers:
            child.terminate()
        for child in payers:
            await asyncio.to_thread(child.wait_end, DRAIN_S + 1.0)

    def of(self, region: str) -> list[Child]:
        """Return every process of a region."""
        return [self.children[name] for name in self.regions[region]]

    def named(self, *words: str) -> list[Child]:
        """Return every process whose name begins so."""
        return [child for name, child in self.children.items() if name.startswith(words)]

    # -- questions --

    @property
    def http(self) -> aiohttp.ClientSession:
        """Return a client at the router."""
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S))
        return self._http

    async def ask(self, address: str, path: str, method: str = "GET", body: Any = None) -> Any:
        """Return the JSON at an address; None when there is none in time."""
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, ValueError):
            url = f"http://{address}{path}"
            async with self.http.request(method, url, json=body) as answer:
                if answer.status == 200:
                    return await answer.json(content_type=None)
        return None

    async def plan(self, region: str) -> dict[str, Any] | None:
        """Return the plan that a region's replica serves."""
        found: dict[str, Any] | None = await self.ask(
            self.layout.address(f"{region}-0/http"), "/api/plan"
        )
        return found

    async def leader(self) -> str:
        """Return the region whose replica leads; empty when none does."""
        for region in self.layout.regions:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                url = f"http://{self.layout.address(f'{region}-0/http')}/metrics"
                async with self.http.get(url) as answer:
                    lines = (await answer.text()).splitlines()
                if any(li.startswith("weir_leader") and li.endswith(" 1.0") for li in lines):
                    return region
        return ""

    async def etcd_leader(self) -> str:
        """Return the etcd member that leads raft; empty when none does."""
        for name in self.layout.etcd_members:
            address = self.layout.address(f"{name}/client")
            status = await self.ask(address, "/v3/maintenance/status", "POST", {})
            if status and status.get("leader") == status["header"]["member_id"]:
                return name
        return ""

    async def until(
        self, condition: Callable[[], Awaitable[bool]], what: str, limit_s: float = READY_S
    ) -> None:
        """Wait for a condition; LabError with `what` when it never comes."""
        end_ms = self.clock.monotonic_ms() + limit_s * 1000
        while not await condition():
            if words := self.ended():
                raise LabError("; ".join(words))
            if self.clock.monotonic_ms() > end_ms:
                raise LabError(f"never: {what}")
            await self.clock.sleep_ms(POLL_MS)

    def ended(self) -> list[str]:
        """Return the last words of processes that ended by themselves; none ever should."""
        words = []
        for child in self.children.values():
            code = child.process.poll() if child.process else None
            if code is not None and code >= 0 and not child.name.startswith("payer"):
                words.append(f"{child.name} ended (exit {code}): {child.tail(3)}")
        return words

    # -- life --

    async def bring_up(self, policy: dict[str, Any]) -> None:
        """Start everything at once; wait until all regions are healthy and Envoy serves."""
        places.write_configs(self.layout, policy)
        self.start_stores()
        for region in self.layout.regions:
            self.start_replica(region)
        self.start("envoy", SHOP, places.envoy_argv(self.layout))
        for region in self.layout.regions:
            self.start_gateway(region)
            self.start_agent(region)
        await self.until(self.healthy, "all regions healthy at every replica and weighted by Envoy")

    async def healthy(self) -> bool:
        """Whether every replica says that every region is healthy, and Envoy has the weights."""
        for region in self.layout.regions:
            plan = await self.plan(region)
            if not plan or not plan.get("routes"):
                return False
            if {state["phase"] for state in plan["regions"]} != {"healthy"}:
                return False
            if {state.get("verdict") for state in plan["regions"]} != {"healthy"}:
                return False
        envoy = await self.ask(self.layout.address("envoy/admin"), "/clusters?format=json")
        return envoy is not None and _hosts_healthy(envoy) == 10  # channels x regions that serve

    def fault(self, region: str, channel: str, body: str) -> None:
        """Set a provider's fault at a region's gateway, whose fault port is on its loopback."""
        port = self.layout.ports[f"gateway-{region}/fault"]
        argv = [
            "curl", "-fsS", "-X", "PUT", "-H", "content-type: application/json", "-d", body,
            f"http://127.0.0.1:{port}/faults/{channel}",
        ]  # fmt: skip
        subprocess.run(self.network.enter(region, argv), check=True, capture_output=True)

    async def close(self) -> None:
        """Stop everything."""
        if self._http is not None:
            await self._http.close()
        for child in self.children.values():
            child.signal(signal.SIGKILL)
        for child in self.children.values():
            child.kill()


def _hosts_healthy(clusters: dict[str, Any]) -> int:
    """Count the hosts of payment clusters that take traffic."""
    return sum(
        host["health_status"] == {"eds_health_status": "HEALTHY"}
        for cluster in clusters["cluster_statuses"]
        if cluster["name"].startswith("payments.")
        for host in cluster.get("host_statuses", [])
    )


async def paying(path: Path) -> bool:
    """Tell whether the last payments in the payer's file succeeded."""
    return await asyncio.to_thread(_last_succeeded, path)


def _last_succeeded(path: Path) -> bool:
    lines = path.read_text().splitlines()[-5:] if path.exists() else []
    return len(lines) == 5 and all('"succeeded"' in line or '"declined"' in line for line in lines)


@asynccontextmanager
async def laboratory(
    state_dir: Path, network: Network, nursery: Nursery, policy: dict[str, Any]
) -> AsyncIterator[Lab]:
    """Bring a fresh product up; stop and remove it afterwards."""
    lab = Lab.at(state_dir, network, nursery)
    try:
        await lab.bring_up(policy)
        yield lab
    finally:
        await lab.close()
