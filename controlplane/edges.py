"""The edges of a replica: its gRPC server, its links to peers, its console, its gauges."""

from __future__ import annotations

import random
from typing import Any, Final, Protocol

import grpc

from controlplane import views
from controlplane.adapters.admin_changes import AdminService
from controlplane.adapters.agent_service import AgentService, ReportSink
from controlplane.adapters.authorisation import Authorisation
from controlplane.adapters.console import Console
from controlplane.adapters.console_feed import ConsoleFeed, FeedSource
from controlplane.adapters.draining import Draining
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.grpc_server import (
    add_standard_services,
    dial,
    make_server,
    tls_files,
)
from controlplane.adapters.identity import Identity, caller
from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.adapters.peers import Book, DigestFeed, PeerLinks, PeerService
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.adapters.prometheus import Metrics
from controlplane.adapters.routing_service import RoutingService
from controlplane.adapters.tls import expires_at_s
from controlplane.adapters.wellformed import WellFormed
from controlplane.adapters.xds_ads import AdsService
from controlplane.clock import Clock
from controlplane.config import WeirConfig
from controlplane.locks.audit import AuditLog
from controlplane.locks.manager import LockManager
from controlplane.model.topology import Topology
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.book import DigestBook
from controlplane.runtime.journal import Journal
from controlplane.runtime.leadership import Elector
from controlplane.runtime.local import LocalOverrides, ServedBoard
from controlplane.runtime.subscribers import SubscriberRegistry
from controlplane.runtime.tick import DecisionLoop
from controlplane.v1 import (
    admin_pb2_grpc,
    agent_pb2_grpc,
    lock_pb2_grpc,
    peer_pb2_grpc,
    routing_pb2_grpc,
)

PEER_FRESH_MS: Final = 5_000
"""A peer heard of within this counts as there."""


class Replica(ReportSink, Book, Protocol):
    """What stands behind the edges: the parts of a replica, once they are made (`app`)."""

    config: WeirConfig
    clock: Clock
    rng: random.Random
    me: views.Identity
    topology: Topology
    draining: Draining
    metrics: Metrics
    board: PlanBoard
    book: DigestBook
    subscribers: SubscriberRegistry
    feed: DigestFeed
    ads: AdsService
    kv: EtcdClient
    store: EtcdPlanStore
    journal: Journal[Any, Any]
    elector: Elector
    loop: DecisionLoop
    local: LocalOverrides
    views: views.Views
    locks: LockManager | None
    admin: AdminService

    def not_ready_because(self) -> str:
        """Return why no traffic should come here; empty when it may."""
        ...


def grpc_server(replica: Replica) -> grpc.aio.Server:
    """Make the server with every service of the API."""
    server = make_server(
        replica.config,
        [
            replica.draining,
            Authorisation(replica.clock, replica.metrics, tls=replica.config.tls.enabled),
            WellFormed(),
        ],
        lambda ok: replica.metrics.config_reload("ok" if ok else "refused"),
    )
    agent_pb2_grpc.add_AgentServiceServicer_to_server(
        AgentService(
            replica,
            replica.clock,
            replica.metrics,
            lambda: replica.board.epoch,
            lambda: replica.topology.policy.report_interval_ms,
            regions=lambda: frozenset(str(r.name) for r in replica.topology.regions),
            plan_confirmed=lambda: replica.views.leader().coordinated,
            may_report_for=lambda context: caller_of(replica, context).region,
            max_streams=replica.config.server.max_agents,
        ),
        server,
    )
    peer_pb2_grpc.add_PeerServiceServicer_to_server(
        PeerService(replica.feed, replica, replica.clock), server
    )
    routing_pb2_grpc.add_RoutingServiceServicer_to_server(
        RoutingService(
            ServedBoard(replica.board, replica.local), replica.subscribers, replica.clock
        ),
        server,
    )
    admin_pb2_grpc.add_AdminServiceServicer_to_server(replica.admin, server)
    if replica.locks is not None:
        lock_pb2_grpc.add_LockServiceServicer_to_server(
            LockServiceServicer(
                replica.locks, AuditLog(replica.kv, replica.store.keys.forced_releases)
            ),
            server,
        )
    replica.ads.register(server)
    add_standard_services(server, lambda: replica.not_ready_because() == "")
    return server


def caller_of(replica: Replica, context: grpc.aio.ServicerContext) -> Identity:
    """Tell who calls."""
    return caller(context, tls=replica.config.tls.enabled)


def peer_links(replica: Replica) -> PeerLinks:
    """Make the links to the other replicas."""
    peers = {name: address for name, (_, address) in replica.config.replicas().items()}
    return PeerLinks(
        replica.me.replica,
        peers,
        replica.feed,
        replica,
        replica.clock,
        replica.rng,
        lambda address: dial(replica.config, address),
    )


def scrape(replica: Replica) -> None:
    """Bring gauges up to date before they are read."""
    leader = replica.views.leader()
    replica.metrics.set_leader(replica.elector.leadership is not None, leader.term)
    replica.metrics.set_heartbeat_age(leader.heartbeat_age_ms)
    replica.metrics.set_etcd_reachable(leader.coordinated)
    now_ms = replica.clock.monotonic_ms()
    replica.metrics.set_subscribers(replica.subscribers.snapshot(now_ms), replica.board.epoch)
    if replica.loop.evidence is not None:
        replica.metrics.set_evidence(replica.loop.evidence.regions)
    entries = replica.book.entries(now_ms)
    fresh = [d for d, age in entries if age <= PEER_FRESH_MS and d.replica != replica.me.replica]
    files = tls_files(replica.config)
    for use, path in (("server", files.cert), ("ca", files.ca)) if files else ():
        if (ends_s := expires_at_s(path)) is not None:
            replica.metrics.set_certificate_expiry(use, ends_s)
    replica.metrics.set_peers(len(fresh), max(0, len(replica.config.replicas()) - 1))


def console(replica: Replica) -> Console:
    """Make the console and its feed."""

    async def changed(epoch: int) -> int:
        return int((await replica.board.wait_newer(epoch)).epoch)

    source = FeedSource(
        status=replica.admin.status,
        regions=replica.admin.regions,
        changed=changed,
        events=replica.journal.follow,
    )
    feed = ConsoleFeed(source, replica.clock)
    replica.board.listen(lambda plan: feed.remember(plan, replica.topology))
    return Console(replica.config, replica.admin, feed, lambda: replica.topology)
