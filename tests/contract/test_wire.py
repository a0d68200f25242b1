"""The wire: what is encoded comes back, and what may not be followed is refused by field."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters import wire, wire_evidence
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
)
from controlplane.model.ids import AgentId, ChannelName, Epoch, RegionName, ReplicaId, Term
from controlplane.model.plan import (
    Breaker,
    BreakerStatus,
    Event,
    FailoverRecord,
    Phase,
    Plan,
    RegionStatus,
    Route,
    Severity,
    Verdict,
)
from controlplane.v1 import agent_pb2, common_pb2

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?", fullmatch=True)
COUNTS = st.integers(0, 1 << 40)
TIMES = st.integers(0, 1 << 40)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
HISTOGRAMS = st.dictionaries(st.integers(0, 65), COUNTS, max_size=5)


@st.composite
def plans(draw: Any) -> Plan:
    """Any plan that may be committed."""
    regions = sorted(draw(st.sets(NAMES, min_size=1, max_size=4)))
    channels = sorted(draw(st.sets(NAMES, min_size=1, max_size=4)))
    decided_at_ms = draw(TIMES)

    def weights() -> tuple[tuple[RegionName, int], ...]:
        cuts = sorted(
            draw(
                st.lists(
                    st.integers(0, 10_000), min_size=len(regions) - 1, max_size=len(regions) - 1
                )
            )
        )
        edges = [0, *cuts, 10_000]
        return tuple((RegionName(r), edges[i + 1] - edges[i]) for i, r in enumerate(regions))

    return Plan(
        epoch=Epoch(draw(st.integers(1, (1 << 53) - 1))),
        term=Term(draw(COUNTS)),
        decided_at_ms=decided_at_ms,
        committed_at_ms=draw(st.integers(decided_at_ms, 1 << 41)),
        routes=tuple(
            Route(
                channel=ChannelName(c),
                weights=weights(),
                shed_bp=draw(st.integers(0, 10_000)),
                reasons=tuple(draw(st.lists(TEXT, max_size=2))),
            )
            for c in channels
        ),
        regions=tuple(
            RegionStatus(
                name=RegionName(r),
                phase=draw(st.sampled_from(Phase)),
                verdict=draw(st.sampled_from(Verdict)),
                drained=draw(st.booleans()),
                since_ms=draw(st.integers(0, decided_at_ms)),
                cause=draw(TEXT),
            )
            for r in regions
        ),
        breakers=tuple(
            BreakerStatus(
                region=RegionName(r),
                channel=ChannelName(channels[0]),
                state=draw(st.sampled_from(Breaker)),
                open_until_ms=draw(st.none() | TIMES),
            )
            for r in regions
        ),
        frozen=draw(st.booleans()),
        panic=draw(st.booleans()),
    )


@given(plans())
def test_a_plan_survives_any_number_of_hops(plan: Plan) -> None:
    """Decoding keeps everything but the origin of time; encoding what was decoded gives the same
    bytes, so replicas and agents may pass plans on."""
    message = wire.encode_plan(plan)
    back = wire.parse_plan(message.SerializeToString())
    assert wire.encode_plan(back) == message
    assert (back.epoch, back.term, back.routes, back.frozen, back.panic) == (
        plan.epoch, plan.term, plan.routes, plan.frozen, plan.panic,
    )  # fmt: skip
    for before, after in zip(plan.regions, back.regions, strict=True):
        assert back.decided_at_ms - after.since_ms == plan.decided_at_ms - before.since_ms
        assert (after.phase, after.verdict, after.cause) == (
            before.phase,
            before.verdict,
            before.cause,
        )


def good() -> common_pb2.Plan:
    """Return a small good plan."""
    return wire.encode_plan(
        Plan(
            epoch=Epoch(1),
            routes=(
                Route(
                    channel=ChannelName("c"),
                    weights=((RegionName("e"), 6000), (RegionName("n"), 4000)),
                ),
            ),
            regions=(RegionStatus(name=RegionName("e")), RegionStatus(name=RegionName("n"))),
            breakers=(BreakerStatus(region=RegionName("e"), channel=ChannelName("c")),),
        )
    )


def _double(plan: common_pb2.Plan) -> None:
    plan.routes.append(plan.routes[0])


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("epoch", lambda p: setattr(p, "epoch", 0)),
        ("epoch", lambda p: setattr(p, "epoch", -5)),
        ("term", lambda p: setattr(p, "term", -1)),
        ("routes", lambda p: p.ClearField("routes")),
        ("routes[1]", _double),
        ("routes[0].channel", lambda p: setattr(p.routes[0], "channel", "No Name")),
        ("routes[0].weights", lambda p: p.routes[0].ClearField("weights")),
        ("routes[0].weights", lambda p: setattr(p.routes[0].weights[0], "weight_bp", 6001)),
        (
            "routes[0].weights[0].weight_bp",
            lambda p: setattr(p.routes[0].weights[0], "weight_bp", -1),
        ),
        ("routes[0].weights[1].region", lambda p: setattr(p.routes[0].weights[1], "region", "")),
        ("routes[0].weights[1]", lambda p: setattr(p.routes[0].weights[1], "region", "e")),
        ("routes[0].shed_bp", lambda p: setattr(p.routes[0], "shed_bp", 10_001)),
        ("regions[0].phase", lambda p: setattr(p.regions[0], "phase", "sleepy")),
        ("regions[1].verdict", lambda p: setattr(p.regions[1], "verdict", "")),
        ("breakers[0].state", lambda p: setattr(p.breakers[0], "state", "ajar")),
    ],
)
def test_a_plan_that_may_not_be_followed_names_its_field(field: str, spoil: Any) -> None:
    """Every invariant of a plan is checked again by whoever receives it."""
    plan = good()
    wire.decode_plan(plan)
    spoil(plan)
    with pytest.raises(InvalidInputError) as refused:
        wire.decode_plan(plan)
    assert refused.value.field == field


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    """Garbage is refused as input, whatever it is."""
    try:
        wire.parse_plan(data)
    except InvalidInputError:
        return


def test_events_and_failovers_come_back() -> None:
    """Numbers in an event's data stay numbers; stages of a failover keep their distances."""
    event = Event(
        kind="k", message="m", severity=Severity.CRITICAL, region="e", data={"n": -3, "who": "007"}
    )
    message = wire.encode_event(event, event_id=7, at_wall_ms=1_700_000_000_123, epoch=3, term=2)
    assert (message.id, message.epoch, message.term, wire.unix_ms(message.at)) == (
        7,
        3,
        2,
        1_700_000_000_123,
    )
    assert wire.decode_event(message) == event
    record = FailoverRecord(
        id="f-1", region=RegionName("e"), kind="dead", cause="silent", symptom_ms=1000,
        suspected_ms=2500, decided_ms=8900, committed_ms=8950, converged_ms=9400, epoch=Epoch(4), outcome="completed",
    )  # fmt: skip
    shown = wire.encode_failover(
        record, now_ms=20_000, now_wall_ms=1_700_000_000_000, budget_ms=30_000
    )
    assert (shown.suspect_ms, shown.decide_ms, shown.commit_ms, shown.converge_ms) == (
        1500,
        7900,
        7950,
        8400,
    )
    assert shown.budget_remaining_ms == 30_000 - 8400
    back = wire.decode_failover(shown)
    assert back.converged_ms is not None
    assert back.converged_ms - back.symptom_ms == 8400
    running = FailoverRecord(
        id="f-2", region=RegionName("e"), kind="dead", cause="", symptom_ms=19_000
    )
    shown = wire.encode_failover(
        running, now_ms=20_000, now_wall_ms=1_700_000_000_000, budget_ms=30_000
    )
    assert (shown.commit_ms, shown.budget_remaining_ms) == (-1, 29_000)
    assert wire.decode_failover(shown).committed_ms is None


