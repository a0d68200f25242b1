"""What people see of a replica: status, explanations, what-if, progress of operations.

Views hold nothing. They join what the parts know at the moment they are asked, so any replica
answers, and without etcd the answer is the last known good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from controlplane.adapters.admin_ports import (
    EffectView,
    Insight,
    LeaderView,
    Reads,
    Refusal,
    VoteView,
)
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.adapters.wire import unix_ms
from controlplane.clock import Clock
from controlplane.config import WeirConfig
from controlplane.decision import rules
from controlplane.decision.explain import explain, explain_alone
from controlplane.decision.goal import goal
from controlplane.decision.local import single_writer_moves
from controlplane.decision.rules import Judged, refusals
from controlplane.decision.state import RegionMemory, State
from controlplane.decision.votes import votes
from controlplane.decision.whatif import whatif
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.evidence import Evidence, Subscriber
from controlplane.model.ids import ChannelName, Epoch, RegionName, ReplicaId
from controlplane.model.intents import NO_INTENTS, Intents, Order, Readiness
from controlplane.model.load import load_bp, utilisation_bp
from controlplane.model.plan import Phase, RuleStep, Standing
from controlplane.model.topology import Region, Topology
from controlplane.runtime.board import PlanBoard
from controlplane.runtime.book import (
    DigestBook,
    converged_epoch,
    live_subscribers,
    silent_subscribers,
)
from controlplane.runtime.journal import Journal
from controlplane.runtime.lastknown import NEVER_MS, LastKnown
from controlplane.runtime.leadership import Elector
from controlplane.runtime.local import LocalOverrides
from controlplane.runtime.progress import progress
from controlplane.runtime.tick import DecisionLoop
from controlplane.v1 import admin_pb2

log = structlog.get_logger(__name__)

COORDINATED_MS: Final = 3_000
"""Without a linearizable read for this long etcd counts as gone for this replica."""
REFUSALS_SHOWN: Final = 3
"""Data planes named in the status when many refuse a plan."""


def state_known(
    store: EtcdPlanStore,
    loop: DecisionLoop,
    elector: Elector,
    answers: Callable[[], bool],
    clock: Clock,
) -> LastKnown[State]:
    """Keep the decision state for showing: our own while we lead, else etcd's last checkpoint."""

    def own() -> State | None:  # a tick that hangs in a write still has one, and leads no more
        return loop.state if elector.leadership is not None else None

    def decode(data: bytes) -> State | None:
        try:
            return State.from_bytes(data)
        except InvalidInputError as error:
            log.warning("decision_state_unreadable", error=str(error))
            return None

    return LastKnown(store.state, decode, own=own, answers=answers, clock=clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who this replica is."""

    cluster: str
    replica: ReplicaId
    region: RegionName


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Joins the parts of one replica for its edges."""

    me: Identity
    clock: Clock
    config: Callable[[], WeirConfig]
    topology: Callable[[], Topology]
    board: PlanBoard
    book: DigestBook
    loop: DecisionLoop
    store: EtcdPlanStore
    elector: Elector
    journal: Journal[Any, Any]
    intents: Callable[[], Intents]
    orders: Callable[[], Sequence[Order]]
    local: LocalOverrides
    drills: Callable[[], Mapping[str, float]]
    """End of each region's last completed drill, Unix s."""
    known: LastKnown[State]
    """The decision state as last read, for showing."""
    etcd_read_ms: Callable[[], int | None]
    """When etcd last answered this replica, monotonic ms."""
    unwritten: Callable[[], Sequence[admin_pb2.Operation]]
    """What this replica did by itself and etcd does not have yet."""

    def reads(self) -> Reads:
        """Return what the admin service looks at."""
        return Reads(
            cluster=self.me.cluster,
            replica=self.me.replica,
            region=self.me.region,
            topology=self.topology,
            plan=lambda: self.board.plan,
            served=lambda: self.local.served,
            entries=lambda: self.book.entries(self.clock.monotonic_ms()),
            subscribers=self.live,
            silent=self.silent,
            leader=self.leader,
            evidence=lambda: self.loop.evidence,
            insight=self.insight,
            explain=self.explain,
            configured=lambda: self.config().replicas(),
            alarms=self.alarms,
            journal=self.journal,
            unwritten=self.unwritten,
            orders=self.standing,
            lag_ms=self.lag_ms,
            old_ms=self.old_ms,
            clock=self.clock,
        )

    def live(self) -> Sequence[Subscriber]:
        """Return the live subscribers of all replicas."""
        return live_subscribers(self.book.entries(self.clock.monotonic_ms()))

    def silent(self) -> Sequence[Subscriber]:
        """Return the subscribers of all replicas that fell silent while they were behind."""
        return silent_subscribers(self.book.entries(self.clock.monotonic_ms()), self.board.epoch)

    def converged(self) -> Epoch:
        """Return the epoch that every live subscriber has applied."""
        return converged_epoch(self.live(), self.board.epoch)

    def leader(self) -> LeaderView:
        """Return who leads, as far as this replica knows."""
        info = self.elector.leader_info
        coordinated = info.read_age_ms is not None and info.read_age_ms < COORDINATED_MS
        beat_ms, read_ms = info.heartbeat_age_ms, self.etcd_read_ms()
        if not coordinated and beat_ms is not None and read_ms is not None:
            # the election counts no time in which it saw nothing; who looks wants to know that time
            beat_ms = max(beat_ms, self.clock.monotonic_ms() - read_ms)
        return LeaderView(
            replica=info.replica,
            region=info.region,
            term=info.term,
            heartbeat_age_ms=beat_ms,
            coordinated=coordinated,
        )

    async def state(self) -> State:
        """Return the decision state: our own while we lead, else etcd's last checkpoint.

        Without a quorum it fails at once: who asks has no time to wait for what cannot come.
        """
        if self.loop.state is not None:
            return self.loop.state
        if not self.leader().coordinated:
            raise UnavailableError("etcd has no quorum here, and with it the decision's state")
        committed = await self.store.load()
        if committed is None or not committed.state:
            raise UnavailableError("no decision state in etcd yet")
        return State.from_bytes(committed.state)

    def old_ms(self) -> int | None:
        """Return None while etcd answers, else how long ago it last did, NEVER_MS for never."""
        if self.leader().coordinated:
            return None
        read_ms = self.etcd_read_ms()
        return NEVER_MS if read_ms is None else self.clock.monotonic_ms() - read_ms

    async def insight(self) -> Insight:
        """Tell where every region's load is going and what each vantage says of it; nothing while
        no state was ever read."""
        known = await self.known.get()
        state, topology = known.value, self.topology()
        if state is None:
            return Insight(goal={}, votes={}, old_ms=known.old_ms)
        return Insight(
            goal=goal(topology, state, self.intents()),
            votes={
                region.name: [
                    VoteView(
                        vantage=vote.vantage,
                        opinion=vote.opinion,
                        last_success_age_ms=vote.last_success_age_ms,
                        failures=vote.failures,
                    )
                    for vote in votes(state, region.name, topology.policy)
                ]
                for region in topology.regions
            },
            old_ms=known.old_ms,
        )

    async def explain(self, channel: ChannelName) -> tuple[Sequence[RuleStep], int | None]:
        """Tell why a channel's weights are what they are; by the plan alone while no state was ever
        read."""
        plan = self.board.plan
        if plan is None:
            raise UnavailableError("no plan yet")
        known = await self.known.get()
        if known.value is None:
            return explain_alone(plan, channel), known.old_ms
        return explain(self.topology(), known.value, plan, channel), known.old_ms

    async def what_if(self, intents: Intents) -> EffectView:
        """Work out what other intents would lead to, by the code that carries them out."""
        state, evidence = await self.state(), self.loop.evidence
        if evidence is None:
            raise UnavailableError("this replica has just started; ask again in a second", 1000)
        result = whatif(
            self.topology(), state, evidence, intents, self._drill_age_ms(), held=self.intents()
        )
        return EffectView(
            routes=result.plan.routes,
            regions=tuple(
                (str(r.region), r.load_before_bp, r.load_after_bp, r.utilisation_bp)
                for r in result.regions
            ),
            refusals=tuple(
                Refusal(rule=r.rule, message=r.message, remedy=r.remedy) for r in result.refusals
            ),
        )

    async def stands(self, region: RegionName) -> Standing:
        """Return where a region stands, as the last commit has it."""
        memory = (await self.state()).memory.regions.get(region, RegionMemory())
        return Standing(phase=memory.phase, since_ms=memory.since_ms)

    def local_what_if(self, intents: Intents) -> EffectView:
        """Work out what intents would lead to at this replica alone."""
        topology = self.topology()
        before, after = self.local.would_be(intents)
        intents = replace(intents, readiness=self._told())
        found = refusals(
            Judged(
                topology=topology,
                state=State.initial(topology),
                evidence=self.loop.evidence or Evidence(regions=()),
                intents=intents,
                before=before,
                after=after,
                drill_age_ms=self._drill_age_ms(),
                held=self.local.intents,
            )
        )
        found += [
            rules.Refusal(
                rule="single_writer",
                message=f"{name} has a single writer: only a committed plan can fence the other",
                remedy="Bring etcd's quorum back.",
            )
            for name in single_writer_moves(topology, before, after)
        ]
        return EffectView(
            routes=after.routes,
            regions=tuple(
                (
                    str(region.name),
                    load_bp(topology, before, region.name),
                    load_bp(topology, after, region.name),
                    utilisation_bp(topology, after, region.name),
                )
                for region in topology.regions
            ),
            refusals=tuple(Refusal(rule=r.rule, message=r.message, remedy=r.remedy) for r in found),
        )

    def _told(self) -> tuple[Readiness, ...]:
        """Return what was told of the regions and still counts: without etcd nobody expires it."""
        now_ms = self.clock.wall_ms()
        return tuple(told for told in self.intents().readiness if told.until_ms > now_ms)

    def lag_ms(self, region: Region) -> float | None:
        """Return how far a region's replication lags, None when nobody knows."""
        evidence = self.loop.evidence
        seen = {r.region: r for r in evidence.regions} if evidence else {}
        queue = self.topology().ready(region).queue
        told = replace(NO_INTENTS, readiness=self._told())
        return rules.lag_ms(queue, seen.get(region.name), told, region.name)

    def _drill_age_ms(self) -> dict[RegionName, int]:
        now_ms = self.clock.wall_ms()
        return {
            RegionName(name): max(0, now_ms - round(ended_s * 1000))
            for name, ended_s in self.drills().items()
        }

    def standing(self) -> Sequence[Order]:
        """Return what stands by an operator's word, here too; the first to end first."""
        plan = self.board.plan
        back = {s.name for s in plan.regions if s.phase is Phase.HEALTHY} if plan else set()
        # a failback is over when the region is back, however long its key is kept
        found = [o for o in self.orders() if o.kind != "failback" or o.target not in back]
        held = self.local.held
        ahead_ms = self.clock.wall_ms() - self.clock.monotonic_ms()
        found += [
            Order(
                key=one.key,
                kind=one.key[0],
                target=one.key[1],
                by=one.by,
                reason=one.reason.partition(": ")[2],
                expires_ms=one.until_ms + ahead_ms,
                local=True,
            )
            for one in (held.asked if held else ())
        ]
        return sorted(found, key=lambda o: (o.expires_ms or math.inf, o.key))

    def progress(self, operation: admin_pb2.Operation) -> admin_pb2.Operation:
        """Bring an operation up to date with the plan in force."""
        if operation.done or operation.kind == "drill":
            return operation  # a drill goes on after it has converged; its keeper tells
        now = progress(
            operation.kind,
            operation.target,
            {
                w.region: w.weight_bp
                for route in operation.effect.routes
                if route.channel == operation.target
                for w in route.weights
            },
            unix_ms(operation.created_at),
            self.board.plan,
            self.converged(),
        )
        operation.stage, operation.done = now.stage, now.done
        operation.epoch, operation.message = now.epoch, now.message
        return operation

    def alarms(self) -> Sequence[str]:
        """Say in plain words what an operator should look at."""
        alarms = []
        leader = self.leader()
        held = self.local.held
        if held is not None:
            alarms.append(
                f"local override at {self.me.replica}, without a quorum: "
                f"{held.told(self.clock.monotonic_ms())}; only its own data planes follow it"
            )
        if not leader.coordinated:
            alarms.append(
                "etcd does not answer with a quorum: the last known good plan stays in force"
            )
        elif not leader.replica:
            alarms.append("no leader is known")
        if self.loop.uncommitted_ticks:
            alarms.append(f"{self.loop.uncommitted_ticks} ticks could not be committed")
        refusing = [s for s in self.live() if s.error]
        alarms += [f"{s.name} refuses {s.error}" for s in refusing[:REFUSALS_SHOWN]]
        if len(refusing) > REFUSALS_SHOWN:
            alarms.append(f"{len(refusing) - REFUSALS_SHOWN} more refuse what they were sent")
        return alarms
