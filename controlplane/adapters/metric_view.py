"""Renders what *is*: the last plan, evidence and digest, at the moment of a scrape.

Nothing is copied into gauges, so what leaves the configuration or the plan leaves no stale series,
and the number of series is regions x channels by construction. Values are replaced whole by the
owner (`prometheus.Metrics`) between ticks; a scrape reads one of them and never half of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from controlplane.adapters.metric_catalogue import (
    BY_NAME,
    ETCD_EVENTS,
    ETCD_FAILURES,
    FAILOVER_KINDS,
    LOCK_STATES,
    MAX_QUEUES,
    OTHER,
    OUTCOMES,
)
from controlplane.model.evidence import Digest, Outcomes, RegionEvidence
from controlplane.model.ids import Epoch
from controlplane.model.plan import Breaker, FailoverRecord, Phase, Plan, Verdict
from controlplane.model.topology import Topology

NEVER: Final = float("inf")
"""Age of what was never seen."""

XDS_COUNTED: Final = (
    "weir_xds_acks",
    "weir_xds_nacks",
    "weir_xds_pushes",
    "weir_xds_pushed_bytes",
)
"""Counters of the ADS server, each by type of resource."""

RENDERED: Final = frozenset(
    {
        *XDS_COUNTED,
        "weir_plan_epoch",
        "weir_plan_committed_timestamp_seconds",
        "weir_frozen",
        "weir_panic",
        "weir_route_weight_bp",
        "weir_route_shed_bp",
        "weir_region_phase",
        "weir_region_verdict",
        "weir_region_drained",
        "weir_breaker_state",
        "weir_failover_running",
        "weir_region_capacity_tps",
        "weir_drill_last_timestamp_seconds",
        "weir_agents_expected",
        "weir_agents_live",
        "weir_report_age_seconds",
        "weir_clock_offset_seconds",
        "weir_queue_lag_seconds",
        "weir_payments",
        "weir_probes",
        "weir_subscribers",
        "weir_subscriber_epoch_lag",
        "weir_channel_demand_tps",
        "weir_override_expiry_timestamp_seconds",
        "weir_etcd_calls",
        "weir_etcd_failures",
        "weir_etcd_events",
        "weir_lock_state",
    }
)
"""Names this view renders; all others are kept by prometheus_client itself."""


class EtcdCounters(Protocol):
    """What the etcd client counts; the keys are names of calls and statuses, fixed in its code."""

    calls: Counter[str]
    failures: Counter[str]
    rotations: int
    ambiguous: int
    logins: int
    watch_resumes: int
    watch_relists: int


_NO_PLAN: Final = Plan(epoch=Epoch(0))


class View:
    """Renders what is: the last plan, evidence and digest, at the moment of the scrape."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.plan: Plan | None = None
        self.running: FailoverRecord | None = None
        self.digest: Digest | None = None
        self.evidence: dict[str, RegionEvidence] = {}
        self.subscribers: dict[str, int] = {}
        self.lags: dict[str, int] = {}
        self.overrides: dict[str, float] = {}
        self.drills: dict[str, float] = {}
        self.etcd: EtcdCounters | None = None
        self.xds: Mapping[str, Mapping[str, int]] = {}
        self.lock_state: str | None = None
        # the first names seen keep their series: an agent that invents names makes no new ones
        self._queues: dict[str, set[str]] = {}

    def region(self, name: str) -> str:
        """Return the name if it is configured, else `other`."""
        return name if any(r.name == name for r in self.topology.regions) else OTHER

    def describe(self) -> Iterator[Metric]:
        """Name every family, so that the registry finds duplicates without a scrape."""
        for name in sorted(RENDERED):
            yield _family(name)

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the current state."""
        yield from self._plan_families()
        yield from self._region_families()
        yield from self._outcome_families()
        yield from self._etcd_families()
        for name, counts in self.xds.items():
            yield _counter_family(name, {(word,): count for word, count in counts.items()})
        yield _gauge_family("weir_subscribers", {(k,): v for k, v in self.subscribers.items()})
        yield _gauge_family("weir_subscriber_epoch_lag", {(k,): v for k, v in self.lags.items()})
        states = (*LOCK_STATES, OTHER) if self.lock_state == OTHER else LOCK_STATES
        yield _gauge_family(
            "weir_lock_state",
            {(s,): s == self.lock_state for s in states} if self.lock_state else {},
        )
        channels = {str(channel.name): channel for channel in self.topology.channels}
        yield _gauge_family(
            "weir_channel_demand_tps", {(n,): c.demand_tps for n, c in channels.items()}
        )
        yield _gauge_family(
            "weir_override_expiry_timestamp_seconds",
            {(n,): at for n, at in self.overrides.items() if n in channels},
        )

    def _plan_families(self) -> Iterator[Metric]:
        plan = self.plan or _NO_PLAN
        yield _gauge_family("weir_plan_epoch", {(): plan.epoch})
        yield _gauge_family(
            "weir_plan_committed_timestamp_seconds", {(): plan.committed_at_ms / 1000}
        )
        yield _gauge_family("weir_frozen", {(): plan.frozen})
        yield _gauge_family("weir_panic", {(): plan.panic})
        yield _gauge_family(
            "weir_route_weight_bp",
            {(r.channel, region): bp for r in plan.routes for region, bp in r.weights},
        )
        yield _gauge_family("weir_route_shed_bp", {(r.channel,): r.shed_bp for r in plan.routes})
        yield _gauge_family(
            "weir_region_phase",
            {(r.name, phase): r.phase is phase for r in plan.regions for phase in Phase},
        )
        yield _gauge_family(
            "weir_region_verdict",
            {(r.name, word): r.verdict is word for r in plan.regions for word in Verdict},
        )
        yield _gauge_family("weir_region_drained", {(r.name,): r.drained for r in plan.regions})
        yield _gauge_family(
            "weir_breaker_state",
            {(b.region, b.channel, s): b.state is s for b in plan.breakers for s in Breaker},
        )

    def _region_families(self) -> Iterator[Metric]:
        regions = self.topology.regions
        running = (self.running.region, self.running.kind) if self.running else None
        known = {str(r.name): self.evidence.get(r.name) for r in regions}
        seen = {name: evidence for name, evidence in known.items() if evidence is not None}
        silent_ms = self.topology.policy.silent_after_ms
        yield _gauge_family(
            "weir_failover_running",
            {(r.name, kind): running == (r.name, kind) for r in regions for kind in FAILOVER_KINDS},
        )
        yield _gauge_family(
            "weir_region_capacity_tps", {(r.name,): r.capacity_tps for r in regions}
        )
        yield _gauge_family(
            "weir_drill_last_timestamp_seconds",
            {(r.name,): self.drills.get(r.name, 0) for r in regions},
        )
        yield _gauge_family(
            "weir_agents_expected",
            {
                (r.name,): seen[r.name].agents_expected if r.name in seen else r.agents_expected
                for r in regions
            },
        )
        yield _gauge_family(
            "weir_agents_live",
            {(n,): e.agents_heard(silent_ms) if e else 0 for n, e in known.items()},
        )
        yield _gauge_family(
            "weir_report_age_seconds",
            {
                (n,): NEVER if e is None or e.report_age_ms is None else e.report_age_ms / 1000
                for n, e in known.items()
            },
        )
        yield _gauge_family(
            "weir_clock_offset_seconds",
            {
                (n,): e.clock_offset_ms / 1000
                for n, e in seen.items()
                if e.clock_offset_ms is not None
            },
        )
        yield _gauge_family("weir_queue_lag_seconds", self._queue_lags(seen))

    def _etcd_families(self) -> Iterator[Metric]:
        calls: dict[tuple[str, ...], float] = {}
        failures: dict[tuple[str, ...], float] = {(reason,): 0 for reason in ETCD_FAILURES}
        events: dict[tuple[str, ...], float] = {(event,): 0 for event in ETCD_EVENTS}
        if (stats := self.etcd) is not None:
            calls = {(call,): count for call, count in stats.calls.items()}
            failures |= {(reason,): count for reason, count in stats.failures.items()}
            events = {
                ("rotation",): stats.rotations,
                ("ambiguous",): stats.ambiguous,
                ("login",): stats.logins,
                ("watch_resume",): stats.watch_resumes,
                ("watch_relist",): stats.watch_relists,
            }
        yield _counter_family("weir_etcd_calls", calls)
        yield _counter_family("weir_etcd_failures", failures)
        yield _counter_family("weir_etcd_events", events)

    def _queue_lags(self, seen: Mapping[str, RegionEvidence]) -> dict[tuple[str, ...], float]:
        lags: dict[tuple[str, ...], float] = {}
        for region, evidence in seen.items():
            named = self._queues.setdefault(region, set())
            for queue, lag_s in sorted(evidence.queue_lag_s.items()):
                if len(named) < MAX_QUEUES:
                    named.add(queue)
                key = (region, queue if queue in named else OTHER)
                lags[key] = max(lag_s, lags.get(key, 0.0))
        return lags

    def _outcome_families(self) -> Iterator[Metric]:
        channels = {channel.name for channel in self.topology.channels}
        payments: dict[tuple[str, ...], float] = {}
        probes: dict[tuple[str, ...], float] = {}
        for region in self.digest.regions if self.digest else ():
            if self.region(region.region) == OTHER:
                continue
            for cell in region.cells:
                if cell.channel in channels:
                    _add_outcomes(payments, region.region, cell.channel, cell.traffic)
                    _add_outcomes(probes, region.region, cell.channel, cell.probe)
        yield _counter_family("weir_payments", payments)
        yield _counter_family("weir_probes", probes)


def _add_outcomes(
    into: dict[tuple[str, ...], float], region: str, channel: str, outcomes: Outcomes
) -> None:
    for word in OUTCOMES:
        into[(region, channel, word)] = getattr(outcomes, word)


def _family(name: str) -> GaugeMetricFamily | CounterMetricFamily:
    spec = BY_NAME[name]
    made = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
    return made(name, spec.help, labels=spec.labels)


def _gauge_family(name: str, values: Mapping[tuple[str, ...], float]) -> Metric:
    family = _family(name)
    for labels, value in values.items():
        family.add_metric(labels, float(value))
    return family


_counter_family = _gauge_family