OUTCOMES = st.builds(Outcomes, ok=COUNTS, error=COUNTS, declined=COUNTS, latency=HISTOGRAMS)
CELLS = st.lists(
    st.builds(CellCounters, channel=NAMES, traffic=OUTCOMES, probe=OUTCOMES),
    max_size=3,
    unique_by=lambda c: c.channel,
).map(lambda cells: tuple(sorted(cells, key=lambda c: c.channel)))
INGRESS = st.lists(
    st.builds(
        IngressView,
        target=NAMES,
        ok=COUNTS,
        failed=COUNTS,
        last_success_age_ms=st.none() | COUNTS,
        failures_since_success=COUNTS,
    ),
    max_size=3,
    unique_by=lambda v: v.target,
).map(lambda views: tuple(sorted(views, key=lambda v: v.target)))
LAGS = st.dictionaries(NAMES, st.floats(0, 1e6), max_size=2)


@given(
    st.builds(
        Report, agent=NAMES, region=NAMES, boot=st.integers(1, 1 << 62), seq=st.integers(1, 1 << 62),
        sent_at_ms=TIMES, cells=CELLS, ingress=INGRESS, loop_lag_ms=st.floats(0, 1e6),
        clock_offset_ms=st.none() | st.floats(-1e6, 1e6), queue_lag_s=LAGS, applied_epoch=COUNTS,
        highest_epoch=COUNTS, version=st.just("0.1.0"),
    )
)  # fmt: skip
def test_a_report_comes_back(report: Report) -> None:
    """Every report an agent can make is read as it was meant."""
    assert wire_evidence.decode_report(wire_evidence.encode_report(report)) == report


