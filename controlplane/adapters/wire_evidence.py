"""Reports of agents and digests of replicas between the model and protobuf.

Encoding never fails. Decoding trusts nothing: names that are no names, negative or huge counters,
NaN, buckets out of order and impossible ages raise InvalidInputError with the path of the field,
and nothing of that message is taken. Whether a region or channel is *known*, and whether `sent_at`
lies in the future, is the receiver's to judge: it holds the topology and the clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from controlplane.adapters.wire import (
    NAMES_MAX,
    require_name,
    require_rising,
    timestamp,
    unix_ms,
)
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import (
    CellCounters,
    Digest,
    IngressView,
    Outcomes,
    PhaseTimes,
    RegionEvidence,
    Report,
    Subscriber,
    check_text,
)
from controlplane.model.ids import AgentId, ChannelName, Epoch, RegionName, ReplicaId
from controlplane.model.latency import BUCKETS, Histogram
from controlplane.v1 import agent_pb2, common_pb2, peer_pb2

COUNT_MAX: Final = 1 << 62
"""Counters above this cannot be honest, and their sums would leave int64."""
PHASES: Final = ("dns", "tcp", "tls", "first_byte")


# --- reports -----------------------------------------------------------------------------------


def encode_report(report: Report) -> agent_pb2.ReportRequest:
    """Render an agent's report."""
    phases: dict[str, list[agent_pb2.PhaseLatency]] = {}
    for phase in report.phases:
        phases.setdefault(phase.channel, []).append(
            agent_pb2.PhaseLatency(phase=phase.phase, latency=encode_histogram(phase.latency))
        )
    return agent_pb2.ReportRequest(
        agent_id=report.agent,
        region=report.region,
        boot=report.boot,
        seq=report.seq,
        sent_at=timestamp(report.sent_at_ms),
        cells=[
            agent_pb2.CellReport(
                channel=cell.channel,
                traffic=_encode_outcomes(cell.traffic),
                probe=_encode_outcomes(cell.probe),
                phases=phases.get(cell.channel, ()),
            )
            for cell in report.cells
        ],
        ingress=[
            agent_pb2.IngressReport(
                region=view.target,
                ok=view.ok,
                failed=view.failed,
                last_success_age_ms=_age(view.last_success_age_ms),
                failures_since_success=view.failures_since_success,
            )
            for view in report.ingress
        ],
        local=agent_pb2.LocalHealth(
            loop_lag_ms=report.loop_lag_ms, clock_offset_ms=report.clock_offset_ms
        ),
        applied_epoch=report.applied_epoch,
        highest_epoch=report.highest_epoch,
        queues=[
            agent_pb2.QueueReport(queue=queue, lag_s=lag_s)
            for queue, lag_s in sorted(report.queue_lag_s.items())
        ],
        version=report.version,
    )


def decode_report(message: agent_pb2.ReportRequest) -> Report:
    """Read and check an agent's report; raises InvalidInputError."""
    phases: list[PhaseTimes] = []
    for i, cell in enumerate(message.cells):
        for j, phase in enumerate(cell.phases):
            path = f"cells[{i}].phases[{j}]"
            if phase.phase not in PHASES:
                raise InvalidInputError(
                    f"{path}.phase", f"{phase.phase[:80]!r} is not one of {', '.join(PHASES)}"
                )
            latency = decode_histogram(phase.latency, f"{path}.latency")
            phases.append(
                PhaseTimes(channel=ChannelName(cell.channel), phase=phase.phase, latency=latency)
            )
    local = message.local
    return Report(
        agent=AgentId(require_name("agent_id", message.agent_id)),
        region=RegionName(require_name("region", message.region)),
        boot=_positive("boot", message.boot),
        seq=_positive("seq", message.seq),
        sent_at_ms=unix_ms(message.sent_at),
        cells=_decode_cells(message.cells, "cells"),
        phases=tuple(phases),
        ingress=_decode_ingress([(view.region, view) for view in message.ingress], "ingress"),
        loop_lag_ms=_amount("local.loop_lag_ms", local.loop_lag_ms),
        clock_offset_ms=(
            _finite("local.clock_offset_ms", local.clock_offset_ms)
            if local.HasField("clock_offset_ms")
            else None
        ),
        queue_lag_s=_decode_queues(message.queues),
        applied_epoch=Epoch(_count("applied_epoch", message.applied_epoch)),
        highest_epoch=Epoch(_count("highest_epoch", message.highest_epoch)),
        version=check_text("version", message.version),
    )


# --- digests -----------------------------------------------------------------------------------


