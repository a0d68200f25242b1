"""One replica, assembled. Nothing is decided here: parts are made, joined and kept running.

Start order: the last good plan from disk is served before etcd has answered once, so a replica
that starts in an outage
helps at once. Stop order: not ready, resign, drain streams, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from agents.store import PlanFile, Saved
from controlplane import __version__, logging
from controlplane.adapters.admin_changes import AdminService
from controlplane.adapters.agent_service import AgentService
from controlplane.adapters.authorisation import Authorisation
from controlplane.adapters.console import Console
from controlplane.adapters.console_feed import ConsoleFeed, FeedSource
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.etcd_leader import EtcdLeaderKey
from controlplane.adapters.etcd_presence import EtcdPresence
from controlplane.adapters.grpc_server import (
    add_standard_services,
    dial,
    make_server,
    tls_files,
)
from controlplane.adapters.http import HttpServer
from controlplane.adapters.identity import Identity as Caller
from controlplane.adapters.identity import caller
from controlplane.adapters.jsonview import to_json
from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.adapters.operation_records import OperationRecords
from controlplane.adapters.peers import DigestFeed, PeerLinks, PeerService
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.adapters.prometheus import Metrics
from controlplane.adapters.routing_service import RoutingService
from controlplane.adapters.sdnotify import notify
from controlplane.adapters.tls import expires_at_s
from controlplane.adapters.upkeep import Upkeep
from controlplane.adapters.wire import decode_plan, encode_plan
from controlplane.adapters.xds_ads import AdsService
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import Clock, fresh_boot_id, seeded
from controlplane.config import WeirConfig
from controlplane.locks.audit import AuditLog
from controlplane.model.dataplane import DataPlane
from controlplane.model.errors import InvalidInputError, UnavailableError, WeirError
from controlplane.model.evidence import Digest, Report
from controlplane.model.ids import Epoch
from controlplane.model.intents import NO_INTENTS, Intents
from controlplane.model.plan import Phase, Plan
from controlplane.reload import reload
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.book import DigestBook
from controlplane.runtime.election import ElectionRules
from controlplane.runtime.inbox import Inbox
from controlplane.runtime.journal import Journal
from controlplane.runtime.leadership import Elector
from controlplane.runtime.operations import OperationKeeper
from controlplane.runtime.recorder import DecisionRecorder
from controlplane.runtime.subscribers import SubscriberRegistry
from controlplane.runtime.supervisor import keep_running
from controlplane.runtime.tick import DecisionLoop, Tick
from controlplane.v1 import (
    admin_pb2_grpc,
    agent_pb2_grpc,
    lock_pb2_grpc,
    peer_pb2_grpc,
    routing_pb2_grpc,
)
from controlplane.views import Views
from controlplane.wiring import etcd_options, identity, lock_manager

log = structlog.get_logger(__name__)

DEMOTE_MARGIN_MS: Final = 100
"""A leader steps down this much before a candidate may take over."""
DECISIONS_MS: Final = 500
PEER_FRESH_MS: Final = 5_000
"""A peer heard of within this counts as there."""


class Replica:
    """One control-plane daemon. `run` lasts until `stop` is called."""

    def __init__(self, config: WeirConfig, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        self.me = identity(config)
        self.topology = config.topology()
        self.dataplane: DataPlane | None = config.dataplane()
        self.rng = seeded()
        self.stopping = asyncio.Event()
        self.intents: Intents = NO_INTENTS
        self.file = PlanFile(config.server.state_dir)
        self.highest_on_disk = Epoch(0)
        self.metrics = Metrics(
            self.topology, version=__version__, peers_expected=max(0, len(config.replicas()) - 1)
        )
        self.board = PlanBoard(self.topology)
        self.book = DigestBook()
        self.subscribers = SubscriberRegistry(config.server.max_subscribers)
        self.inbox = Inbox(
            self.topology,
            self.me.replica,
            self.me.region,
            fresh_boot_id(),
            config.server.max_agents,
        )
        self.feed = DigestFeed()
        self.recorder = DecisionRecorder(config.server.state_dir / "decisions")
        # failovers this leader saw begin are counted once when they close
        self.seen_running: set[str] = set()
        self.closed: dict[str, str] = {}
        self.ads = AdsService(clock=clock, metrics=self.metrics.xds)
        self.subscribers.add_source(self.ads.subscribers)

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start everything, run until stopped, stop in order."""
        try:
            self._serve_last_good()
            await self._run()
        finally:
            self.file.close()

    async def _run(self) -> None:
        config = self.config
        self.kv = await EtcdClient.connect(
            config.coordination.endpoints, options=etcd_options(config), clock=self.clock
        )
        self.metrics.follow_etcd(self.kv.stats)
        self.store = EtcdPlanStore(
            self.kv, self.me.cluster, self.clock, budget_ms=self.topology.policy.budget_ms
        )
        self.journal: Journal[Any, Any] = Journal(self.store, self.clock)
        coordination, names = config.coordination, sorted(config.replicas())
        self.elector = Elector(
            key=EtcdLeaderKey(self.kv, self.me.cluster, self.clock),
            touch=self.store.touch,
            replica=self.me.replica,
            region=self.me.region,
            clock=self.clock,
            rank=names.index(self.me.replica) if self.me.replica in names else len(names),
            rules=ElectionRules(
                takeover_after_ms=coordination.takeover_after_ms,
                demote_after_ms=coordination.takeover_after_ms - DEMOTE_MARGIN_MS,
                lease_ttl_s=coordination.lease_ttl_s,
            ),
            eligible=self.eligible,
        )
        self.store.on_write = self.elector.renewed
        self.store.on_deposed = self.elector.deposed
        self.presence = EtcdPresence(
            self.kv,
            self.me.cluster,
            self.clock,
            replica=self.me.replica,
            region=self.me.region,
        )
        self.loop = DecisionLoop(
            topology=self.topology,
            inbox=self.inbox,
            book=self.book,
            board=self.board,
            subscribers=self.subscribers,
            store=self.store,
            election=self.elector,
            clock=self.clock,
            metrics=self.metrics,
            region=self.me.region,
            intents=lambda: self.intents,
            on_digest=self._on_digest,
            recorder=self._record,
            suspect_coordination=self.presence.coordination_suspect,
        )
        self.views = Views(
            me=self.me,
            clock=self.clock,
            config=lambda: self.config,
            topology=lambda: self.topology,
            board=self.board,
            book=self.book,
            loop=self.loop,
            store=self.store,
            elector=self.elector,
            journal=self.journal,
            intents=lambda: self.intents,
        )
        self.locks = lock_manager(
            config,
            self.kv,
            self.store.keys,
            self.clock,
            may_bump=lambda: self.elector.leadership is not None,
            metrics=self.metrics,
        )
        self.loop.highest_seen = self.highest_on_disk
        intents = EtcdIntents(self.kv, self.store.keys, self.clock)
        self.upkeep = Upkeep(self.store, intents, self.metrics, self.clock)
        self.operations = OperationKeeper(
            OperationRecords(self.kv, intents),
            self.clock,
            leadership=lambda: self.elector.leadership,
            plan=lambda: self.board.plan,
            converged=self.views.converged,
            budget_ms=self.topology.policy.budget_ms,
        )
        self.admin = AdminService(
            self.views.reads(),
            intents=intents,
            what_if=self.views.what_if,
            progress=self.views.progress,
            caller=lambda context: (
                (who := self._caller(context)).name,
                frozenset(str(role) for role in who.roles),
            ),
            clock=self.clock,
        )
        server = self._grpc_server()
        console = self._console()
        http = HttpServer(
            metrics=self.metrics,
            plan=lambda: self.board.plan,
            status=self._status_json,
            ready=self.not_ready_because,
            console=console,
            before_scrape=self._scrape,
        )
        host, _, port = config.server.http_listen.rpartition(":")
        try:
            await http.start(host, int(port))
        except OSError as error:
            raise UnavailableError(
                f"server.http_listen: {config.server.http_listen}: {error.strerror};"
                " free the port or choose another"
            ) from error
        await server.start()
        log.info(
            "replica_started", replica=self.me.replica, region=self.me.region,
            grpc=config.server.grpc_listen, http=config.server.http_listen, version=__version__,
        )  # fmt: skip
        notify("READY=1")
        try:
            await self._work(console.feed)
        finally:
            await self._shut_down(server, http)

    async def _work(self, feed: ConsoleFeed) -> None:
        parts = {
            "tick": self.loop.run,
            "election": self.elector.run,
            "follow_plan": self._follow_plan,
            "follow_intents": self._follow_intents,
            "journal": self.journal.run,
            "ads": self.ads.run,
            "operations": self.operations.run,
            "upkeep": self.upkeep.run,
            "decisions": self._write_decisions,
            "presence": self.presence.run,
            "console": feed.run,
            "peers": self._peer_links().run,
        }
        if self.locks is not None:
            parts["locks"] = self.locks.run
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(keep_running(name, part, self.clock), name=name)
                for name, part in parts.items()
            ]
            await self.stopping.wait()
            notify("STOPPING=1")
            log.info("stopping", leads=self.elector.leadership is not None)
            with contextlib.suppress(WeirError):
                await self.elector.resign()
            for task in tasks:
                task.cancel()

    async def _shut_down(self, server: grpc.aio.Server, http: HttpServer) -> None:
        await server.stop(self.config.server.grace_s / 4)
        await http.stop()
        await self.kv.aclose()
        log.info("stopped")

    def stop(self) -> None:
        """Ask for the end (SIGTERM, SIGINT)."""
        self.stopping.set()

    def reload(self, path: Path) -> None:
        """Read the configuration again (SIGHUP); a bad one changes nothing and is said."""
        try:
            new, changed = reload(path, self.config)
        except WeirError as error:
            log.error("config_reload_refused", error=str(error))
            self.metrics.config_reload("refused")
            return
        log.info("config_reloaded", changed=changed)
        self.metrics.config_reload("ok" if changed else "unchanged")
        logging.configure(new.log.level, new.log.format)
        self.config, self.topology, self.dataplane = new, new.topology(), new.dataplane()
        self.inbox.reconfigure(self.topology)
        self.loop.reconfigure(self.topology)
        self.metrics.reconfigure(self.topology)
        plan = self.board.plan
        if plan is not None:
            self._to_data_planes(plan, confirmed=self.views.leader().coordinated)

    # --- what is served -----------------------------------------------------------------------

    def _serve_last_good(self) -> None:
        try:
            self.file.prepare()
        except UnavailableError as error:
            raise InvalidInputError(
                "server.state_dir", f"{error}; choose a writable folder"
            ) from error
        saved = self.file.load()
        self.highest_on_disk = Epoch(saved.highest_epoch)
        if saved.plan is not None:
            try:
                plan = decode_plan(saved.plan)
            except InvalidInputError as error:
                log.error("last_good_plan_refused", error=str(error))
                return
            self.board.adopt(plan)
            self._to_data_planes(plan, confirmed=False)
            log.info("last_good_plan", epoch=plan.epoch)

    def _to_data_planes(self, plan: Plan, *, confirmed: bool) -> None:
        self.metrics.set_plan(plan)
        if self.dataplane is None:
            return
        try:
            self.ads.publish(Snapshot.build(plan, self.dataplane), confirmed=confirmed)
        except InvalidInputError as error:
            log.error("plan_not_for_data_planes", epoch=plan.epoch, error=str(error))

    async def _follow_plan(self) -> None:
        """Publish what was read back from etcd, and nothing else."""
        async with contextlib.aclosing(self.store.follow()) as plans:
            async for committed in plans:
                if not await self.board.publish(committed.plan):
                    continue
                self._to_data_planes(committed.plan, confirmed=True)
                saved = Saved(
                    plan=encode_plan(committed.plan),
                    highest_epoch=max(self.loop.highest_seen, committed.plan.epoch),
                )
                try:
                    await asyncio.to_thread(self.file.save, saved)
                except UnavailableError as error:
                    log.error("plan_not_saved", error=str(error))

    async def _follow_intents(self) -> None:
        """Read what operators asked for, once a tick: constant work, on every replica."""
        while True:
            with contextlib.suppress(UnavailableError):
                self.intents = await self.store.intents()
                # a linearizable read has just succeeded: the plan in force is confirmed
                self.ads.confirm()
            await self.clock.sleep_ms(self.topology.policy.tick_ms)

    def accept(self, report: Report, now_ms: int) -> bool:
        """Count a report; it is also its agent's sign of life as a subscriber of the plan."""
        fresh = self.inbox.accept(report, now_ms)
        if report.applied_epoch <= self.board.epoch:
            self.subscribers.ack(f"{report.region}/{report.agent}", report.applied_epoch, now_ms)
        return fresh

    def put(self, digest: Digest, now_ms: int) -> bool:
        """Keep a peer's digest; only configured replicas are peers, and nobody speaks for us."""
        if digest.replica == self.me.replica or digest.replica not in self.config.replicas():
            log.warning("digest_of_a_stranger", replica=digest.replica)
            return False
        return self.book.put(digest, now_ms)

    async def _on_digest(self, digest: Digest) -> None:
        self.metrics.set_digest(digest)
        await self.feed.publish(digest)

    def _record(self, tick: Tick) -> None:
        """Keep what a tick decided, and count the failovers it closed."""
        self.recorder.record(tick)
        running = None
        for record in tick.result.failovers:
            if record.outcome == "running":
                running = record
            elif self.closed.setdefault(record.id, "") != record.outcome:
                if record.id in self.seen_running:
                    self.metrics.failover_closed(record)
                self.closed[record.id] = record.outcome
            if record.outcome == "running":
                self.seen_running.add(record.id)
        left_ms = self.topology.policy.budget_ms
        if running is not None:
            left_ms -= tick.result.state.memory.now_ms - running.symptom_ms
        self.metrics.set_failover_running(running, left_ms)

    async def _write_decisions(self) -> None:
        """Bring the decision log to disk twice a second, off the loop."""
        while True:
            await self.clock.sleep_ms(DECISIONS_MS)
            taken = self.recorder.take()
            if taken is not None:
                await asyncio.to_thread(self.recorder.write, *taken)

    def eligible(self) -> bool:
        """Tell whether this replica may campaign: not from a failed or drained region while
        another can."""
        plan = self.board.plan
        if plan is None:
            return True
        out = {s.name for s in plan.regions if s.drained or s.phase is Phase.FAILED}
        return self.me.region not in out or len(out) == len(plan.regions)

    def not_ready_because(self) -> str:
        """Return why this replica cannot serve, empty when it can. Not leadership."""
        if self.stopping.is_set():
            return "stopping"
        return "" if self.board.plan is not None else "no plan yet"

    # --- edges --------------------------------------------------------------------------------

    def _grpc_server(self) -> grpc.aio.Server:
        server = make_server(
            self.config,
            [Authorisation(self.clock, self.metrics, tls=self.config.tls.enabled)],
            lambda ok: self.metrics.config_reload("ok" if ok else "refused"),
        )
        agent_pb2_grpc.add_AgentServiceServicer_to_server(
            AgentService(
                self,
                self.clock,
                self.metrics,
                lambda: self.board.epoch,
                lambda: self.topology.policy.report_interval_ms,
                regions=lambda: frozenset(str(r.name) for r in self.topology.regions),
                plan_confirmed=lambda: self.views.leader().coordinated,
                may_report_for=lambda context: self._caller(context).region,
                max_streams=self.config.server.max_agents,
            ),
            server,
        )
        peer_pb2_grpc.add_PeerServiceServicer_to_server(
            PeerService(self.feed, self, self.clock), server
        )
        routing_pb2_grpc.add_RoutingServiceServicer_to_server(
            RoutingService(self.board, self.subscribers, self.clock), server
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self.admin, server)
        if self.locks is not None:
            lock_pb2_grpc.add_LockServiceServicer_to_server(
                LockServiceServicer(self.locks, AuditLog(self.kv, self.store.keys.forced_releases)),
                server,
            )
        self.ads.register(server)
        add_standard_services(server, lambda: self.not_ready_because() == "")
        return server

    def _caller(self, context: grpc.aio.ServicerContext) -> Caller:
        return caller(context, tls=self.config.tls.enabled)

    def _peer_links(self) -> PeerLinks:
        peers = {name: address for name, (_, address) in self.config.replicas().items()}
        return PeerLinks(
            self.me.replica,
            peers,
            self.feed,
            self,
            self.clock,
            self.rng,
            lambda address: dial(self.config, address),
        )

    # --- what people see ----------------------------------------------------------------------

    def _scrape(self) -> None:
        """Bring gauges up to date before they are read."""
        leader = self.views.leader()
        self.metrics.set_leader(self.elector.leadership is not None, leader.term)
        self.metrics.set_heartbeat_age(leader.heartbeat_age_ms)
        self.metrics.set_etcd_reachable(leader.coordinated)
        now_ms = self.clock.monotonic_ms()
        self.metrics.set_subscribers(self.subscribers.snapshot(now_ms), self.board.epoch)
        if self.loop.evidence is not None:
            self.metrics.set_evidence(self.loop.evidence.regions)
        entries = self.book.entries(now_ms)
        fresh = [d for d, age in entries if age <= PEER_FRESH_MS and d.replica != self.me.replica]
        files = tls_files(self.config)
        for use, path in (("server", files.cert), ("ca", files.ca)) if files else ():
            if (ends_s := expires_at_s(path)) is not None:
                self.metrics.set_certificate_expiry(use, ends_s)
        self.metrics.set_peers(len(fresh), max(0, len(self.config.replicas()) - 1))

    def _console(self) -> Console:
        async def changed(epoch: int) -> int:
            return int((await self.board.wait_newer(epoch)).epoch)

        source = FeedSource(
            status=self.admin.status,
            regions=self.admin.regions,
            changed=changed,
            events=self.journal.follow,
        )
        feed = ConsoleFeed(source, self.clock)
        self.board.listen(lambda plan: feed.remember(plan, self.topology))
        return Console(self.config, self.admin, feed, lambda: self.topology)

    async def _status_json(self) -> dict[str, Any]:
        return to_json(self.admin.status())


async def serve(path: Path, config: WeirConfig, clock: Clock) -> None:
    """Run a replica until SIGTERM or SIGINT; SIGHUP reloads its configuration."""
    replica = Replica(config, clock)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, replica.reload, path)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.stop)
    await replica.run()