REGIONS = st.lists(
    st.builds(
        RegionEvidence, region=NAMES, report_age_ms=st.none() | COUNTS, agents_live=st.integers(0, 1000),
        agents_expected=st.integers(0, 1000), loop_lag_ms=st.floats(0, 1e6),
        clock_offset_ms=st.none() | st.floats(-1e6, 1e6), queue_lag_s=LAGS, cells=CELLS, ingress=INGRESS,
    ),
    max_size=3, unique_by=lambda r: r.region,
).map(lambda regions: tuple(sorted(regions, key=lambda r: r.region)))  # fmt: skip


@given(
    st.builds(
        Digest, replica=NAMES, region=NAMES, boot=st.integers(1, 1 << 62), seq=st.integers(1, 1 << 62),
        regions=REGIONS, plan_epoch=COUNTS, highest_epoch=COUNTS,
        subscribers=st.lists(st.builds(Subscriber, name=NAMES, kind=st.just("agent"), age_ms=COUNTS), max_size=2).map(tuple),
    )
)  # fmt: skip
def test_a_digest_comes_back(digest: Digest) -> None:
    """Every digest a replica can make is read as it was meant."""
    assert wire_evidence.decode_digest(wire_evidence.encode_digest(digest)) == digest


def report() -> agent_pb2.ReportRequest:
    """Return a small good report."""
    return wire_evidence.encode_report(
        Report(
            agent=AgentId("a"), region=RegionName("e"), boot=1, seq=1,
            cells=(CellCounters(channel=ChannelName("c"), probe=Outcomes(ok=1, latency={3: 1})),),
            phases=(PhaseTimes(channel=ChannelName("c"), phase="dns", latency={1: 1}),),
            ingress=(IngressView(target=RegionName("n"), ok=1),), queue_lag_s={"q": 1.0},
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "spoil"),
    [
        ("agent_id", lambda r: setattr(r, "agent_id", "")),
        ("region", lambda r: setattr(r, "region", "E!")),
        ("boot", lambda r: setattr(r, "boot", 0)),
        ("seq", lambda r: setattr(r, "seq", -1)),
        ("cells[1]", lambda r: r.cells.append(r.cells[0])),
        ("cells[0].traffic.ok", lambda r: setattr(r.cells[0].traffic, "ok", -1)),
        ("cells[0].probe.error", lambda r: setattr(r.cells[0].probe, "error", (1 << 63) - 1)),
        ("cells[0].probe.latency", lambda r: r.cells[0].probe.latency.bucket.append(5)),
        (
            "cells[0].probe.latency.bucket",
            lambda r: r.cells[0].probe.latency.bucket.__setitem__(0, 66),
        ),
        (
            "cells[0].probe.latency.count",
            lambda r: r.cells[0].probe.latency.count.__setitem__(0, -1),
        ),
        ("cells[0].phases[0].phase", lambda r: setattr(r.cells[0].phases[0], "phase", "lunch")),
        (
            "ingress[0].last_success_age_ms",
            lambda r: setattr(r.ingress[0], "last_success_age_ms", -2),
        ),
        ("local.loop_lag_ms", lambda r: setattr(r.local, "loop_lag_ms", math.nan)),
        ("local.loop_lag_ms", lambda r: setattr(r.local, "loop_lag_ms", -1)),
        ("local.clock_offset_ms", lambda r: setattr(r.local, "clock_offset_ms", math.inf)),
        ("queues[0].lag_s", lambda r: setattr(r.queues[0], "lag_s", math.nan)),
        ("queues[0].queue", lambda r: setattr(r.queues[0], "queue", "x\n" * 3)),
        ("highest_epoch", lambda r: setattr(r, "highest_epoch", -1)),
        ("version", lambda r: setattr(r, "version", "v" * 200)),
    ],
)
def test_a_report_that_cannot_be_true_names_its_field(field: str, spoil: Any) -> None:
    """NaN, negative and absurd counters, disorder and unknown words change nothing anywhere."""
    message = report()
    wire_evidence.decode_report(message)
    spoil(message)
    with pytest.raises(InvalidInputError) as refused:
        wire_evidence.decode_report(message)
    assert refused.value.field == field


def test_a_replica_of_a_bad_digest_is_named() -> None:
    """A digest with two entries of one region is refused: its evidence would count twice."""
    region = RegionEvidence(region=RegionName("e"))
    digest = Digest(
        replica=ReplicaId("r"), region=RegionName("e"), boot=1, seq=1, regions=(region, region)
    )
    with pytest.raises(InvalidInputError, match=r"regions\[1\]"):
        wire_evidence.decode_digest(wire_evidence.encode_digest(digest))
