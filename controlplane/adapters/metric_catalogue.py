"""Every metric of Weir: its name, kind, labels, who serves it, and what it says.

The table is the single source: `prometheus.py` builds its collectors from it, docs/metrics.md is
generated from it, and a test refuses an alert or a dashboard that asks for a name it lacks.

Rules
- A label has values from the configuration (region, channel) or from a closed list below; whatever
  else arrives is counted as `other`. Request ids, agents, peers and subscribers are never labels.
- Gauges carry base units (seconds, bytes) except weights, which are basis points everywhere.
- Buckets of durations that count against the 30 s budget are dense below it and step over it, so
  that "over budget" is a difference of two buckets and no guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

OTHER: Final = "other"
"""Value of a label whose real value is not known here: the network never makes a new series."""

REPORT_RESULTS: Final = ("accepted", "duplicate", "invalid", "refused")
FAILOVER_KINDS: Final = ("dead", "ingress", "brown_out", "egress", "drill", "manual")
FAILOVER_OUTCOMES: Final = ("completed", "reverted")
STAGES: Final = ("suspect", "decide", "commit", "converge", "total")
OUTCOMES: Final = ("ok", "error", "declined")
SUBSCRIBER_KINDS: Final = ("agent", "watch", "envoy", "grpc")
PLAN_RESULTS: Final = ("applied", "refused", "not_taken")
PROBE_REASONS: Final = (
    "dns", "refused", "unreachable", "reset", "timeout", "tls", "protocol", "status",
    "not_serving", "internal",
)  # fmt: skip
XDS_TYPES: Final = ("cds", "eds", "lds", "rds")
LOCK_RESULTS: Final = ("granted", "held", "withdrawn", "unavailable")
LOCK_STATES: Final = ("open", "quarantine", "unreachable", "replica", "lost", "stale")
XDS_REFUSALS: Final = ("full", "admission", "invalid", "slow")
ETCD_FAILURES: Final = ("unavailable", "deadline_exceeded", "slow")
"""The statuses to expect; any other that gRPC has may appear beside them."""
ETCD_EVENTS: Final = ("rotation", "ambiguous", "login", "watch_resume", "watch_relist")
ALARMS: Final = ("audit",)
DENIALS: Final = ("identity", "role", "rate", "handshake")
RELOAD_RESULTS: Final = ("ok", "unchanged", "refused")
CERTIFICATES: Final = ("server", "ca", "etcd", "redis")
PROBE_PHASES: Final = ("dns", "tcp", "tls", "first_byte")
PROBE_OUTCOMES: Final = ("ok", "error")

BUDGET_BUCKETS_S: Final = (
    0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 12.5, 15, 20, 25, 30, 45, 60, 120,
)  # fmt: skip
"""Stages of a failover, against the budget of 30 s."""
TICK_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""One tick, against the tick interval of 0.5 s and the takeover after 1.5 s."""
LOCK_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5, 30)
"""Waiting for a lock: 0.2 s is slow, 1 s is an incident."""
PHASE_BUCKETS_S: Final = (0.05, 0.1, 0.25, 1)
"""Phases of a probe. Four, because there is one histogram per channel and phase."""

MAX_QUEUES: Final = 8
"""Queues per region that get a series of their own; further ones count as `other`."""

