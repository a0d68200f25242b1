"""Metrics of a replica and of an agent, each on a registry of its own.

Theory. What *happened* is counted when it happens (`report`, `failover_closed`). What *is* is not
copied into gauges: the last plan, the last evidence and the last digest are kept whole and rendered
when somebody scrapes. So a region that is taken out of the configuration leaves no stale series,
constant work stays constant, and a scrape never waits for a tick.

Rules
- The names are those of `metric_catalogue`; a typo fails at import, not on a dashboard.
- A label value that is neither configured nor in a closed list becomes `other`: whatever arrives
  from the network, the number of series stays bounded by regions x channels.
- Counters of payments and probes come from this replica's *own* digest: summed over replicas,
  every payment counts once.

Failure modes. A method never raises and never blocks: metrics must not stop what they measure.
Times are passed in; no clock is read here. All methods run on the event loop's thread.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from controlplane.adapters import metric_catalogue as catalogue
from controlplane.adapters.metric_catalogue import CATALOGUE, OTHER, Server
from controlplane.adapters.metric_page import metric_page
from controlplane.adapters.metric_view import NEVER, RENDERED, XDS_COUNTED, EtcdCounters, View
from controlplane.model.evidence import Digest, RegionEvidence, Subscriber
from controlplane.model.plan import FailoverRecord, Plan
from controlplane.model.topology import Topology

# the creation time of every series would double what is exposed and says nothing here
disable_created_metrics()  # type: ignore[no-untyped-call]


class Meters:
    """Counters, plain gauges and histograms of one process, by name; and the exposition."""

    def __init__(self, server: Server, version: str, rendered: frozenset[str]) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.counters: dict[str, Counter] = {}
        self.gauges: dict[str, Gauge] = {}
        self.histograms: dict[str, Histogram] = {}
        for spec in CATALOGUE:
            if spec.server not in (server, "both") or spec.name in rendered:
                continue
            args = (spec.name, spec.help, spec.labels)
            if spec.kind == "counter":
                self.counters[spec.name] = Counter(*args, registry=self.registry)
            elif spec.kind == "histogram":
                self.histograms[spec.name] = Histogram(
                    *args, registry=self.registry, buckets=spec.buckets
                )
            elif spec.kind == "gauge":
                self.gauges[spec.name] = Gauge(*args, registry=self.registry)
            else:
                info = Gauge(f"{spec.name}_info", spec.help, spec.labels, registry=self.registry)
                info.labels(version, platform.python_version(), server).set(1)
        ProcessCollector(registry=self.registry)
        self.counters["weir_config_reloads"].labels("ok")
        self.gauges["weir_config_last_reload_successful"].set(1)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return what /metrics answers and its content type, by the request's Accept header."""
        return metric_page(self.registry, accept)

    def config_reload(self, result: str) -> None:
        """Count a reload: ok, unchanged or refused."""
        word = one_of(result, catalogue.RELOAD_RESULTS)
        self.counters["weir_config_reloads"].labels(word).inc()
        self.gauges["weir_config_last_reload_successful"].set(result != "refused")

    def set_certificate_expiry(self, use: str, unix_s: float) -> None:
        """Set when a certificate ends (Unix s). `use` is server, ca, etcd or redis."""
        word = one_of(use, catalogue.CERTIFICATES)
        self.gauges["weir_certificate_expiry_timestamp_seconds"].labels(word).set(unix_s)


def one_of(value: str, known: Collection[str]) -> str:
    """Return the value if it is known, else `other`."""
    return value if value in known else OTHER


class XdsMeters:
    """What the ADS server counts. Types are cds, eds, lds or rds.

    A push to a thousand data planes counts three thousand times, in the midst of its writes: with
    prometheus_client's counters that was a quarter of the push. Hence plain numbers, rendered by
    the view.
    """

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        none = dict.fromkeys(catalogue.XDS_TYPES, 0)
        self.counts = {name: dict(none) for name in XDS_COUNTED}
        self._acks, self._nacks, self._pushes, self._bytes = self.counts.values()

    def acked(self, type_name: str) -> None:
        """Count one acknowledgement."""
        _add(self._acks, type_name, 1)

    def nacked(self, type_name: str) -> None:
        """Count one refusal by a data plane."""
        _add(self._nacks, type_name, 1)

    def pushed(self, type_name: str, payload_bytes: int) -> None:
        """Count one message written."""
        _add(self._pushes, type_name, 1)
        _add(self._bytes, type_name, payload_bytes)

    def streams(self, kind: str, count: int) -> None:
        """Set the number of open streams of a kind."""
        word = one_of(kind, catalogue.SUBSCRIBER_KINDS)
        self._meters.gauges["weir_xds_streams"].labels(word).set(count)

    def refused(self, reason: str) -> None:
        """Count a stream that was not admitted, or dropped: full, admission, invalid, slow."""
        word = one_of(reason, catalogue.XDS_REFUSALS)
        self._meters.counters["weir_xds_refused"].labels(word).inc()


