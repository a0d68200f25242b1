"""AdminService, the read side: everything is answered by any replica, from what it holds itself.

Without etcd the answers are the last known good: `coordinated` and `last_known` say so and how old
they are. Only events and the decision state are read from etcd, and never waited for long; while it
does not answer they come from this replica's memory of what it has read.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from controlplane import __version__
from controlplane.adapters.admin_orders import encode_order
from controlplane.adapters.admin_ports import LeaderView, Reads
from controlplane.adapters.rpc_errors import typed_errors, typed_stream_errors
from controlplane.adapters.wire import encode_plan, encode_route, encode_weights, timestamp
from controlplane.adapters.wire_evidence import encode_subscriber
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.ids import ChannelName
from controlplane.model.load import load_bp, utilisation_bp
from controlplane.model.plan import Plan
from controlplane.v1 import admin_pb2, admin_pb2_grpc, common_pb2

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000
LAGGARDS_MAX: Final = 50
CAPACITY_ALARM_MS: Final = 3_000


def page_size(asked: int) -> int:
    """Return the size of a page; InvalidInputError when out of range."""
    if not 0 <= asked <= PAGE_MAX:
        raise InvalidInputError("page_size", f"must be 0 (for {PAGE_DEFAULT}) to {PAGE_MAX}")
    return asked or PAGE_DEFAULT


def page_start(token: str) -> int | None:
    """Return the position a page token stands for, None for the first page."""
    if not token:
        return None
    if not token.isdigit():
        raise InvalidInputError("page_token", "is not one of ours; pass next_page_token unchanged")
    return int(token)


class AdminReads(admin_pb2_grpc.AdminServiceServicer):
    """The read methods; the mutations live in a subclass."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def _plan(self) -> Plan:
        plan = self._reads.plan()
        if plan is None:
            raise UnavailableError(
                "no plan yet: no leader has committed one, or etcd is not reachable"
            )
        return plan

    def status(self) -> admin_pb2.GetStatusResponse:
        """Build the status (shared with /api/status and the console)."""
        reads = self._reads
        plan, leader, old_ms = reads.plan(), reads.leader(), reads.old_ms()
        subscribers = reads.subscribers()
        lagging = [s for s in subscribers if plan and s.applied_epoch < plan.epoch]
        answer = admin_pb2.GetStatusResponse(
            cluster=reads.cluster,
            replica=reads.replica,
            region=reads.region,
            leader=leader.replica,
            leader_region=leader.region,
            term=leader.term,
            coordinated=leader.coordinated,
            heartbeat_age_ms=-1 if leader.heartbeat_age_ms is None else leader.heartbeat_age_ms,
            replicas=self._replicas(leader),
            laggards=[encode_subscriber(s) for s in lagging[:LAGGARDS_MAX]],
            subscribers=len(subscribers),
            silent=[encode_subscriber(s) for s in reads.silent()[:LAGGARDS_MAX]],
            version=__version__,
            alarms=reads.alarms(),
            last_known=self._last_known(old_ms),
            orders=map(encode_order, reads.orders()),
        )
        running = reads.journal.running_failover()
        if running is not None:
            answer.failover.CopyFrom(running)
        if plan is not None:
            answer.plan_epoch = plan.epoch
            answer.committed_at.CopyFrom(timestamp(plan.committed_at_ms))
            answer.frozen, answer.panic = plan.frozen, plan.panic
            served = reads.served() or plan
            answer.plan.CopyFrom(encode_plan(served))
            topology = reads.topology()
            for region in topology.regions:
                answer.load_bp[region.name] = load_bp(topology, served, region.name)
        return answer

    def _last_known(self, old_ms: int | None) -> admin_pb2.LastKnown | None:
        """Say how old an answer is; None when etcd confirmed it."""
        if old_ms is None:
            return None
        read_at = timestamp(self._reads.clock.wall_ms() - old_ms) if old_ms >= 0 else None
        return admin_pb2.LastKnown(age_ms=old_ms, read_at=read_at)

    def _replicas(self, leader: LeaderView) -> list[admin_pb2.ReplicaState]:
        heard = {str(digest.replica): (digest, age) for digest, age in self._reads.entries()}
        names = dict(self._reads.configured())
        out = []
        for name in sorted(set(names) | set(heard)):
            digest, age_ms = heard.get(name, (None, -1))
            out.append(
                admin_pb2.ReplicaState(
                    id=name,
                    region=str(digest.region) if digest else names[name][0],
                    digest_age_ms=0 if name == self._reads.replica else age_ms,
                    plan_epoch=digest.plan_epoch if digest else 0,
                    leader=name == leader.replica,
                    version=digest.version if digest else "",
                )
            )
        return out

    @typed_errors
    async def GetStatus(  # noqa: N802
        self, request: admin_pb2.GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.GetStatusResponse:
        """Answer what an operator needs first."""
        del request, context
        return self.status()

    @typed_errors
    async def ListRegions(  # noqa: N802
        self, request: admin_pb2.ListRegionsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListRegionsResponse:
        """List the regions with their evidence."""
        del request, context
        return await self.regions()

    async def regions(self) -> admin_pb2.ListRegionsResponse:
        """Build the regions (shared with the console)."""
        plan = self._reads.plan()
        wire_plan = encode_plan(plan) if plan else common_pb2.Plan()
        states = {state.name: state for state in wire_plan.regions}
        evidence = self._reads.evidence()
        heard = {str(r.region): r for r in evidence.regions} if evidence else {}
        topology, insight = self._reads.topology(), await self._reads.insight()
        applied: dict[str, int] = {}
        for subscriber in self._reads.subscribers():
            held = applied.get(subscriber.region, subscriber.applied_epoch)
            applied[subscriber.region] = min(held, subscriber.applied_epoch)
        out = []
        for region in topology.regions:
            state = states.get(region.name, common_pb2.RegionState(name=region.name))
            seen = heard.get(str(region.name))
            message = admin_pb2.Region(
                name=region.name,
                role=region.role,
                phase=state.phase,
                verdict=state.verdict,
                drained=state.drained,
                cause=state.cause,
                capacity_tps=region.capacity_tps,
                report_age_ms=-1
                if seen is None or seen.report_age_ms is None
                else seen.report_age_ms,
                agents_live=seen.agents_heard(topology.policy.silent_after_ms) if seen else 0,
                agents_expected=region.agents_expected,
                load_bp=load_bp(topology, plan, region.name) if plan else 0,
                target_load_bp=insight.goal.get(region.name),
                utilisation_bp=utilisation_bp(topology, plan, region.name) if plan else 0,
                applied_epoch=applied.get(str(region.name), -1),
                votes=[
                    admin_pb2.Vote(
                        vantage=vote.vantage,
                        opinion=vote.opinion,
                        last_success_age_ms=-1
                        if vote.last_success_age_ms is None
                        else vote.last_success_age_ms,
                        failures=vote.failures,
                    )
                    for vote in insight.votes.get(region.name, ())
                ],
            )
            if state.HasField("since"):
                message.since.CopyFrom(state.since)
            if seen is not None and seen.clock_offset_ms is not None:
                message.clock_offset_ms = seen.clock_offset_ms
            lag_ms = self._reads.lag_ms(region)
            if lag_ms is not None and math.isfinite(lag_ms):
                message.replication_lag_ms = round(lag_ms)
            out.append(message)
        return admin_pb2.ListRegionsResponse(
            regions=out, last_known=self._last_known(insight.old_ms)
        )

    @typed_errors
    async def ListChannels(  # noqa: N802
        self, request: admin_pb2.ListChannelsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListChannelsResponse:
        """List the channels with route and breakers."""
        del request, context
        plan = encode_plan(self._plan())
        routes = {route.channel: route for route in plan.routes}
        channels = []
        for channel in self._reads.topology().channels:
            message = admin_pb2.ChannelState(
                name=channel.name,
                breakers=[b for b in plan.breakers if b.channel == channel.name],
                regions=[str(region) for region in channel.regions],
            )
            if channel.name in routes:
                message.route.CopyFrom(routes[channel.name])
            channels.append(message)
        return admin_pb2.ListChannelsResponse(
            channels=channels, last_known=self._last_known(self._reads.old_ms())
        )

    @typed_errors
    async def ListAgents(  # noqa: N802
        self, request: admin_pb2.ListAgentsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListAgentsResponse:
        """List the agents, whichever replica they report to."""
        del context
        size, start = page_size(request.page_size), page_start(request.page_token) or 0
        found: dict[tuple[str, str], admin_pb2.Agent] = {}
        for digest, age_ms in self._reads.entries():
            for subscriber in digest.subscribers:
                if subscriber.kind != "agent":
                    continue
                agent = admin_pb2.Agent(
                    id=subscriber.name.removeprefix(f"{subscriber.region}/"),
                    region=subscriber.region,
                    replica=str(digest.replica),
                    applied_epoch=subscriber.applied_epoch,
                    age_ms=subscriber.age_ms + age_ms,
                    version=subscriber.version,
                )
                known = found.get((agent.region, agent.id))
                if known is None or agent.age_ms < known.age_ms:
                    found[agent.region, agent.id] = agent
        ordered = [found[key] for key in sorted(found)]
        end = start + size
        return admin_pb2.ListAgentsResponse(
            agents=ordered[start:end], next_page_token=str(end) if end < len(ordered) else ""
        )

    @typed_errors
    async def ListEvents(  # noqa: N802
        self, request: admin_pb2.ListEventsRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListEventsResponse:
        """List events, newest first."""
        del context
        size, before = page_size(request.page_size), page_start(request.page_token)
        events, following, old_ms = await self._reads.journal.events(size, before)
        if old_ms is not None and before is None:
            events = [*reversed(list(map(self._own_event, self._reads.unwritten()))), *events]
        return admin_pb2.ListEventsResponse(
            events=events,
            next_page_token="" if following is None else str(following),
            last_known=self._last_known(old_ms),
        )

    def _own_event(self, done: admin_pb2.Operation) -> admin_pb2.Event:
        """Tell as an event what this replica did by itself."""
        plan = self._reads.plan()
        regions = {str(region.name) for region in self._reads.topology().regions}
        channels = {str(channel.name) for channel in self._reads.topology().channels}
        return admin_pb2.Event(
            at=done.created_at,
            kind=done.kind,
            region=done.target if done.target in regions else "",
            channel=done.target if done.target in channels else "",
            message=f"{done.message}; {done.reason} (by {done.by})",
            epoch=plan.epoch if plan else 0,
            severity="warning",
        )

    @typed_stream_errors
    async def WatchEvents(  # noqa: N802
        self, request: admin_pb2.WatchEventsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[admin_pb2.Event]:
        """Yield past events, then new ones as they are committed."""
        del context
        if not 0 <= request.backlog <= PAGE_MAX:
            raise InvalidInputError("backlog", f"must be 0 to {PAGE_MAX}")
        async for event in self._reads.journal.follow(request.backlog):
            yield event

    @typed_errors
    async def ListFailovers(  # noqa: N802
        self, request: admin_pb2.ListFailoversRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ListFailoversResponse:
        """List failovers, newest first."""
        del context
        size, start = page_size(request.page_size), page_start(request.page_token) or 0
        end = start + size
        found = await self._reads.journal.failovers(end + 1)
        return admin_pb2.ListFailoversResponse(
            failovers=found[start:end],
            next_page_token=str(end) if len(found) > end else "",
            last_known=None
            if self._reads.old_ms() is None
            else self._last_known(self._reads.journal.age_ms),
        )

    @typed_errors
    async def ExplainRoute(  # noqa: N802
        self, request: admin_pb2.ExplainRouteRequest, context: grpc.aio.ServicerContext
    ) -> admin_pb2.ExplainRouteResponse:
        """Tell why a route is what it is."""
        del context
        plan = self._plan()
        route = plan.route(ChannelName(request.channel))
        if route is None:
            known = ", ".join(str(r.channel) for r in plan.routes)
            raise InvalidInputError(
                "channel", f"unknown channel {request.channel[:64]!r}; known: {known}"
            )
        steps, old_ms = await self._reads.explain(route.channel)
        return admin_pb2.ExplainRouteResponse(
            route=encode_route(route),
            epoch=plan.epoch,
            last_known=self._last_known(old_ms),
            steps=[
                admin_pb2.RuleStep(rule=s.rule, detail=s.detail, weights=encode_weights(s.weights))
                for s in steps
            ],
        )


def servicer_methods() -> Any:
    """Return the service's descriptor, for tests that look at every method."""
    return admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