def encode_digest(digest: Digest) -> peer_pb2.Digest:
    """Render a replica's digest."""
    return peer_pb2.Digest(
        replica=digest.replica,
        region=digest.region,
        boot=digest.boot,
        seq=digest.seq,
        regions=[_encode_region(region) for region in digest.regions],
        subscribers=[encode_subscriber(subscriber) for subscriber in digest.subscribers],
        plan_epoch=digest.plan_epoch,
        highest_epoch=digest.highest_epoch,
        version=digest.version,
    )


def _encode_region(region: RegionEvidence) -> peer_pb2.RegionDigest:
    return peer_pb2.RegionDigest(
        region=region.region,
        agents_live=region.agents_live,
        agents_expected=region.agents_expected,
        report_age_ms=_age(region.report_age_ms),
        cells=[
            peer_pb2.CellDigest(
                channel=cell.channel,
                traffic=_encode_outcomes(cell.traffic),
                probe=_encode_outcomes(cell.probe),
            )
            for cell in region.cells
        ],
        ingress=[
            peer_pb2.IngressDigest(
                region=view.target,
                ok=view.ok,
                failed=view.failed,
                last_success_age_ms=_age(view.last_success_age_ms),
                failures_since_success=view.failures_since_success,
            )
            for view in region.ingress
        ],
        loop_lag_ms=region.loop_lag_ms,
        clock_offset_ms=region.clock_offset_ms,
        queues=[
            peer_pb2.QueueDigest(queue=queue, lag_s=lag_s)
            for queue, lag_s in sorted(region.queue_lag_s.items())
        ],
    )


def encode_subscriber(subscriber: Subscriber) -> common_pb2.SubscriberState:
    """Render one subscriber."""
    return common_pb2.SubscriberState(
        subscriber=subscriber.name,
        kind=subscriber.kind,
        region=subscriber.region,
        applied_epoch=subscriber.applied_epoch,
        age_ms=subscriber.age_ms,
        error=subscriber.error,
        version=subscriber.version,
    )


def decode_digest(message: peer_pb2.Digest) -> Digest:
    """Read and check a replica's digest; raises InvalidInputError."""
    regions = tuple(_decode_region(r, f"regions[{i}]") for i, r in enumerate(message.regions))
    require_rising("regions", [region.region for region in regions])
    if len(message.subscribers) > NAMES_MAX:
        raise InvalidInputError("subscribers", f"more than {NAMES_MAX}")
    return Digest(
        replica=ReplicaId(require_name("replica", message.replica)),
        region=RegionName(require_name("region", message.region)),
        boot=_positive("boot", message.boot),
        seq=_positive("seq", message.seq),
        regions=regions,
        subscribers=tuple(
            Subscriber(
                name=check_text(f"subscribers[{i}].subscriber", s.subscriber),
                kind=check_text(f"subscribers[{i}].kind", s.kind),
                region=check_text(f"subscribers[{i}].region", s.region),
                applied_epoch=Epoch(_count(f"subscribers[{i}].applied_epoch", s.applied_epoch)),
                age_ms=_count(f"subscribers[{i}].age_ms", s.age_ms),
                error=check_text(f"subscribers[{i}].error", s.error),
                version=check_text(f"subscribers[{i}].version", s.version),
            )
            for i, s in enumerate(message.subscribers)
        ),
        plan_epoch=Epoch(_count("plan_epoch", message.plan_epoch)),
        highest_epoch=Epoch(_count("highest_epoch", message.highest_epoch)),
        version=check_text("version", message.version),
    )


def _decode_region(message: peer_pb2.RegionDigest, path: str) -> RegionEvidence:
    return RegionEvidence(
        region=RegionName(require_name(f"{path}.region", message.region)),
        report_age_ms=_decode_age(f"{path}.report_age_ms", message.report_age_ms),
        agents_live=_count(f"{path}.agents_live", message.agents_live),
        agents_expected=_count(f"{path}.agents_expected", message.agents_expected),
        loop_lag_ms=_amount(f"{path}.loop_lag_ms", message.loop_lag_ms),
        clock_offset_ms=(
            _finite(f"{path}.clock_offset_ms", message.clock_offset_ms)
            if message.HasField("clock_offset_ms")
            else None
        ),
        queue_lag_s=_decode_queues(message.queues, f"{path}."),
        cells=_decode_cells(message.cells, f"{path}.cells"),
        ingress=_decode_ingress(
            [(view.region, view) for view in message.ingress], f"{path}.ingress"
        ),
    )


# --- parts -------------------------------------------------------------------------------------


def encode_histogram(histogram: Histogram) -> common_pb2.LatencyHistogram:
    """Render a sparse histogram, buckets rising."""
    buckets = sorted(histogram)
    return common_pb2.LatencyHistogram(bucket=buckets, count=[histogram[b] for b in buckets])


