"""The agent: puts the parts together, runs them, and ends them in order.

Start: configuration, state folder, plan from disk (so the data plane has one before any replica is
asked), HTTP, probes, link. A fault of the configuration or a taken port is one line and an exit
code; a disk that cannot be written is a line, and the agent runs without.

End (SIGTERM, SIGINT): not ready; probes stop; one last report; the link closes; what is not on disk
yet is written; HTTP closes. Everything is bounded by `END_S`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web

import controlplane
from agents import http
from agents.apply import Applier, Sink
from agents.counters import Counters
from agents.dialout import connector
from agents.keep import keep
from agents.lag import LoopLag
from agents.link import Link
from agents.prober import Prober
from agents.probes.dns import Resolver
from agents.probes.observation import Observation
from agents.relay import check_listen, relay
from agents.report import Identity, Reporter
from agents.servers import Rotation, order
from agents.sinks import EnvoyFiles, FreshNames
from agents.sntp import ClockOffset
from agents.sources import Queues, Source, traffic_into
from agents.store import PlanFile
from agents.targets import Subject, Target, split_address, targets_of
from agents.xds_relay import AdsRelay
from controlplane.adapters.agent_metrics import AgentMetrics
from controlplane.clock import Clock, SystemClock, fresh_boot_id, seeded
from controlplane.config import WeirConfig
from controlplane.logging import get
from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError
from controlplane.model.ids import AgentId, RegionName, valid_name

END_S: Final = 3.0
"""Longest end after SIGTERM: last report, last write, open HTTP requests."""

Part = Callable[[], Awaitable[None]]

log = get("agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a running agent listens, with the ports the kernel chose."""

    http: tuple[str, int]
    grpc_port: int | None = None


