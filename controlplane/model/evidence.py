"""Evidence: what was observed, as the decision receives it.

Two forms. A `Digest` is what one replica merged from its agents, cumulative since its boot; digests
travel between replicas. `Evidence` is what one tick adds: the difference of two sets of digests,
made by `decision.fold`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import AgentId, ChannelName, Epoch, RegionName, ReplicaId
from controlplane.model.latency import Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Calls and their latency. Cumulative in a digest, gained since the last tick in evidence."""

    ok: int = 0
    error: int = 0
    declined: int = 0
    latency: Histogram = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All calls with an outcome."""
        return self.ok + self.error + self.declined


NOTHING = Outcomes()


@dataclass(frozen=True, slots=True, kw_only=True)
class CellCounters:
    """One cell: real payments and probes kept apart."""

    channel: ChannelName
    traffic: Outcomes = NOTHING
    probe: Outcomes = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressView:
    """What the agents of one region see of another region's ingress.

    `ok` and `failed` are cumulative in a digest, gained in evidence. Ages in ms, None when never.
    """

    target: RegionName
    ok: int = 0
    failed: int = 0
    last_success_age_ms: int | None = None
    failures_since_success: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTimes:
    """Time a channel's probes spent in one phase: dns, tcp, tls or first_byte; cumulative."""

    channel: ChannelName
    phase: str
    latency: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one agent says, cumulative since its `boot`. The newest (boot, seq) replaces the older.

    `sent_at_ms` is the agent's wall clock, for the skew check at the edge only.
    """

    agent: AgentId
    region: RegionName
    boot: int
    seq: int
    sent_at_ms: int = 0
    cells: tuple[CellCounters, ...] = ()
    phases: tuple[PhaseTimes, ...] = ()
    ingress: tuple[IngressView, ...] = ()
    loop_lag_ms: float = 0.0
    clock_offset_ms: float | None = None
    queue_lag_s: Mapping[str, float] = field(default_factory=dict)
    applied_epoch: Epoch = Epoch(0)
    highest_epoch: Epoch = Epoch(0)
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionEvidence:
    """What the agents of one region said. `report_age_ms` is None when none ever reported."""

    region: RegionName
    report_age_ms: int | None = None
    agents_live: int = 0
    agents_expected: int = 1
    loop_lag_ms: float = 0.0
    clock_offset_ms: float | None = None
    queue_lag_s: Mapping[str, float] = field(default_factory=dict)
    cells: tuple[CellCounters, ...] = ()
    ingress: tuple[IngressView, ...] = ()

    def agents_heard(self, silent_after_ms: int) -> int:
        """Return how many agents report now.

        None does when the newest report is too old: a replica that died with its region took
        nothing back, so its last digest still counts them.
        """
        silent = self.report_age_ms is None or self.report_age_ms > silent_after_ms
        return 0 if silent else self.agents_live


TEXT_CHARS_MAX = 128
"""Longest free text that travels between replicas."""


def check_text(path: str, text: str, *, least: int = 0) -> str:
    """Return a text that may travel; raises InvalidInputError naming `path`.

    Whoever lets a name in must ask here: a peer refuses a digest with one bad text as a whole, so
    a single data plane with an odd name would silence its replica, and with it a region.
    """
    if not least <= len(text) <= TEXT_CHARS_MAX or not text.isprintable():
        raise InvalidInputError(path, f"must have {least} to {TEXT_CHARS_MAX} printable characters")
    return text


def plain_text(text: str) -> str:
    """Return somebody else's words in a form that may travel: printable, cut to length."""
    kept = "".join(c if c.isprintable() else " " for c in text[:TEXT_CHARS_MAX])
    return kept.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """Who applied which plan. `kind` is agent, watch, envoy or grpc; `error` is why it refused what
    it was sent last, in its own words; `version` is an agent's, empty when it was not told.

    Names, regions, errors and versions have at most `TEXT_CHARS_MAX` printable characters: they
    travel between replicas in a digest, which a peer takes whole or not at all.
    """

    name: str
    kind: str
    region: str = ""
    applied_epoch: Epoch = Epoch(0)
    age_ms: int = 0
    error: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Merged evidence of one replica, cumulative since `boot`. The newest (boot, seq) replaces the
    older."""

    replica: ReplicaId
    region: RegionName
    boot: int
    seq: int
    regions: tuple[RegionEvidence, ...] = ()
    subscribers: tuple[Subscriber, ...] = ()
    plan_epoch: Epoch = Epoch(0)
    highest_epoch: Epoch = Epoch(0)
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """What cells gained in one tick as columns: the form for very many cells.

    Cells are numbered region-major in the topology's order (region x channels + channel), strictly
    rising in `cell`; the four counts have one value per entry of `cell`. The three latency columns
    have one value per (cell, bucket) and hold real payments' latency where there were any, else
    probes'. Sequences of int64: lists, `array.array("q")` or NumPy arrays.
    """

    cell: Sequence[int]
    traffic_good: Sequence[int]
    traffic_bad: Sequence[int]
    probe_good: Sequence[int]
    probe_bad: Sequence[int]
    latency_cell: Sequence[int] = ()
    latency_bucket: Sequence[int] = ()
    latency_count: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The input of one tick.

    `regions` holds one entry per configured region, sorted by name, counters gained since the last
    tick. `committed_epoch` is the newest epoch read back from etcd, `converged_epoch` the newest
    epoch that every live subscriber has applied or is past its staleness bound. `highest_epoch` is
    the highest epoch anyone has ever seen. `coordination_suspect` is true when many leases vanished
    at once: evidence against etcd, not against regions. `gains` may replace the cells of all
    regions.
    """

    regions: tuple[RegionEvidence, ...]
    leader_region: RegionName | None = None
    committed_epoch: Epoch = Epoch(0)
    converged_epoch: Epoch = Epoch(0)
    highest_epoch: Epoch = Epoch(0)
    coordination_suspect: bool = False
    gains: Gains | None = None