def decode_histogram(message: common_pb2.LatencyHistogram, path: str) -> dict[int, int]:
    """Read a sparse histogram; raises InvalidInputError."""
    # a replica reads thousands of these a second: lists and dicts compare in C
    buckets, counts = list(message.bucket), list(message.count)
    if len(buckets) != len(counts):
        raise InvalidInputError(path, f"{len(buckets)} buckets but {len(counts)} counts")
    histogram = dict(zip(buckets, counts, strict=True))
    if not buckets:
        return histogram
    if buckets[0] < 0 or buckets[-1] >= BUCKETS or buckets != sorted(histogram):
        raise InvalidInputError(
            f"{path}.bucket", f"{buckets[:BUCKETS]}: strictly rising, 0 to {BUCKETS - 1}"
        )
    _count(f"{path}.count", min(counts))
    _count(f"{path}.count", max(counts))
    return histogram


def _encode_outcomes(outcomes: Outcomes) -> common_pb2.OutcomeCounters:
    return common_pb2.OutcomeCounters(
        ok=outcomes.ok,
        error=outcomes.error,
        declined=outcomes.declined,
        latency=encode_histogram(outcomes.latency),
    )


def _decode_outcomes(message: common_pb2.OutcomeCounters, path: str) -> Outcomes:
    return Outcomes(
        ok=_count(f"{path}.ok", message.ok),
        error=_count(f"{path}.error", message.error),
        declined=_count(f"{path}.declined", message.declined),
        latency=decode_histogram(message.latency, f"{path}.latency"),
    )


def _decode_cells(
    cells: Iterable[agent_pb2.CellReport | peer_pb2.CellDigest], path: str
) -> tuple[CellCounters, ...]:
    """Read cells in any order, sort them by channel, refuse repetition."""
    out = [
        CellCounters(
            channel=ChannelName(require_name(f"{path}[{i}].channel", cell.channel)),
            traffic=_decode_outcomes(cell.traffic, f"{path}[{i}].traffic"),
            probe=_decode_outcomes(cell.probe, f"{path}[{i}].probe"),
        )
        for i, cell in enumerate(cells)
    ]
    out.sort(key=lambda cell: cell.channel)
    require_rising(path, [cell.channel for cell in out])
    return tuple(out)


def _decode_ingress(
    views: Sequence[tuple[str, agent_pb2.IngressReport | peer_pb2.IngressDigest]], path: str
) -> tuple[IngressView, ...]:
    """Read ingress views in any order, sort them by region, refuse repetition."""
    out = [
        IngressView(
            target=RegionName(require_name(f"{path}[{i}].region", target)),
            ok=_count(f"{path}[{i}].ok", view.ok),
            failed=_count(f"{path}[{i}].failed", view.failed),
            last_success_age_ms=_decode_age(
                f"{path}[{i}].last_success_age_ms", view.last_success_age_ms
            ),
            failures_since_success=_count(
                f"{path}[{i}].failures_since_success", view.failures_since_success
            ),
        )
        for i, (target, view) in enumerate(views)
    ]
    out.sort(key=lambda view: view.target)
    require_rising(path, [view.target for view in out])
    return tuple(out)


def _decode_queues(
    queues: Iterable[agent_pb2.QueueReport | peer_pb2.QueueDigest], prefix: str = ""
) -> Mapping[str, float]:
    out: dict[str, float] = {}
    for i, queue in enumerate(queues):
        path = f"{prefix}queues[{i}]"
        name = check_text(f"{path}.queue", queue.queue)
        out[name] = max(out.get(name, 0.0), _amount(f"{path}.lag_s", queue.lag_s))
    return dict(sorted(out.items()))


def _age(age_ms: int | None) -> int:
    return -1 if age_ms is None else age_ms


def _decode_age(path: str, age_ms: int) -> int | None:
    return None if age_ms == -1 else _count(path, age_ms)


def _count(path: str, number: int) -> int:
    if not 0 <= number <= COUNT_MAX:
        raise InvalidInputError(path, f"{number} is outside 0 to 2^62")
    return number


def _positive(path: str, number: int) -> int:
    if not 1 <= number <= COUNT_MAX:
        raise InvalidInputError(path, f"{number} is outside 1 to 2^62")
    return number


def _finite(path: str, number: float) -> float:
    if not math.isfinite(number):
        raise InvalidInputError(path, f"{number} is not a finite number")
    return number


def _amount(path: str, number: float) -> float:
    if _finite(path, number) < 0:
        raise InvalidInputError(path, f"{number} is negative")
    return number
