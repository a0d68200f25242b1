"""The inbox: many agents' reports become one digest.

Rules
- Reports are cumulative since the agent's boot; the inbox adds what each has gained, so its own
  totals only grow while agents come, go and restart. Lost, repeated and reordered reports do no
  harm.
- The first report of a boot (seq 1) counts whole. An agent that arrives with a later seq was
  counted by another replica before: its report is the baseline and counts nothing.
- A region is one vantage: of several agents' views of an ingress the best counts, because one
  agent that reaches a region proves that it can be reached.
- Agents silent for `FORGET_MS` are forgotten; their counts stay in the totals.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from controlplane.model.epochs import believable
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.evidence import (
    CellCounters,
    Digest,
    IngressView,
    Outcomes,
    RegionEvidence,
    Report,
    Subscriber,
)
from controlplane.model.ids import AgentId, ChannelName, Epoch, RegionName, ReplicaId
from controlplane.model.latency import merge, subtract
from controlplane.model.topology import Topology

FORGET_MS: Final = 600_000
"""An agent unheard of for ten minutes is forgotten: nothing waits for it any more."""


def gained(newer: Outcomes, older: Outcomes) -> Outcomes:
    """Return what `newer` has over `older`; InvalidInputError when a counter went back."""
    ok, error, declined = (
        newer.ok - older.ok,
        newer.error - older.error,
        newer.declined - older.declined,
    )
    if min(ok, error, declined) < 0:
        raise InvalidInputError(
            "cells", "a cumulative counter went back within one boot; draw a new boot id instead"
        )
    latency = subtract(newer.latency, older.latency)
    return Outcomes(ok=ok, error=error, declined=declined, latency=latency)


def added(a: Outcomes, b: Outcomes) -> Outcomes:
    """Add two sets of outcomes."""
    return Outcomes(
        ok=a.ok + b.ok,
        error=a.error + b.error,
        declined=a.declined + b.declined,
        latency=merge(a.latency, b.latency),
    )


@dataclass(slots=True)
class _Agent:
    """The last report of one agent and when it came."""

    report: Report
    seen_ms: int


@dataclass(slots=True)
class _Totals:
    """What the inbox has counted for one region since this replica's boot."""

    traffic: dict[ChannelName, Outcomes] = field(default_factory=dict)
    probe: dict[ChannelName, Outcomes] = field(default_factory=dict)
    ingress_ok: defaultdict[RegionName, int] = field(default_factory=lambda: defaultdict(int))
    ingress_failed: defaultdict[RegionName, int] = field(default_factory=lambda: defaultdict(int))
    newest_ms: int = 0


