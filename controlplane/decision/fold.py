"""Fold: from what every replica has counted since its boot to what one tick has gained.

Theory. Digests are cumulative, so a lost one costs nothing, a repeated one adds nothing and an
older one is overtaken. The fold keeps a `Baseline` (what it has already counted, per replica and
boot) and returns the difference.

Rules
- The first digest of a replica or of its new boot is a baseline: nothing is gained from it.
- A digest with the same or an older seq of the same boot is ignored for counters; its ages still
  count, because they only ever make evidence older.
- A counter that went back (an agent that restarted) gains nothing, never something negative.
- A region is one vantage, however many replicas hear its agents: gains are added, ages are the
  youngest, failures since the last success are those of the view with the youngest success, and
  so on: the best view wins.
- The order of the digests does not matter.

Failure modes. A replica that comes back after an hour brings an hour's gain in one tick; tests that
are sequential in calls do not mind. The number of replicas remembered is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from controlplane.model.evidence import (
    NOTHING,
    CellCounters,
    Digest,
    Evidence,
    IngressView,
    Outcomes,
    RegionEvidence,
)
from controlplane.model.ids import ChannelName, Epoch, RegionName, ReplicaId
from controlplane.model.latency import merge, subtract
from controlplane.model.topology import Topology

REPLICAS_KEPT: Final = 256
"""Replicas remembered; beyond it those not heard of now are forgotten."""

NEVER: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What was already counted of one replica's boot."""

    boot: int
    seq: int
    cells: Mapping[tuple[RegionName, ChannelName], CellCounters] = field(default_factory=dict)
    ingress: Mapping[tuple[RegionName, RegionName], tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What was already counted, per replica, and the highest epoch ever heard of."""

    counted: Mapping[ReplicaId, Counted] = field(default_factory=dict)
    highest_epoch: Epoch = Epoch(0)


def fold(
    baseline: Baseline,
    digests: Sequence[tuple[Digest, int]],
    topology: Topology,
    *,
    leader_region: RegionName | None = None,
    committed_epoch: int = 0,
    converged_epoch: int = 0,
    coordination_suspect: bool = False,
) -> tuple[Evidence, Baseline]:
    """Return the evidence gained since `baseline`, and the next baseline.

    `digests` holds pairs of a digest and its age: ms since the local replica received it, 0 for its
    own. Unknown regions and channels are left out.
    """
    known = frozenset(region.name for region in topology.regions)
    channels = frozenset(channel.name for channel in topology.channels)
    merged: dict[RegionName, _Region] = {name: _Region() for name in sorted(known)}
    counted = dict(baseline.counted)
    highest = max(baseline.highest_epoch, committed_epoch)
    for digest, age_ms in _newest(digests):
        highest = max(highest, digest.highest_epoch, digest.plan_epoch)
        for subscriber in digest.subscribers:
            highest = max(highest, subscriber.applied_epoch)
        before = counted.get(digest.replica)
        new_boot = before is None or before.boot != digest.boot
        repeated = not new_boot and before is not None and digest.seq <= before.seq
        for region in digest.regions:
            if region.region in known:
                merged[region.region].view(region, age_ms)
        if repeated:
            continue
        if not new_boot and before is not None:
            _gain(merged, digest, before, channels)
        counted[digest.replica] = _count(digest)
    if len(counted) > REPLICAS_KEPT:
        heard = {digest.replica for digest, _ in digests}
        counted = {name: value for name, value in counted.items() if name in heard}
    evidence = Evidence(
        regions=tuple(merged[r.name].build(r.name, r.agents_expected) for r in topology.regions),
        leader_region=leader_region,
        committed_epoch=Epoch(committed_epoch),
        converged_epoch=Epoch(converged_epoch),
        highest_epoch=Epoch(highest),
        coordination_suspect=coordination_suspect,
    )
    return evidence, Baseline(counted=counted, highest_epoch=Epoch(highest))


def _newest(digests: Iterable[tuple[Digest, int]]) -> list[tuple[Digest, int]]:
    """Keep the newest digest of each replica, in the order of replica names."""
    best: dict[ReplicaId, tuple[Digest, int]] = {}
    for digest, age_ms in digests:
        held = best.get(digest.replica)
        if held is None:
            best[digest.replica] = (digest, age_ms)
            continue
        same_boot = held[0].boot == digest.boot
        newer = digest.seq > held[0].seq if same_boot else age_ms < held[1]
        if newer or (same_boot and digest.seq == held[0].seq and age_ms < held[1]):
            best[digest.replica] = (digest, age_ms)
    return [best[name] for name in sorted(best)]


def _count(digest: Digest) -> Counted:
    return Counted(
        boot=digest.boot,
        seq=digest.seq,
        cells={(r.region, cell.channel): cell for r in digest.regions for cell in r.cells},
        ingress={
            (r.region, view.target): (view.ok, view.failed)
            for r in digest.regions
            for view in r.ingress
        },
    )


def _gain(
    merged: Mapping[RegionName, _Region],
    digest: Digest,
    before: Counted,
    channels: frozenset[ChannelName],
) -> None:
    for region in digest.regions:
        target = merged.get(region.region)
        if target is None:
            continue
        name = region.region
        for cell in region.cells:
            old = before.cells.get((name, cell.channel))
            # an inbox keeps the object of a cell that did not change: most cells, most ticks
            if old is not cell and old is not None and cell.channel in channels:
                target.gain_cell(cell, old)
        for view in region.ingress:
            old_counts = before.ingress.get((name, view.target))
            if old_counts is not None and view.target in merged:
                target.gain_ingress(view, old_counts)


class _Region:
    """Merges the views of one region."""

    def __init__(self) -> None:
        self.views: list[tuple[int, RegionEvidence, int]] = []
        self.cells: dict[ChannelName, CellCounters] = {}
        self.gained: dict[RegionName, tuple[int, int]] = {}

    def view(self, region: RegionEvidence, age_ms: int) -> None:
        """Take one replica's view; `age_ms` is the digest's age."""
        report_age_ms = NEVER if region.report_age_ms is None else region.report_age_ms + age_ms
        self.views.append((report_age_ms, region, age_ms))

    def gain_cell(self, cell: CellCounters, old: CellCounters) -> None:
        """Add what one cell has gained."""
        traffic, probe = _outcomes(cell.traffic, old.traffic), _outcomes(cell.probe, old.probe)
        if not traffic.total and not probe.total:
            return
        held = self.cells.get(cell.channel)
        if held is not None:
            traffic, probe = _add(held.traffic, traffic), _add(held.probe, probe)
        self.cells[cell.channel] = CellCounters(channel=cell.channel, traffic=traffic, probe=probe)

    def gain_ingress(self, view: IngressView, old: tuple[int, int]) -> None:
        """Add what one view of another region's ingress has gained."""
        ok, failed = self.gained.get(view.target, (0, 0))
        self.gained[view.target] = (
            ok + max(0, view.ok - old[0]),
            failed + max(0, view.failed - old[1]),
        )

    def build(self, name: RegionName, expected: int) -> RegionEvidence:
        """Return the merged evidence."""
        if not self.views:
            return RegionEvidence(region=name, agents_expected=expected)
        # the freshest view first; ties broken by content, so that the order of replicas is nothing
        self.views.sort(key=lambda v: (v[0], v[1].loop_lag_ms, -v[1].agents_live))
        age_ms, best, _ = self.views[0]
        queues: dict[str, float] = {}
        for _, region, _ in self.views:
            for queue, lag_s in region.queue_lag_s.items():
                queues[queue] = max(queues.get(queue, 0.0), lag_s)
        offsets = [r.clock_offset_ms for _, r, _ in self.views if r.clock_offset_ms is not None]
        return RegionEvidence(
            region=name,
            report_age_ms=None if age_ms >= NEVER else age_ms,
            agents_live=sum(r.agents_live for _, r, _ in self.views),
            agents_expected=max(expected, *(r.agents_expected for _, r, _ in self.views)),
            loop_lag_ms=best.loop_lag_ms,
            clock_offset_ms=min(offsets, key=abs) if offsets else None,
            queue_lag_s=dict(sorted(queues.items())),
            cells=tuple(sorted(self.cells.values(), key=attrgetter("channel"))),
            ingress=self._ingress(),
        )

    def _ingress(self) -> tuple[IngressView, ...]:
        best: dict[RegionName, tuple[int, int]] = {}
        for _, region, age_ms in self.views:
            for view in region.ingress:
                since = view.last_success_age_ms
                key = (
                    NEVER if since is None else since + age_ms,
                    view.failures_since_success,
                )
                held = best.get(view.target)
                best[view.target] = key if held is None else min(held, key)
        return tuple(
            IngressView(
                target=target,
                ok=self.gained.get(target, (0, 0))[0],
                failed=self.gained.get(target, (0, 0))[1],
                last_success_age_ms=None if since >= NEVER else since,
                failures_since_success=failures,
            )
            for target, (since, failures) in sorted(best.items())
        )


def _outcomes(new: Outcomes, old: Outcomes) -> Outcomes:
    if new is old or (new.ok == old.ok and new.error == old.error and new.declined == old.declined):
        return NOTHING
    return Outcomes(
        ok=max(0, new.ok - old.ok),
        error=max(0, new.error - old.error),
        declined=max(0, new.declined - old.declined),
        latency=subtract(new.latency, old.latency),
    )


def _add(a: Outcomes, b: Outcomes) -> Outcomes:
    return Outcomes(
        ok=a.ok + b.ok,
        error=a.error + b.error,
        declined=a.declined + b.declined,
        latency=merge(a.latency, b.latency),
    )