def _add(counts: dict[str, int], word: str, count: int) -> None:
    word = one_of(word, catalogue.XDS_TYPES)
    counts[word] = counts.get(word, 0) + count


class Metrics(Meters):
    """Metrics of a replica. Every method is cheap enough for the hot path it stands in."""

    def __init__(self, topology: Topology, *, version: str, peers_expected: int = 0) -> None:
        super().__init__("replica", version, RENDERED)
        self._view = View(topology)
        self.xds = XdsMeters(self)
        self._view.xds = self.xds.counts
        self.registry.register(self._view)
        self.gauges["weir_budget_remaining_seconds"].set(topology.policy.budget_ms / 1000)
        self.gauges["weir_leader_heartbeat_age_seconds"].set(NEVER)
        self.gauges["weir_peers_expected"].set(peers_expected)
        self._start_at_zero(topology)

    def _start_at_zero(self, topology: Topology) -> None:
        """Expose the series alerts look at from the start: a rise from nothing is no rise."""
        for stage in catalogue.STAGES:
            self.histograms["weir_failover_duration_seconds"].labels(stage)
        for name, words in (
            ("weir_xds_refused", catalogue.XDS_REFUSALS),
            ("weir_alarms", catalogue.ALARMS),
            ("weir_calls_denied", catalogue.DENIALS),
            ("weir_lock_grants", catalogue.LOCK_RESULTS),
        ):
            for word in words:
                self.counters[name].labels(word)
        for region in topology.regions:
            for result in catalogue.REPORT_RESULTS:
                self.counters["weir_reports"].labels(region.name, result)
            for kind in catalogue.FAILOVER_KINDS:
                for outcome in catalogue.FAILOVER_OUTCOMES:
                    self.counters["weir_failovers"].labels(region.name, kind, outcome)

    def reconfigure(self, topology: Topology) -> None:
        """Use another topology from now on (after a reload); series of what is gone vanish."""
        self._view.topology = topology
        self._start_at_zero(topology)

    # --- leadership ---------------------------------------------------------------------------

    def set_leader(self, leads: bool, term: int) -> None:
        """Set whether this replica leads, and the term it knows of.

        One that does not lead runs no failover: what it last showed as leader is taken back.
        """
        self.gauges["weir_leader"].set(leads)
        if not leads:
            self.set_failover_running(None, self._view.topology.policy.budget_ms)
        self.gauges["weir_term"].set(term)

    def set_heartbeat_age(self, age_ms: float | None) -> None:
        """Set the age of the leader's last sign of life; None or below 0 when there was none."""
        age_s = NEVER if age_ms is None or age_ms < 0 else age_ms / 1000
        self.gauges["weir_leader_heartbeat_age_seconds"].set(age_s)

    def tick(self, seconds: float) -> None:
        """Count one tick and its time."""
        self.histograms["weir_tick_duration_seconds"].observe(seconds)

    def alarm(self, kind: str) -> None:
        """Count a broken invariant; audit: the leader refused a plan of its own."""
        self.counters["weir_alarms"].labels(one_of(kind, catalogue.ALARMS)).inc()

    # --- plan and failovers -------------------------------------------------------------------

    def call_denied(self, reason: str) -> None:
        """Count a call refused to its caller: identity, role, rate or handshake."""
        self.counters["weir_calls_denied"].labels(one_of(reason, catalogue.DENIALS)).inc()

    def set_plan(self, plan: Plan) -> None:
        """Show the plan in force (a listener of the board)."""
        self._view.plan = plan

    def set_failover_running(self, record: FailoverRecord | None, budget_remaining_ms: int) -> None:
        """Show the running failover, None for none, and what is left of the budget."""
        self._view.running = record
        self.gauges["weir_budget_remaining_seconds"].set(budget_remaining_ms / 1000)

    def failover_closed(self, record: FailoverRecord) -> None:
        """Count a closed failover and the time of each stage. To be called by the leader only."""
        self.counters["weir_failovers"].labels(
            self._view.region(record.region),
            one_of(record.kind, catalogue.FAILOVER_KINDS),
            one_of(record.outcome, catalogue.FAILOVER_OUTCOMES),
        ).inc()
        durations = self.histograms["weir_failover_duration_seconds"]
        marks = (record.suspected_ms, record.decided_ms, record.committed_ms, record.converged_ms)
        before = record.symptom_ms
        for stage, at in zip(catalogue.STAGES, marks, strict=False):
            if at is not None:
                durations.labels(stage).observe(max(0, at - before) / 1000)
                before = at
        if record.converged_ms is not None:
            total_ms = max(0, record.converged_ms - record.symptom_ms)
            durations.labels("total").observe(total_ms / 1000)

    # --- evidence -----------------------------------------------------------------------------

    def report(self, region: str, result: str) -> None:
        """Count a report: accepted, duplicate, invalid or refused."""
        word = one_of(result, catalogue.REPORT_RESULTS)
        self.counters["weir_reports"].labels(self._view.region(region), word).inc()

    def set_digest(self, digest: Digest) -> None:
        """Show the counters of this replica's own digest (never those of peers)."""
        self._view.digest = digest

    def set_evidence(self, regions: Iterable[RegionEvidence]) -> None:
        """Show what all replicas together know of each region (the evidence of a tick)."""
        self._view.evidence = {str(region.region): region for region in regions}

    def set_peers(self, heard: int, expected: int) -> None:
        """Set how many other replicas have a fresh digest here, and how many are configured."""
        self.gauges["weir_peers_heard"].set(heard)
        self.gauges["weir_peers_expected"].set(expected)

    # --- subscribers --------------------------------------------------------------------------

    def set_subscribers(self, subscribers: Iterable[Subscriber], epoch: int) -> None:
        """Show this replica's live subscribers and their lag behind `epoch`, the plan in force."""
        counts = dict.fromkeys(catalogue.SUBSCRIBER_KINDS, 0)
        lags = dict.fromkeys(catalogue.SUBSCRIBER_KINDS, 0)
        for subscriber in subscribers:
            kind = one_of(subscriber.kind, catalogue.SUBSCRIBER_KINDS)
            counts[kind] = counts.get(kind, 0) + 1
            lags[kind] = max(lags.get(kind, 0), epoch - subscriber.applied_epoch)
        self._view.subscribers = counts
        self._view.lags = lags

    # --- coordination and locks ---------------------------------------------------------------

    def set_etcd_reachable(self, reachable: bool) -> None:
        """Set whether linearizable reads succeed."""
        self.gauges["weir_etcd_reachable"].set(reachable)

    def follow_etcd(self, stats: EtcdCounters) -> None:
        """Show the counters of the etcd client from now on (it keeps and raises them itself)."""
        self._view.etcd = stats

    def fenced_write_rejected(self) -> None:
        """Count a guarded write that etcd refused because the term had ended."""
        self.counters["weir_fenced_writes_rejected"].inc()

    def lock_grant(self, result: str, wait_s: float | None = None) -> None:
        """Count a lock request by how it ended, and how long a granted one waited."""
        word = one_of(result, catalogue.LOCK_RESULTS)
        self.counters["weir_lock_grants"].labels(word).inc()
        if wait_s is not None:
            self.histograms["weir_lock_wait_seconds"].observe(wait_s)

    def set_lock_epoch(self, epoch: int) -> None:
        """Set the high part of new fencing tokens."""
        self.gauges["weir_lock_epoch"].set(epoch)

    def lock_token_rejected(self) -> None:
        """Count a token that was not current."""
        self.counters["weir_lock_tokens_rejected"].inc()

    def set_lock_state(self, state: str) -> None:
        """Set where the epoch of locks stands: open, quarantine, unreachable, replica, lost,
        stale."""
        self._view.lock_state = one_of(state, catalogue.LOCK_STATES)

    # --- operators ----------------------------------------------------------------------------

    def set_override_expiries(self, unix_s: Mapping[str, float]) -> None:
        """Show when each override ends (Unix s by channel)."""
        self._view.overrides = dict(unix_s)

    def set_drills(self, unix_s: Mapping[str, float]) -> None:
        """Show when each region's last completed drill ended (Unix s by region)."""
        self._view.drills = dict(unix_s)

    def set_gate_closed(self, closed: bool) -> None:
        """Set whether an unclean reconciliation forbids automatic failback."""
        self.gauges["weir_reconciliation_gate_closed"].set(closed)
