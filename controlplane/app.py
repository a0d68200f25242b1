"""One replica, assembled. Nothing is decided here: parts are made, joined and kept running.

Start order: the last good plan from disk is served before etcd has answered once, so a replica that
starts in an outage helps at once. Stop order: not ready, resign, drain streams, close.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from agents.store import PlanFile
from controlplane import __version__, edges, garbage, logging
from controlplane.adapters.admin_changes import AdminService
from controlplane.adapters.admin_local import LocalChanger
from controlplane.adapters.audit_trail import AuditTrail
from controlplane.adapters.console_feed import ConsoleFeed
from controlplane.adapters.core_log import core_log
from controlplane.adapters.draining import Draining
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.etcd_leader import EtcdLeaderKey
from controlplane.adapters.etcd_presence import EtcdPresence
from controlplane.adapters.http import HttpServer
from controlplane.adapters.jsonview import to_json
from controlplane.adapters.operation_records import OperationRecords
from controlplane.adapters.peers import DigestFeed
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.adapters.prometheus import Metrics
from controlplane.adapters.sdnotify import notify
from controlplane.adapters.upkeep import Upkeep
from controlplane.adapters.xds_ads import AdsService
from controlplane.chronicle import Chronicle
from controlplane.clock import Clock, fresh_boot_id, seeded
from controlplane.config import WeirConfig
from controlplane.locks.job import JobLock
from controlplane.model.dataplane import DataPlane
from controlplane.model.errors import UnavailableError, WeirError
from controlplane.model.evidence import Digest, Report
from controlplane.model.ids import Epoch
from controlplane.model.intents import NO_INTENTS, Intents, Order
from controlplane.reload import reload
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.book import DigestBook
from controlplane.runtime.election import ElectionRules, another_can, regions_out
from controlplane.runtime.inbox import Inbox
from controlplane.runtime.journal import Journal
from controlplane.runtime.leadership import Elector
from controlplane.runtime.local import LocalOverrides
from controlplane.runtime.operations import OperationKeeper
from controlplane.runtime.recorder import DecisionRecorder
from controlplane.runtime.subscribers import SubscriberRegistry
from controlplane.runtime.supervisor import keep_running
from controlplane.runtime.tick import DecisionLoop
from controlplane.serving import PlanServing
from controlplane.views import Views, state_known
from controlplane.wiring import etcd_options, identity, lock_manager

log = structlog.get_logger(__name__)

DEMOTE_MARGIN_MS: Final = 100
"""A leader steps down this much before a candidate may take over."""


class Replica:
    """One control-plane daemon. `run` lasts until `stop` is called."""

    def __init__(self, config: WeirConfig, clock: Clock) -> None:
        self.config = config
        self.clock = clock
        self.me = identity(config)
        self.topology = config.topology()
        self.dataplane: DataPlane | None = config.dataplane()
        self.rng = seeded()
        self.draining = Draining(clock, self.rng)
        self.stopping = asyncio.Event()
        self.intents: Intents = NO_INTENTS
        self.orders: Sequence[Order] = ()
        self.etcd_read_ms: int | None = None
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
        self.chronicle = Chronicle(
            DecisionRecorder(config.server.state_dir / "decisions"),
            self.metrics,
            clock,
            lambda: self.topology.policy.budget_ms,
        )
        self.audit = AuditTrail(clock)
        self.ads = AdsService(clock=clock, metrics=self.metrics.xds)
        self.serving = PlanServing(
            file=self.file,
            board=self.board,
            ads=self.ads,
            metrics=self.metrics,
            dataplane=lambda: self.dataplane,
        )
        self.subscribers.add_source(self.ads.subscribers)

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start everything, run until stopped, stop in order."""
        try:
            self.highest_on_disk = self.serving.last_good()
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
        self.journal: Journal[Any, Any] = Journal(
            self.store, self.clock, answers=self._etcd_answers
        )
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
            alone=self.alone,
            writing=self.store.writing,
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
            orders=lambda: self.orders,
            on_digest=self._on_digest,
            recorder=self.chronicle.record,
            suspect_coordination=self.presence.coordination_suspect,
        )
        self.local = LocalOverrides(
            replica=self.me.replica,
            board=self.board,
            topology=lambda: self.topology,
            coordinated=self._etcd_answers,
            to_data_planes=lambda plan: self.serving.to_data_planes(plan, confirmed=False),
            noted=self.audit,
            clock=self.clock,
        )
        self.known = state_known(
            self.store, self.loop, self.elector, self._etcd_answers, self.clock
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
            orders=lambda: self.orders,
            local=self.local,
            drills=lambda: self.upkeep.drills,
            known=self.known,
            etcd_read_ms=lambda: self.etcd_read_ms,
            unwritten=lambda: self.audit.waiting,
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
        intents = self.admin_intents = EtcdIntents(self.kv, self.store.keys, self.clock)
        self.upkeep = Upkeep(self.store, intents, self.metrics, self.clock)
        self.operations = OperationKeeper(
            OperationRecords(self.kv, intents),
            self.clock,
            leadership=lambda: self.elector.leadership,
            plan=lambda: self.board.plan,
            converged=self.views.converged,
            budget_ms=self.topology.policy.budget_ms,
            lock=JobLock(self.locks, "jobs/drill") if self.locks is not None else None,
        )
        self.admin = self._admin(intents)
        server = edges.grpc_server(self)
        console = edges.console(self)
        http = HttpServer(
            metrics=self.metrics,
            plan=lambda: self.board.plan,
            status=self._status_json,
            ready=self.not_ready_because,
            console=console,
            before_scrape=lambda: edges.scrape(self),
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
            await self._work(console.feed, server)
        finally:
            await self._shut_down(server, http)

    def _admin(self, intents: EtcdIntents) -> AdminService:
        def caller(context: grpc.aio.ServicerContext) -> tuple[str, frozenset[str]]:
            who = edges.caller_of(self, context)
            return who.name, frozenset(str(role) for role in who.roles)

        return AdminService(
            self.views.reads(),
            intents=intents,
            what_if=self.views.what_if,
            stands=self.views.stands,
            progress=self.views.progress,
            caller=caller,
            speaks_for=lambda context: edges.caller_of(self, context).region,
            local=LocalChanger(
                replica=self.me.replica,
                local=self.local,
                audit=self.audit,
                what_if=self.views.local_what_if,
                coordinated=self._etcd_answers,
                caller=caller,
                clock=self.clock,
            ),
            clock=self.clock,
        )

    async def _work(self, feed: ConsoleFeed, server: grpc.aio.Server) -> None:
        parts = {
            "tick": self.loop.run,
            "election": self.elector.run,
            "follow_plan": lambda: self.serving.follow(self.store, lambda: self.loop.highest_seen),
            "save_plan": self.serving.save,
            "follow_intents": self._follow_intents,
            "journal": self.journal.run,
            "last_known": self.known.run,
            "ads": self.ads.run,
            "operations": self.operations.run,
            "upkeep": self.upkeep.run,
            "local": self.local.run,
            "audit": lambda: self.audit.run(self.admin_intents),
            "decisions": self.chronicle.run,
            "presence": self.presence.run,
            "console": feed.run,
            "peers": edges.peer_links(self).run,
        }
        if self.locks is not None:
            parts["locks"] = self.locks.run
        async with asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(keep_running(name, part, self.clock), name=name)
                for name, part in parts.items()
            }
            await self.stopping.wait()
            notify("STOPPING=1")
            log.info("stopping", leads=self.elector.leadership is not None)
            with contextlib.suppress(WeirError):
                await self.elector.resign()
            tasks["election"].cancel()
            # what still comes in is folded and told to the peers until its stream ends
            await self._drain(server)
            for task in tasks.values():
                task.cancel()

    async def _drain(self, server: grpc.aio.Server) -> None:
        grace_s = self.config.server.grace_s / 4
        draining = asyncio.ensure_future(self.draining.drain(grace_s * 1000))
        try:
            await server.stop(grace_s)
        finally:
            draining.cancel()

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
        if changed:
            self.audit.note(
                "config_reload",
                target=self.me.replica,
                by=f"replica/{self.me.replica}",
                reason=f"SIGHUP: {path}",
                message="\n".join(changed),
            )
        self.metrics.config_reload("ok" if changed else "unchanged")
        logging.configure(new.log.level, new.log.format)
        self.config, self.topology, self.dataplane = new, new.topology(), new.dataplane()
        self.inbox.reconfigure(self.topology)
        self.loop.reconfigure(self.topology)
        self.metrics.reconfigure(self.topology)
        plan = self.board.served  # a local override holds on
        if plan is not None:
            confirmed = plan.local is None and self.views.leader().coordinated
            self.serving.to_data_planes(plan, confirmed=confirmed)

    def _etcd_answers(self) -> bool:
        return self.views.leader().coordinated

    # --- what is served -----------------------------------------------------------------------

    async def _follow_intents(self) -> None:
        """Read what operators asked for, once a tick: constant work, on every replica."""
        while True:
            with contextlib.suppress(UnavailableError):
                self.intents, self.orders = await self.store.standing()
                self.etcd_read_ms = self.clock.monotonic_ms()
                # a linearizable read has just succeeded: the plan in force is confirmed
                self.ads.confirm()
            await self.clock.sleep_ms(self.topology.policy.tick_ms)

    def accept(self, report: Report, now_ms: int) -> bool:
        """Count a report; it is also its agent's sign of life as a subscriber of the plan."""
        fresh = self.inbox.accept(report, now_ms)
        name = f"{report.region}/{report.agent}"
        self.subscribers.tell_version(name, report.version)
        if report.applied_epoch <= self.board.epoch:
            self.subscribers.ack(name, report.applied_epoch, now_ms)
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

    def eligible(self) -> bool:
        """Tell whether this replica may campaign: not from a failed or drained region while
        another can."""
        out = regions_out(self.board.plan)
        return self.me.region not in out or len(out) == len(self.topology.regions)

    def alone(self) -> bool:
        """Tell whether no other replica that may campaign is heard."""
        return not another_can(
            self.book.entries(self.clock.monotonic_ms()),
            regions_out(self.board.plan),
            without=(self.me.replica, self.elector.leader_info.replica),
            within_ms=self.config.coordination.takeover_after_ms,
        )

    def not_ready_because(self) -> str:
        """Return why this replica cannot serve, empty when it can. Not leadership."""
        if self.stopping.is_set():
            return "stopping"
        if self.board.plan is None:
            return "no plan yet"
        if self.dataplane is not None and self.ads.snapshot is None:
            return "the plan does not fit the configured endpoints: data planes are served nothing"
        return ""

    async def _status_json(self) -> dict[str, Any]:
        return to_json(self.admin.status())


async def serve(path: Path, config: WeirConfig, clock: Clock) -> None:
    """Run a replica until SIGTERM or SIGINT; SIGHUP reloads its configuration."""
    replica = Replica(config, clock)
    garbage.settle()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, replica.reload, path)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.stop)
    with core_log(lambda: replica.metrics.call_denied("handshake")):
        logging.configure(config.log.level, config.log.format)  # to the real stderr
        await replica.run()
