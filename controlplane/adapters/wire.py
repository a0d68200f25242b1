"""Plans, events and failovers between the model and protobuf.

Theory. The model keeps time in attentive ms (the decision knows no wall clock); the wire carries
wall time for people. A plan anchors one to the other: what happened `decided_at_ms - since_ms`
before the decision is shown as that long before `committed_at`. Decoding gives a plan whose
attentive origin is the wall clock (`decided_at_ms == committed_at_ms`), so encoding a decoded plan
gives the same bytes: replicas and agents may pass plans on.

Rules. Encoding never fails. Decoding trusts nothing: a plan that is empty, unsorted, names a region
twice or whose weights do not sum to exactly 10,000 raises InvalidInputError with the path of the
field. Words this version does not know are refused too: an agent keeps its last good plan rather
than guess.

Evidence (digests and reports) is in `wire_evidence`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import (
    FULL_BP,
    ChannelName,
    Epoch,
    RegionName,
    Term,
    valid_name,
)
from controlplane.model.plan import (
    Breaker,
    BreakerStatus,
    Event,
    FailoverRecord,
    LocalOverride,
    Phase,
    Plan,
    RegionStatus,
    Route,
    Severity,
    Verdict,
)
from controlplane.v1 import admin_pb2, common_pb2

LOCAL_MAX_MS: Final = 1_800_000
"""Longest that a local override may hold."""
NAMES_MAX: Final = 10_000
"""Most routes, regions or cells in one message: far above any topology, far below harm."""
_NUMBER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_Word = TypeVar("_Word", bound=StrEnum)


def timestamp(wall_ms: int) -> Timestamp:
    """Unix ms as a protobuf timestamp."""
    return Timestamp(seconds=wall_ms // 1000, nanos=wall_ms % 1000 * 1_000_000)


def unix_ms(stamp: Timestamp) -> int:
    """Return a protobuf timestamp as Unix ms, rounded down; 0 when unset."""
    return stamp.seconds * 1000 + stamp.nanos // 1_000_000


# --- plans -----------------------------------------------------------------------------------


def encode_plan(plan: Plan) -> common_pb2.Plan:
    """Render a plan for the wire; attentive times become wall times around `committed_at`."""
    shift = plan.committed_at_ms - plan.decided_at_ms
    return common_pb2.Plan(
        epoch=plan.epoch,
        term=plan.term,
        committed_at=timestamp(plan.committed_at_ms),
        routes=[encode_route(route) for route in plan.routes],
        regions=[
            common_pb2.RegionState(
                name=region.name,
                phase=region.phase,
                verdict=region.verdict,
                drained=region.drained,
                since=timestamp(region.since_ms + shift),
                cause=region.cause,
            )
            for region in plan.regions
        ],
        breakers=[encode_breaker(breaker, shift) for breaker in plan.breakers],
        frozen=plan.frozen,
        panic=plan.panic,
        local=None if plan.local is None else _encode_local(plan.local),
    )


def _encode_local(local: LocalOverride) -> common_pb2.LocalOverride:
    return common_pb2.LocalOverride(
        revision=local.revision,
        replica=local.replica,
        by=local.by,
        reason=local.reason,
        expires_at=timestamp(local.expires_at_ms),
        left_ms=local.left_ms,
    )


def _decode_local(message: common_pb2.LocalOverride) -> LocalOverride:
    if message.revision < 1:
        raise InvalidInputError("local.revision", f"{message.revision} is below 1")
    if not 0 <= message.left_ms <= LOCAL_MAX_MS:
        raise InvalidInputError("local.left_ms", f"{message.left_ms} is not 0 to {LOCAL_MAX_MS}")
    return LocalOverride(
        revision=message.revision,
        replica=message.replica,
        by=message.by,
        reason=message.reason,
        expires_at_ms=unix_ms(message.expires_at),
        left_ms=message.left_ms,
    )


def encode_route(route: Route) -> common_pb2.Route:
    """Render one route."""
    return common_pb2.Route(
        channel=route.channel,
        weights=encode_weights(route.weights),
        shed_bp=route.shed_bp,
        reasons=route.reasons,
    )


def encode_weights(weights: Iterable[tuple[RegionName, int]]) -> list[common_pb2.RegionWeight]:
    """Render weights in bp."""
    return [common_pb2.RegionWeight(region=name, weight_bp=bp) for name, bp in weights]


def encode_breaker(breaker: BreakerStatus, shift: int) -> common_pb2.BreakerState:
    """Render one breaker; `shift` in ms takes attentive time to wall time."""
    until = breaker.open_until_ms
    return common_pb2.BreakerState(
        region=breaker.region,
        channel=breaker.channel,
        state=breaker.state,
        since=timestamp(breaker.since_ms + shift),
        open_until=None if until is None else timestamp(until + shift),
        cause=breaker.cause,
    )


def decode_plan(message: common_pb2.Plan) -> Plan:
    """Read a plan and check that it may be followed; raises InvalidInputError."""
    if message.epoch < 1:
        raise InvalidInputError("epoch", f"{message.epoch} is below 1: a plan is numbered from 1")
    if message.term < 0:
        raise InvalidInputError("term", f"{message.term} is negative")
    if not message.routes:
        raise InvalidInputError("routes", "empty: a plan routes every channel, always")
    committed_at_ms = unix_ms(message.committed_at)
    plan = Plan(
        epoch=Epoch(message.epoch),
        term=Term(message.term),
        decided_at_ms=committed_at_ms,
        committed_at_ms=committed_at_ms,
        routes=tuple(_decode_route(r, f"routes[{i}]") for i, r in enumerate(message.routes)),
        regions=tuple(_decode_region(r, f"regions[{i}]") for i, r in enumerate(message.regions)),
        breakers=tuple(
            _decode_breaker(b, f"breakers[{i}]") for i, b in enumerate(message.breakers)
        ),
        frozen=message.frozen,
        panic=message.panic,
        local=_decode_local(message.local) if message.HasField("local") else None,
    )
    require_rising("routes", [route.channel for route in plan.routes])
    require_rising("regions", [region.name for region in plan.regions])
    require_rising("breakers", [(b.region, b.channel) for b in plan.breakers])
    return plan


def parse_plan(data: bytes) -> Plan:
    """Read a plan from bytes; raises InvalidInputError."""
    try:
        return decode_plan(common_pb2.Plan.FromString(data))
    except DecodeError as error:
        raise InvalidInputError("plan", "these bytes are no plan") from error


def _decode_route(message: common_pb2.Route, path: str) -> Route:
    weights = tuple((RegionName(w.region), w.weight_bp) for w in message.weights)
    for i, (name, weight_bp) in enumerate(weights):
        require_name(f"{path}.weights[{i}].region", name)
        if not 0 <= weight_bp <= FULL_BP:
            raise InvalidInputError(
                f"{path}.weights[{i}].weight_bp", f"{weight_bp} is outside 0 to {FULL_BP}"
            )
    require_rising(f"{path}.weights", [name for name, _ in weights])
    if (total := sum(weight_bp for _, weight_bp in weights)) != FULL_BP:
        raise InvalidInputError(f"{path}.weights", f"sum to {total}, not to {FULL_BP}")
    if not 0 <= message.shed_bp <= FULL_BP:
        raise InvalidInputError(f"{path}.shed_bp", f"{message.shed_bp} is outside 0 to {FULL_BP}")
    return Route(
        channel=ChannelName(require_name(f"{path}.channel", message.channel)),
        weights=weights,
        shed_bp=message.shed_bp,
        reasons=tuple(message.reasons),
    )


def _decode_region(message: common_pb2.RegionState, path: str) -> RegionStatus:
    return RegionStatus(
        name=RegionName(require_name(f"{path}.name", message.name)),
        phase=_word(Phase, f"{path}.phase", message.phase),
        verdict=_word(Verdict, f"{path}.verdict", message.verdict),
        drained=message.drained,
        since_ms=unix_ms(message.since),
        cause=message.cause,
    )


def _decode_breaker(message: common_pb2.BreakerState, path: str) -> BreakerStatus:
    return BreakerStatus(
        region=RegionName(require_name(f"{path}.region", message.region)),
        channel=ChannelName(require_name(f"{path}.channel", message.channel)),
        state=_word(Breaker, f"{path}.state", message.state),
        since_ms=unix_ms(message.since),
        open_until_ms=unix_ms(message.open_until) if message.HasField("open_until") else None,
        cause=message.cause,
    )


# --- events ----------------------------------------------------------------------------------


def encode_event(
    event: Event, *, event_id: int, at_wall_ms: int, epoch: int, term: int
) -> admin_pb2.Event:
    """Render one event with what its commit adds: number, wall time, epoch and term."""
    return admin_pb2.Event(
        id=event_id,
        at=timestamp(at_wall_ms),
        kind=event.kind,
        region=event.region,
        channel=event.channel,
        message=event.message,
        epoch=epoch,
        term=term,
        severity=event.severity,
        data={key: str(value) for key, value in event.data.items()},
    )


def decode_event(message: admin_pb2.Event) -> Event:
    """Read one event. Values of `data` that look like an integer become one."""
    return Event(
        kind=message.kind,
        message=message.message,
        severity=_word(Severity, "severity", message.severity),
        region=message.region,
        channel=message.channel,
        data={
            key: int(value) if _NUMBER.fullmatch(value) else value
            for key, value in sorted(message.data.items())
        },
    )


# --- failovers -------------------------------------------------------------------------------


def encode_failover(
    record: FailoverRecord, *, now_ms: int, now_wall_ms: int, budget_ms: int
) -> admin_pb2.Failover:
    """Render one failover. `now_ms` (attentive) and `now_wall_ms` are the same moment."""

    def since_symptom(stage_ms: int | None) -> int:
        return -1 if stage_ms is None else stage_ms - record.symptom_ms

    end_ms = now_ms if record.converged_ms is None else record.converged_ms
    return admin_pb2.Failover(
        id=record.id,
        from_region=record.region,
        kind=record.kind,
        outcome=record.outcome,
        started_at=timestamp(now_wall_ms - (now_ms - record.symptom_ms)),
        cause=record.cause,
        suspect_ms=since_symptom(record.suspected_ms),
        decide_ms=since_symptom(record.decided_ms),
        commit_ms=since_symptom(record.committed_ms),
        converge_ms=since_symptom(record.converged_ms),
        budget_remaining_ms=budget_ms - (end_ms - record.symptom_ms),
        epoch=record.epoch,
    )


def decode_failover(message: admin_pb2.Failover) -> FailoverRecord:
    """Read one failover; its times are wall ms, as in a decoded plan."""
    symptom_ms = unix_ms(message.started_at)

    def stage(since_symptom_ms: int) -> int | None:
        return None if since_symptom_ms < 0 else symptom_ms + since_symptom_ms

    return FailoverRecord(
        id=message.id,
        region=RegionName(message.from_region),
        kind=message.kind,
        cause=message.cause,
        symptom_ms=symptom_ms,
        suspected_ms=stage(message.suspect_ms),
        decided_ms=stage(message.decide_ms),
        committed_ms=stage(message.commit_ms),
        converged_ms=stage(message.converge_ms),
        epoch=Epoch(message.epoch),
        outcome=message.outcome,
    )


# --- checks shared with wire_evidence ----------------------------------------------------------


def require_name(path: str, text: str) -> str:
    """Return `text` when it may name something, else raise InvalidInputError."""
    if not valid_name(text):
        raise InvalidInputError(
            path, f"{text[:80]!r} is no name: 1 to 63 of a-z, 0-9, '-' and '_', no edge dash"
        )
    return text


def require_rising(path: str, keys: Sequence[str] | Sequence[tuple[str, str]]) -> None:
    """Refuse keys that are not strictly rising (unsorted or twice), or too many."""
    if len(keys) > NAMES_MAX:
        raise InvalidInputError(path, f"{len(keys)} entries, at most {NAMES_MAX}")
    for i in range(1, len(keys)):
        if not keys[i - 1] < keys[i]:  # type: ignore[operator]
            raise InvalidInputError(f"{path}[{i}]", f"{keys[i]} after {keys[i - 1]}: not rising")


def _word(kind: type[_Word], path: str, text: str) -> _Word:
    try:
        return kind(text)
    except ValueError as error:
        known = ", ".join(kind)
        raise InvalidInputError(path, f"{text[:80]!r} is not one of {known}") from error