class Inbox:
    """Merges reports. Time is passed in; nothing here waits."""

    def __init__(
        self, topology: Topology, replica: ReplicaId, region: RegionName, boot: int, max_agents: int
    ) -> None:
        self.reconfigure(topology)
        self._replica = replica
        self._region = region
        self._boot = boot
        self._max_agents = max_agents
        self._seq = 0
        self._agents: dict[tuple[RegionName, AgentId], _Agent] = {}
        self._totals: dict[RegionName, _Totals] = {}

    def reconfigure(self, topology: Topology) -> None:
        """Use another topology from now on; totals stay."""
        self._topology = topology
        self._regions = frozenset(region.name for region in topology.regions)
        self._channels = frozenset(channel.name for channel in topology.channels)

    def accept(self, report: Report, now_ms: int) -> bool:
        """Count a report; False for a repetition, which changes nothing.

        Raises InvalidInputError for unknown names or counters that went back, UnavailableError
        when too many agents report.
        """
        self._check_names(report)
        key = (report.region, report.agent)
        known = self._agents.get(key)
        if known is None and len(self._agents) >= self._max_agents:
            self._forget(now_ms)
            if len(self._agents) >= self._max_agents:
                raise UnavailableError(
                    f"this replica takes at most {self._max_agents} agents; report to another one"
                )
        same_boot = known is not None and known.report.boot == report.boot
        if same_boot and known is not None and report.seq <= known.report.seq:
            return False
        if same_boot and known is not None:
            self._count(report, known.report)
        elif report.seq == 1:
            self._count(report, None)
        totals = self._totals.setdefault(report.region, _Totals())
        totals.newest_ms = now_ms
        self._agents[key] = _Agent(report, now_ms)
        return True

    def _check_names(self, report: Report) -> None:
        regions, channels = self._regions, self._channels
        if report.region not in regions:
            raise InvalidInputError(
                "region", f"unknown region {report.region!r}; known: {', '.join(sorted(regions))}"
            )
        for cell in report.cells:
            if cell.channel not in channels:
                raise InvalidInputError(
                    "cells.channel",
                    f"unknown channel {cell.channel!r}; known: {', '.join(sorted(channels))}",
                )
        for view in report.ingress:
            if view.target not in regions:
                raise InvalidInputError("ingress.region", f"unknown region {view.target!r}")

    def _count(self, report: Report, before: Report | None) -> None:
        old_cells = {cell.channel: cell for cell in before.cells} if before else {}
        old_views = {view.target: view for view in before.ingress} if before else {}
        nothing = Outcomes()
        # everything is computed before anything is stored: a refused report changes nothing
        gains: list[tuple[ChannelName, Outcomes, Outcomes]] = []
        for cell in report.cells:
            old = old_cells.get(cell.channel)
            gains.append(
                (
                    cell.channel,
                    gained(cell.traffic, old.traffic if old else nothing),
                    gained(cell.probe, old.probe if old else nothing),
                )
            )
        views: list[tuple[RegionName, int, int]] = []
        for view in report.ingress:
            past = old_views.get(view.target)
            ok = view.ok - (past.ok if past else 0)
            failed = view.failed - (past.failed if past else 0)
            if ok < 0 or failed < 0:
                raise InvalidInputError("ingress", "a cumulative counter went back within one boot")
            views.append((view.target, ok, failed))
        totals = self._totals.setdefault(report.region, _Totals())
        for channel, traffic, probe in gains:
            totals.traffic[channel] = added(totals.traffic.get(channel, nothing), traffic)
            totals.probe[channel] = added(totals.probe.get(channel, nothing), probe)
        for target, ok, failed in views:
            totals.ingress_ok[target] += ok
            totals.ingress_failed[target] += failed

    def _forget(self, now_ms: int) -> None:
        for key, agent in list(self._agents.items()):
            if now_ms - agent.seen_ms > FORGET_MS:
                del self._agents[key]

    def highest_epoch(self, committed: Epoch) -> Epoch:
        """Highest epoch an agent of this replica has ever seen, as far as it can be believed."""
        told = (agent.report.highest_epoch for agent in self._agents.values())
        return Epoch(max((e for e in told if believable(e, committed)), default=0))

    def agents(self, now_ms: int) -> tuple[Subscriber, ...]:
        """Agents known, sorted by region and name, with what they have applied and their age."""
        return tuple(
            Subscriber(
                name=str(agent),
                kind="agent",
                region=str(region),
                applied_epoch=entry.report.applied_epoch,
                age_ms=now_ms - entry.seen_ms,
            )
            for (region, agent), entry in sorted(self._agents.items())
        )

    def digest(
        self,
        now_ms: int,
        *,
        subscribers: tuple[Subscriber, ...] = (),
        plan_epoch: Epoch = Epoch(0),
        highest_epoch: Epoch = Epoch(0),
        version: str = "",
    ) -> Digest:
        """Build the next digest (one a tick)."""
        self._seq += 1
        self._forget(now_ms)
        return Digest(
            replica=self._replica,
            region=self._region,
            boot=self._boot,
            seq=self._seq,
            regions=tuple(
                self._region_evidence(region, totals, now_ms)
                for region, totals in sorted(self._totals.items())
            ),
            subscribers=subscribers,
            plan_epoch=plan_epoch,
            highest_epoch=Epoch(max(highest_epoch, self.highest_epoch(plan_epoch))),
            version=version,
        )

    def _region_evidence(self, region: RegionName, totals: _Totals, now_ms: int) -> RegionEvidence:
        live = [
            entry
            for (where, _), entry in self._agents.items()
            if where == region and now_ms - entry.seen_ms <= self._topology.policy.silent_after_ms
        ]
        offsets = sorted(
            e.report.clock_offset_ms for e in live if e.report.clock_offset_ms is not None
        )
        lags: dict[str, float] = {}
        for entry in live:
            for queue, lag_s in entry.report.queue_lag_s.items():
                lags[queue] = max(lags.get(queue, 0.0), lag_s)
        expected = next((r.agents_expected for r in self._topology.regions if r.name == region), 0)
        channels = sorted(set(totals.traffic) | set(totals.probe))
        return RegionEvidence(
            region=region,
            report_age_ms=now_ms - totals.newest_ms,
            agents_live=len(live),
            agents_expected=expected,
            loop_lag_ms=min((e.report.loop_lag_ms for e in live), default=0.0),
            clock_offset_ms=offsets[len(offsets) // 2] if offsets else None,
            queue_lag_s=dict(sorted(lags.items())),
            cells=tuple(
                CellCounters(
                    channel=channel,
                    traffic=totals.traffic.get(channel, Outcomes()),
                    probe=totals.probe.get(channel, Outcomes()),
                )
                for channel in channels
            ),
            ingress=self._views(totals, live, now_ms),
        )

    def _views(self, totals: _Totals, live: list[_Agent], now_ms: int) -> tuple[IngressView, ...]:
        views: list[IngressView] = []
        for target in sorted(set(totals.ingress_ok) | set(totals.ingress_failed)):
            seen = [
                (view, now_ms - entry.seen_ms)
                for entry in live
                for view in entry.report.ingress
                if view.target == target
            ]
            ages = [
                v.last_success_age_ms + age for v, age in seen if v.last_success_age_ms is not None
            ]
            views.append(
                IngressView(
                    target=target,
                    ok=totals.ingress_ok[target],
                    failed=totals.ingress_failed[target],
                    last_success_age_ms=min(ages) if ages else None,
                    failures_since_success=min(
                        (view.failures_since_success for view, _ in seen), default=0
                    ),
                )
            )
        return tuple(views)
