"""Real parts for the xDS tests: gateways that count, a replica's ADS server, Envoy as a child."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
from aiohttp import web

from controlplane.adapters.xds_admission import AdsLimits
from controlplane.adapters.xds_ads import ADS_SERVER_OPTIONS, AdsService
from controlplane.adapters.xds_bootstrap import envoy_bootstrap
from controlplane.clock import SystemClock
from controlplane.dev.process import Child, find_binary, free_port
from controlplane.model.dataplane import (
    ChannelTraffic,
    DataPlane,
    Endpoint,
    Reaction,
    RegionEndpoints,
)
from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.plan import Plan, Route

REGIONS = ("east", "north", "south")
DEADLINE_S = 30.0
PATIENT = {"check_timeout_ms": 30_000}
"""A slow machine is not a sick region: unless a test says otherwise, a check that is not answered
counts for nothing, one that is refused or answered with 503 at once."""
UNHURRIED = {"connect_timeout_ms": 5000, "total_timeout_ms": 30_000}
"""The same for payments."""


def plan(epoch: int, weights: dict[str, int], *, channel: str = "alipay", shed_bp: int = 0) -> Plan:
    """Return a plan with one channel."""
    return plan_of(epoch, {channel: weights}, shed_bp=shed_bp)


def plan_of(epoch: int, routes: dict[str, dict[str, int]], *, shed_bp: int = 0) -> Plan:
    """Return a plan with several channels."""
    return Plan(
        epoch=Epoch(epoch),
        routes=tuple(
            Route(
                channel=ChannelName(channel),
                weights=tuple((RegionName(r), w) for r, w in sorted(weights.items())),
                shed_bp=shed_bp,
            )
            for channel, weights in sorted(routes.items())
        ),
    )


async def eventually(
    condition: Callable[[], Awaitable[bool] | bool], what: str, deadline_s: float = DEADLINE_S
) -> None:
    """Wait for a condition of another process; fails with `what` when it never comes."""
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                answer = condition()
                if answer if isinstance(answer, bool) else await answer:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


@dataclass
class Gateway:
    """One region's payment gateway: counts what arrives, can hang, fail, be unhealthy, and answer no
    check (`deaf`) while it takes payments."""

    region: str
    port: int = 0
    healthy: bool = True
    deaf: bool = False
    status: int = 200
    arrivals: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    resume: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None

    def __post_init__(self) -> None:
        self.resume.set()

    async def start(self) -> Gateway:
        """Listen."""
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_post("/v1/channels/{channel}/payments", self._pay)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self.port = self.port or free_port()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        return self

    async def stop(self) -> None:
        """Close the socket and all connections: the region is dead."""
        self.resume.set()
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    async def _health(self, _request: web.Request) -> web.Response:
        await self.resume.wait()
        if self.deaf:
            await asyncio.Event().wait()
        return web.Response(status=200 if self.healthy else 503)

    async def _pay(self, request: web.Request) -> web.Response:
        channel = request.match_info["channel"]
        self.arrivals[channel] += 1
        self.keys[request.headers.get("Idempotency-Key", "")] += 1
        if self.status == -1:  # take the payment and reset the connection
            assert request.transport is not None
            request.transport.abort()
        await self.resume.wait()
        return web.json_response(
            {"region": self.region, "channel": channel}, status=abs(self.status)
        )


@dataclass
class Lab:
    """Three gateways, one ADS server, any number of Envoys."""

    directory: Path
    gateways: dict[str, Gateway] = field(default_factory=dict)
    ads: AdsService = None  # type: ignore[assignment]
    address: str = ""
    envoys: list[Envoy] = field(default_factory=list)
    _server: grpc.aio.Server | None = None

    async def start(self, limits: AdsLimits | None = None) -> Lab:
        """Start gateways and server."""
        for region in REGIONS:
            self.gateways[region] = await Gateway(region).start()
        self.ads = AdsService(clock=SystemClock(), limits=limits)
        await self.serve()
        return self

    async def serve(self) -> None:
        """Start (again) the replica's server, at the same address."""
        self._server = grpc.aio.server(options=(*ADS_SERVER_OPTIONS, ("grpc.so_reuseport", 0)))
        self.ads.register(self._server)
        port = self._server.add_insecure_port(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop_serving(self) -> None:
        """Stop the server: the control plane is gone."""
        assert self._server is not None
        await self._server.stop(None)

    async def stop(self) -> None:
        """Stop everything."""
        for envoy in self.envoys:
            envoy.child.kill()
        await self.stop_serving()
        for gateway in self.gateways.values():
            await gateway.stop()

    def dataplane(self, *channels: ChannelTraffic, **reaction: Any) -> DataPlane:
        """Return the configuration that matches the gateways."""
        return DataPlane(
            regions=tuple(
                RegionEndpoints(
                    region=RegionName(name),
                    endpoints=(Endpoint(host="127.0.0.1", port=gateway.port),),
                )
                for name, gateway in sorted(self.gateways.items())
            ),
            channels=channels or (ChannelTraffic(name=ChannelName("alipay"), **UNHURRIED),),
            reaction=Reaction(**{**PATIENT, **reaction}),
        )

    def arrivals(self, channel: str = "alipay") -> dict[str, int]:
        """Count requests that reached each region."""
        return {name: gateway.arrivals[channel] for name, gateway in self.gateways.items()}

    async def envoy(self, name: str = "envoy-0", bootstrap: Any = None) -> Envoy:
        """Start an Envoy and wait until its listener answers."""
        envoy = Envoy(name, self.directory)
        envoy.start(self.address, bootstrap)
        self.envoys.append(envoy)
        return envoy


@dataclass
class Envoy:
    """A real Envoy."""

    name: str
    directory: Path
    port: int = field(default_factory=free_port)
    admin: int = field(default_factory=free_port)
    child: Child = None  # type: ignore[assignment]

    def start(self, server: str, bootstrap: Any = None) -> None:
        """Start the process."""
        config = bootstrap or envoy_bootstrap(
            servers=[server], listener_port=self.port, admin_port=self.admin, node_id=self.name
        )
        path = self.directory / f"{self.name}.json"
        path.write_text(json.dumps(config))
        argv = [
            find_binary("envoy"), "-c", str(path), "--concurrency", "1", "--log-level", "warning",
            "--disable-hot-restart",
        ]  # fmt: skip
        self.child = Child(self.name, argv, self.directory / f"{self.name}.log").start()

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Wait until the listener itself answers."""
        await eventually(
            lambda: self._answers(session), f"{self.name} listens: {self.child.tail()}"
        )

    async def _answers(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"http://127.0.0.1:{self.port}/weir/ready") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def pay(
        self, session: aiohttp.ClientSession, channel: str = "alipay", **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """One payment: status, region (empty when Envoy answered itself), headers."""
        url = f"http://127.0.0.1:{self.port}/v1/channels/{channel}/payments"
        wire = {name.replace("_", "-"): value for name, value in headers.items()}
        async with session.post(url, json={"amount": 100}, headers=wire) as answer:
            text = await answer.text()
            region = json.loads(text)["region"] if text.startswith('{"region"') else ""
            return answer.status, region, {k.lower(): v for k, v in answer.headers.items()}

    async def stats(self, session: aiohttp.ClientSession, pattern: str) -> dict[str, int]:
        """Read counters and gauges whose names match."""
        url = f"http://127.0.0.1:{self.admin}/stats?format=json&filter={pattern}"
        async with session.get(url) as answer:
            found = json.loads(await answer.text())["stats"]
        return {entry["name"]: entry["value"] for entry in found if "value" in entry}

    async def routes(self, session: aiohttp.ClientSession) -> str:
        """Read the routes in force, as text."""
        url = f"http://127.0.0.1:{self.admin}/config_dump?resource=dynamic_route_configs"
        async with session.get(url) as answer:
            return await answer.text()