class Agent:
    """One agent. `prepare` raises InvalidInputError for what the configuration lacks."""

    def __init__(
        self,
        config: WeirConfig,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        boot: int | None = None,
    ) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._rng = rng or seeded()
        self._stop = asyncio.Event()
        self.identity = identify(config, boot or fresh_boot_id())
        region = self.identity.region
        self.metrics = AgentMetrics(
            region=region,
            regions=config.regions,
            channels=config.channels,
            version=controlplane.__version__,
        )
        self._targets = targets_of(config, region)
        self._counters = Counters(
            (n for n, c in config.channels.items() if region in c.regions), self._targets
        )
        self._resolver = Resolver()
        self._lag = LoopLag()
        self._queues = Queues(self._clock)
        self._offset = self._clock_offset()
        self._file = PlanFile(config.agent.state_dir)
        self._envoy = self._envoy_files()
        sinks: list[Sink] = [FreshNames(self._resolver)]
        if self._envoy is not None:
            sinks.append(self._envoy)
        self._ads = self._ads_relay()
        if self._ads is not None:
            sinks.append(self._ads)
        self.applier = Applier(self._file, self._clock, sinks, noted=self.metrics.plan_offered)
        if config.agent.grpc_listen is not None:
            check_listen(config.agent.grpc_listen, config.tls)
        self._link = self._make_link()

    def stop(self) -> None:
        """Ask the agent to end; `run` returns soon after."""
        self._stop.set()

    async def run(self, ready: asyncio.Future[Addresses] | None = None) -> None:
        """Run until `stop`. `ready` is told where the agent listens.

        Raises WeirError when an address cannot be used or the state folder is in use.
        """
        self._prepare_disk()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._file.close)
            await self.applier.restore(self._envoy.epoch_on_disk() if self._envoy else 0)
            address = await stack.enter_async_context(self._http())
            grpc_port: int | None = None
            if (relayed := self._config.agent.grpc_listen) is not None:
                grpc_port = await stack.enter_async_context(
                    relay(
                        self.applier,
                        self._clock,
                        relayed,
                        self._config.tls,
                        self._ads.register if self._ads else lambda _: None,
                    )
                )
            log.info(
                "agent_started",
                region=self.identity.region,
                agent=self.identity.agent,
                http="{}:{}".format(*address),
                targets=len(self._targets),
                plan_epoch=self.applier.applied_epoch,
            )
            if ready is not None:
                ready.set_result(Addresses(http=address, grpc_port=grpc_port))
            await self._parts()
        log.info("agent_stopped")

    async def _parts(self) -> None:
        link_stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:

            def start(name: str, part: Part) -> asyncio.Task[None]:
                return group.create_task(keep(name, part, self._clock), name=name)

            probing = start("prober", self._prober().run)
            rest = [
                start("apply", self.applier.run),
                start("lag", lambda: self._lag.run(self._clock)),
            ]
            if self._offset is not None:
                rest.append(start("sntp", self._offset.run))
            if self._ads is not None:
                rest.append(start("ads", self._ads.ads.run))
            rest.extend(start(f"source-{i}", s) for i, s in enumerate(self._sources()))
            link = start("link", lambda: self._link.run(link_stop))
            await self._stop.wait()
            log.info("agent_stopping")
            probing.cancel()
            link_stop.set()
            await asyncio.wait([link], timeout=END_S)
            for task in (link, *rest):
                task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self.applier.flush()

    def _prepare_disk(self) -> None:
        try:
            self._file.prepare()
        except UnavailableError as error:
            log.error("state_dir_unwritable", error=str(error), remedy="goes on without a disk")

    @contextlib.asynccontextmanager
    async def _http(self) -> AsyncIterator[tuple[str, int]]:
        app = http.application(self.applier, self.identity, self._exposition, self._stop.is_set)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=END_S)
        await runner.setup()
        try:
            sock = listen(self._config.agent.http_listen, "agent.http_listen")
            await web.SockSite(runner, sock).start()
            yield sock.getsockname()[:2]
        finally:
            await runner.cleanup()

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        offset_ms = self._offset.offset_ms if self._offset else None
        self.metrics.set_clock_offset(None if offset_ms is None else offset_ms / 1000)
        self.metrics.set_queue_lags(self._queues.lags_s)
        self.metrics.set_plan_epoch(self.applier.applied_epoch)
        self.metrics.set_disk_ok(self.applier.disk_well)
        return self.metrics.exposition(accept)

    def _prober(self) -> Prober:
        return Prober(
            self._targets,
            self._counters,
            self._resolver,
            self._clock,
            self._rng,
            interval_ms=self._config.agent.interval_ms,
            noted=self._measure,
        )

    def _measure(self, target: Target, seen: Observation) -> None:
        if seen.reason is not None:
            self.metrics.probe_failure(seen.reason)
        if target.subject is Subject.INGRESS:
            self.metrics.ingress_probe(target.name, seen.ok)
            return
        self.metrics.probe(target.name, seen.ok)
        for phase, took_ms in seen.phases.items():
            self.metrics.probe_phase(target.name, phase, took_ms / 1000)

    def _make_link(self) -> Link:
        agent = self._config.agent
        servers, home = order(agent.servers, self._config.replicas(), self.identity.region)
        if not servers:
            raise InvalidInputError(
                "agent.servers", "no replica is configured here or in regions.*.replicas"
            )
        reporter = Reporter(
            self.identity,
            self._counters,
            self.applier,
            self._lag,
            self._queues,
            self._clock,
            clock_offset_ms=lambda: self._offset.offset_ms if self._offset else None,
            lag_noted=lambda lag_ms: self.metrics.set_loop_lag(lag_ms / 1000),
        )
        return Link(
            Rotation(servers, home, self._rng),
            connector(self._config.tls),
            reporter,
            self.applier,
            self._clock,
            self._rng,
            self.metrics,
            interval_ms=agent.interval_ms,
        )

    def _clock_offset(self) -> ClockOffset | None:
        reference = self._config.agent.clock_reference
        if reference is None:
            return None
        host, port = split_address(reference, "agent.clock_reference")
        return ClockOffset(host, port, self._clock, self._rng)

    def _envoy_files(self) -> EnvoyFiles | None:
        agent = self._config.agent
        if agent.xds_dir is None:
            return None
        dataplane = self._config.dataplane()
        if dataplane is None:
            raise InvalidInputError("agent.xds_dir", "needs regions.*.endpoints of every region")
        return EnvoyFiles(
            agent.xds_dir, dataplane, split_address(agent.xds_listener, "agent.xds_listener")
        )

    def _ads_relay(self) -> AdsRelay | None:
        """Serve data planes of this machine where the agent listens and regions have endpoints."""
        dataplane = self._config.dataplane()
        if self._config.agent.grpc_listen is None or dataplane is None:
            return None
        return AdsRelay(dataplane, self._clock)

    def _sources(self) -> list[Part]:
        agent = self._config.agent
        wanted = (
            ("outcomes", agent.outcomes_url, traffic_into(self._counters)),
            ("queues", agent.queues_url, self._queues.take),
        )
        sources = [Source(name, url, take) for name, url, take in wanted if url is not None]
        return [
            functools.partial(source.run, self._clock, self._rng, agent.interval_ms)
            for source in sources
        ]


def identify(config: WeirConfig, boot: int) -> Identity:
    """Return who this agent is; InvalidInputError when the configuration does not say."""
    cluster = config.cluster
    if cluster.region is None:
        raise InvalidInputError(
            "cluster.region", "an agent needs its region; set it or WEIR_CLUSTER__REGION"
        )
    name = cluster.id or socket.gethostname().split(".")[0].lower()
    if not valid_name(name):
        raise InvalidInputError(
            "cluster.id", f"the host name {name!r} is no name; set it or WEIR_CLUSTER__ID"
        )
    return Identity(agent=AgentId(name), region=RegionName(cluster.region), boot=boot)


def listen(address: str, key: str) -> socket.socket:
    """Return a listening socket; WeirError says what to change when it cannot be had."""
    host, port = split_address(address, key)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        variable = "WEIR_" + key.upper().replace(".", "__")
        raise WeirError(
            f"{key}: {address}: {error.strerror}; free it, or set {key} or {variable}"
        ) from error


async def serve(config: WeirConfig) -> None:
    """Run an agent until SIGTERM or SIGINT."""
    agent = Agent(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()