Kind = Literal["counter", "gauge", "histogram", "info"]
Server = Literal["replica", "agent", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One metric. `name` without the suffix that its kind adds (`_total`, `_bucket`)."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    server: Server = "replica"
    buckets: tuple[float, ...] = ()

    @property
    def exposed(self) -> tuple[str, ...]:
        """Names of its series at /metrics."""
        if self.kind == "counter":
            return (f"{self.name}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        if self.kind == "info":
            return (f"{self.name}_info",)
        return (self.name,)


def _gauge(name: str, text: str, *labels: str, server: Server = "replica") -> Spec:
    return Spec(name=name, kind="gauge", help=text, labels=labels, server=server)


def _counter(name: str, text: str, *labels: str, server: Server = "replica") -> Spec:
    return Spec(name=name, kind="counter", help=text, labels=labels, server=server)


CATALOGUE: Final[tuple[Spec, ...]] = (
    Spec(
        name="weir_build",
        kind="info",
        labels=("version", "python", "role"),
        server="both",
        help="Always 1; the labels say what runs.",
    ),
    # leadership
    _gauge("weir_leader", "1 on the replica that leads, 0 on the others."),
    _gauge(
        "weir_term", "Number of the leadership this replica knows of (revision of the leader key)."
    ),
    _gauge(
        "weir_leader_heartbeat_age_seconds",
        "Age of the leader's last plan or heartbeat as seen by this replica; +Inf when never seen.",
    ),
    Spec(
        name="weir_tick_duration_seconds",
        kind="histogram",
        buckets=TICK_BUCKETS_S,
        help="Time of one tick of this replica: fold, decide, check, commit.",
    ),
    _counter(
        "weir_alarms",
        "Broken invariants met by this replica. Every one is worth a person.",
        "kind",
    ),
    _counter(
        "weir_calls_denied",
        "gRPC calls refused to a caller, by reason; handshake: a TLS handshake that failed.",
        "reason",
    ),
    # the plan in force at this replica
    _gauge("weir_plan_epoch", "Epoch of the plan in force at this replica; 0 when it has none."),
    _gauge(
        "weir_plan_committed_timestamp_seconds", "Wall clock of the leader when it committed it."
    ),
    _gauge(
        "weir_route_weight_bp",
        "Share of a channel sent to a region, in basis points.",
        "channel",
        "region",
    ),
    _gauge(
        "weir_route_shed_bp",
        "Share of a channel that no region can carry, in basis points.",
        "channel",
    ),
    _gauge(
        "weir_region_phase", "1 for the phase a region is in, 0 for the others.", "region", "phase"
    ),
    _gauge(
        "weir_region_verdict",
        "1 for what the quorum says of a region, 0 for the others.",
        "region",
        "verdict",
    ),
    _gauge("weir_region_drained", "1 while an operator drains the region.", "region"),
    _gauge(
        "weir_breaker_state",
        "1 for the state of a cell's breaker, 0 for the others.",
        "region",
        "channel",
        "state",
    ),
    _gauge(
        "weir_frozen", "1 while a freeze, or a leader that is cut off, forbids automatic change."
    ),
    _gauge("weir_panic", "1 while too little is healthy and the last good weights are kept."),
    # failovers
    _counter(
        "weir_failovers",
        "Failovers closed, counted by the replica that led when they were.",
        "from",
        "kind",
        "outcome",
    ),
    Spec(
        name="weir_failover_duration_seconds",
        kind="histogram",
        labels=("stage",),
        buckets=BUDGET_BUCKETS_S,
        help="Time a closed failover spent in each stage, counted like weir_failovers_total; "
        "the stages add up to `total`, first symptom to applied everywhere.",
    ),
    _gauge(
        "weir_failover_running", "1 while a failover away from the region runs.", "region", "kind"
    ),
    _gauge(
        "weir_budget_remaining_seconds",
        "What is left of the 30 s budget of the running failover (negative when over), "
        "the whole budget while none runs.",
    ),
    # evidence
    _counter("weir_reports", "Reports of agents received by this replica.", "region", "result"),
    _gauge(
        "weir_report_age_seconds",
        "Age of the newest report from a region at any replica; +Inf when never.",
        "region",
    ),
    _gauge("weir_agents_expected", "Agents that should report, by configuration.", "region"),
    _gauge("weir_agents_live", "Agents that do report, to whichever replica.", "region"),
    _gauge(
        "weir_clock_offset_seconds",
        "Median clock offset of a region's agents against their reference.",
        "region",
    ),
    _gauge(
        "weir_queue_lag_seconds", "Age of the oldest waiting item of a queue.", "region", "queue"
    ),
    _gauge("weir_peers_heard", "Other replicas whose digest is younger than 5 s at this replica."),
    _gauge("weir_peers_expected", "Other replicas in the configuration."),
    _counter(
        "weir_payments",
        "Real payments by outcome, as counted by the agents that report to this replica; "
        "`declined` is an answer of issuer or risk control and no error. "
        "The SLI of the SLO alerts.",
        "region",
        "channel",
        "outcome",
    ),
    _counter(
        "weir_probes",
        "Probes of channels by outcome, as counted by the agents that report to this replica.",
        "region",
        "channel",
        "outcome",
    ),
    # what is configured
    _gauge(
        "weir_region_capacity_tps",
        "Payments per second a region can carry, by configuration.",
        "region",
    ),
    _gauge(
        "weir_channel_demand_tps",
        "Expected peak of a channel in payments per second, by configuration.",
        "channel",
    ),
    # subscribers
    _gauge(
        "weir_subscribers",
        "Plan subscriptions at this replica; data planes that left in the last minute included.",
        "kind",
    ),
    _gauge(
        "weir_subscriber_epoch_lag",
        "Epochs that the furthest behind of this replica's subscribers lacks, whether it answers or"
        " hangs; data planes that left in the last minute included.",
        "kind",
    ),
    _counter("weir_xds_nacks", "xDS resources refused by a data plane.", "type"),
    _counter("weir_xds_acks", "xDS resources taken by a data plane.", "type"),
    _counter("weir_xds_pushes", "xDS responses sent.", "type"),
    _counter("weir_xds_pushed_bytes", "Bytes of xDS responses sent.", "type"),
    _gauge("weir_xds_streams", "Open xDS streams.", "kind"),
    _counter("weir_xds_refused", "xDS streams not admitted, or dropped.", "reason"),
    # coordination
    _gauge("weir_etcd_reachable", "1 while this replica's linearizable reads of etcd succeed."),
    _counter("weir_etcd_calls", "Attempts at an etcd member.", "call"),
    _counter("weir_etcd_failures", "Attempts at an etcd member that failed, by status.", "reason"),
    _counter(
        "weir_etcd_events",
        "Members left for the next one, writes whose outcome had to be read, "
        "logins, watches resumed or listed again.",
        "event",
    ),
    _counter(
        "weir_fenced_writes_rejected",
        "Writes of this replica refused by etcd because its term had ended.",
    ),
    # locks
    _counter("weir_lock_grants", "Lock requests by how they ended.", "result"),
    Spec(
        name="weir_lock_wait_seconds",
        kind="histogram",
        buckets=LOCK_BUCKETS_S,
        help="Time from a request for a lock to its grant.",
    ),
    _gauge(
        "weir_lock_epoch",
        "High part of every new fencing token; rises when Redis lost its identity.",
    ),
    _counter(
        "weir_lock_tokens_rejected",
        "Renewals, releases and checks refused because the token was not current.",
    ),
    _gauge(
        "weir_lock_state",
        "1 for where the epoch of locks stands at this replica; grants are made while it is open. "
        "Absent without Redis.",
        "state",
    ),
    # operators
    _gauge(
        "weir_override_expiry_timestamp_seconds",
        "When the override of a channel ends; absent while there is none.",
        "channel",
    ),
    _gauge(
        "weir_drill_last_timestamp_seconds",
        "End of the last completed drill of a region; 0 when there was none.",
        "region",
    ),
    _gauge(
        "weir_reconciliation_gate_closed",
        "1 while an unclean reconciliation forbids automatic failback.",
    ),
    # the process
    _counter("weir_config_reloads", "Reloads of the configuration.", "result", server="both"),
    _gauge(
        "weir_config_last_reload_successful",
        "0 after a refused reload: the last good configuration is in force.",
        server="both",
    ),
    _gauge(
        "weir_certificate_expiry_timestamp_seconds",
        "When a certificate in use ends.",
        "use",
        server="both",
    ),
    # the agent's own
    Spec(
        name="weir_probe_phase_seconds",
        kind="histogram",
        labels=("region", "channel", "phase"),
        server="agent",
        buckets=PHASE_BUCKETS_S,
        help="Time a probe spent in each phase.",
    ),
    _counter(
        "weir_agent_probes",
        "Probes sent by this agent, by outcome.",
        "region",
        "channel",
        "outcome",
        server="agent",
    ),
    _counter(
        "weir_agent_ingress_probes",
        "Probes of the ingress of another region, by outcome.",
        "region",
        "target",
        "outcome",
        server="agent",
    ),
    _counter(
        "weir_agent_reports",
        "Reports of this agent, by the replica's answer.",
        "result",
        server="agent",
    ),
    _gauge("weir_agent_link_up", "1 while this agent has a stream to a replica.", server="agent"),
    _gauge(
        "weir_agent_plan_epoch",
        "Epoch of the plan this agent has applied; 0 when none.",
        server="agent",
    ),
    _gauge(
        "weir_agent_loop_lag_seconds",
        "How late this agent's own timers fire (p99 of the last interval).",
        server="agent",
    ),
    _counter(
        "weir_agent_probe_failures",
        "Failed probes of this agent, by reason.",
        "region",
        "reason",
        server="agent",
    ),
    _counter(
        "weir_agent_plans",
        "Plans offered to this agent: applied, refused, or not_taken by its data plane.",
        "result",
        server="agent",
    ),
    _gauge(
        "weir_agent_disk_ok",
        "0 while the plan in force cannot be written to this agent's disk.",
        server="agent",
    ),
    _gauge(
        "weir_agent_clock_offset_seconds",
        "This agent's clock minus its reference; absent until measured.",
        "region",
        server="agent",
    ),
    _gauge(
        "weir_agent_queue_lag_seconds",
        "Age of the oldest waiting item of a queue, as this agent was told.",
        "region",
        "queue",
        server="agent",
    ),
)

BY_NAME: Final = {spec.name: spec for spec in CATALOGUE}
EXPOSED: Final = frozenset(name for spec in CATALOGUE for name in spec.exposed)
"""Every series name that may appear at a /metrics of Weir."""
