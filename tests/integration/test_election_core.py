"""When a candidate claims the leader key: the pure core, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model.evidence import Digest
from controlplane.model.ids import Epoch, RegionName, ReplicaId, Term
from controlplane.model.plan import Phase, Plan, RegionStatus
from controlplane.ports import LeaderKeyState
from controlplane.runtime.election import Candidate, ElectionRules, another_can, regions_out

RULES = ElectionRules(jitter_ms=0)
NOBODY = LeaderKeyState(revision=1)


def candidate(rank: int = 0) -> Candidate:
    """Return a candidate without jitter."""
    return Candidate(RULES, rank, random.Random(0))


def beat(number: int, term: int = 5) -> LeaderKeyState:
    """Return what is read after the leader's write `number`."""
    return LeaderKeyState(term=Term(term), replica="a", region="east", heartbeat_revision=number)


def feed(one: Candidate, state: LeaderKeyState, start_ms: int, end_ms: int) -> int:
    """Read the same every 100 ms; returns the moment of the last read."""
    for now_ms in range(start_ms, end_ms + 1, 100):
        one.saw(now_ms, state)
    return end_ms


def test_a_vacant_key_is_claimed_at_once() -> None:
    """Nobody holds the key: the first in rank claims now, the next a moment later."""
    first, second = candidate(0), candidate(2)
    for one in (first, second):
        one.saw(1000, NOBODY)
    assert first.due_ms(eligible=True) == 1000
    assert second.due_ms(eligible=True) == 1000 + 2 * RULES.vacant_step_ms


def test_nothing_is_claimed_before_the_first_reading() -> None:
    """Without a reading there is no claim, however long it takes."""
    one = candidate()
    one.blind(10_000)
    assert one.due_ms(eligible=True) is None


def test_a_standstill_is_taken_over() -> None:
    """Plan and heartbeat unchanged for `takeover_after_ms` while reads succeed: due, by rank."""
    first, second = candidate(0), candidate(1)
    for one in (first, second):
        feed(one, beat(10), 1000, 2500)
    assert first.due_ms(eligible=True) == 2500
    assert second.due_ms(eligible=True) == 2500 + RULES.rank_step_ms


def test_a_beating_leader_is_left_alone() -> None:
    """Every new heartbeat starts the wait anew."""
    one = candidate()
    for number in range(20):
        one.saw(1000 + number * 500, beat(number))
        due_ms = one.due_ms(eligible=True)
        assert due_ms is not None
        assert due_ms >= 1000 + number * 500 + RULES.takeover_after_ms


def test_a_failed_read_starts_the_wait_anew() -> None:
    """We were blind, so we cannot say that the leader stood still: etcd's own election is not the
    leader's fault."""
    one = candidate()
    feed(one, beat(10), 1000, 2400)
    one.blind(2450)
    one.saw(2500, beat(10))
    assert one.due_ms(eligible=True) == 2450 + RULES.takeover_after_ms


def test_a_gap_between_reads_starts_the_wait_anew() -> None:
    """A candidate that was itself stopped wakes without blaming the leader."""
    one = candidate()
    feed(one, beat(10), 1000, 1500)
    one.saw(60_000, beat(10))
    assert one.due_ms(eligible=True) == 60_000 + RULES.takeover_after_ms


def test_slow_writes_lengthen_the_wait() -> None:
    """On a disk where heartbeats take 1.2 s, 2.4 s of silence mean nothing; the ceiling holds."""
    one = candidate()
    now_ms = 1000
    for number in range(5):
        now_ms = feed(one, beat(number), now_ms, now_ms + 1200)
    assert one.takeover_ms() == pytest.approx(2400, abs=200)
    for number in range(5, 10):
        now_ms = feed(one, beat(number), now_ms, now_ms + 30_000)
    assert one.takeover_ms() == RULES.takeover_max_ms


def test_a_slow_leader_is_vouched_for_as_long_as_candidates_wait() -> None:
    """The deadline after a write that took long is as much shorter than the takeover that
    candidates then grant as it always is; and it has the same ceiling."""
    margin_ms = RULES.takeover_after_ms - RULES.demote_after_ms
    assert RULES.demote_ms([]) == RULES.demote_ms([3, 5]) == RULES.demote_after_ms
    assert RULES.demote_ms([3, 1200, 5]) == 2400 - margin_ms
    assert RULES.demote_ms([60_000]) == RULES.takeover_max_ms - margin_ms


def test_a_lease_to_claim_with_outlives_its_own_grant() -> None:
    """Reads that took seconds: grant and claim will too, so the lease is asked for longer, up to a
    bound."""
    assert RULES.ttl_s([]) == RULES.ttl_s([100, 20]) == RULES.lease_ttl_s
    assert RULES.ttl_s([3000, 20]) == 12
    assert RULES.ttl_s([60_000]) == RULES.ttl_factor * RULES.lease_ttl_s


def test_a_takeover_is_not_taken_for_a_slow_beat() -> None:
    """The standstill that ended in a new term says nothing about how fast writes are."""
    one = candidate()
    feed(one, beat(10, term=5), 1000, 2600)
    one.saw(2700, beat(11, term=11))
    one.saw(2800, beat(12, term=11))
    assert one.takeover_ms() == RULES.takeover_after_ms


def test_the_ineligible_wait_longer_but_not_for_ever() -> None:
    """A failed or drained region lets the others go first, and leads when nobody else does."""
    one = candidate()
    one.saw(1000, NOBODY)
    assert one.due_ms(eligible=False) == 1000 + RULES.ineligible_extra_ms


def test_the_ineligible_do_not_wait_for_nobody() -> None:
    """When nobody eligible can be heard, the extra wait does not apply: a standstill and a moment,
    by rank; who is eligible is never held back by it."""
    first, second = candidate(0), candidate(1)
    for one in (first, second):
        feed(one, beat(10), 1000, 2500)
    alone_ms = 1000 + RULES.takeover_after_ms + RULES.alone_extra_ms
    assert first.due_ms(eligible=False, alone=True) == alone_ms
    assert second.due_ms(eligible=False, alone=True) == alone_ms + RULES.rank_step_ms
    assert first.due_ms(eligible=True, alone=True) == first.due_ms(eligible=True)
    assert alone_ms < 1000 + RULES.takeover_after_ms + RULES.ineligible_extra_ms


def test_who_seems_alone_listens_first() -> None:
    """A vacant key: whoever lives has the time of a standstill to be heard, and whoever is eligible
    and heard by nobody is still first, also the last of five in rank."""
    one, unheard = candidate(0), candidate(4)
    for each in (one, unheard):
        each.saw(1000, NOBODY)
    alone_ms, eligible_ms = (
        one.due_ms(eligible=False, alone=True), unheard.due_ms(eligible=True)
    )  # fmt: skip
    assert alone_ms == 1000 + RULES.takeover_after_ms + RULES.alone_extra_ms
    assert eligible_ms is not None
    assert alone_ms > eligible_ms + RULES.takeover_after_ms


def heard(*names: str, age_ms: int = 100) -> list[tuple[Digest, int]]:
    """Digests of replicas named region-number."""
    return [
        (Digest(replica=ReplicaId(n), region=RegionName(n[:-2]), boot=1, seq=1), age_ms)
        for n in names
    ]


@pytest.mark.parametrize(
    ("found", "can"),
    [
        (heard("east-0", "north-0"), True),
        (heard("east-0", "south-0"), False),  # south is out too
        (heard("east-0"), False),
        (heard("north-0", age_ms=1500), True),
        (heard("north-0", age_ms=1501), False),  # not heard for as long as a standstill
        (heard("north-1"), False),  # the leader that stands still, although it is heard
        (heard("east-1"), False),  # ours is drained, not only we
        ([], False),
    ],
)
def test_another_can_only_if_it_is_heard_and_not_out(
    found: list[tuple[Digest, int]], can: bool
) -> None:
    """East and south are out, we are east-0, north-1 leads: only a living other of north counts."""
    out = regions_out(
        Plan(
            epoch=Epoch(1),
            regions=(
                RegionStatus(name=RegionName("east"), drained=True),
                RegionStatus(name=RegionName("north")),
                RegionStatus(name=RegionName("south"), phase=Phase.FAILED),
            ),
        )
    )
    assert another_can(found, out, ("east-0", "north-1"), RULES.takeover_after_ms) is can


def test_failed_claims_back_off() -> None:
    """Claims that etcd refuses (full, slow, another was faster) become rarer, up to a bound."""
    one, waits = candidate(), []
    for _ in range(8):
        one.saw(1000, NOBODY)
        one.claim_failed(1000)
        due_ms = one.due_ms(eligible=True)
        assert due_ms is not None
        waits.append(due_ms - 1000)
    assert waits[:3] == [200, 400, 800]
    assert waits[-1] == RULES.claim_backoff_max_ms


@given(
    st.lists(st.tuples(st.integers(1, 400), st.booleans(), st.booleans()), min_size=1, max_size=60)
)
def test_a_claim_is_always_vouched_for(steps: list[tuple[int, bool, bool]]) -> None:
    """Property: whenever a takeover is due, reads have succeeded without a gap over the whole wait
    and all of them saw the same heartbeat."""
    one, now_ms, number = candidate(), 0, 0
    same_since_ms: int | None = None
    last_read_ms = -10_000
    for step_ms, readable, advanced in steps:
        now_ms += step_ms
        number += advanced
        if not readable:
            one.blind(now_ms)
            same_since_ms = None
            continue
        gap = now_ms - last_read_ms > RULES.read_gap_ms
        if advanced or gap or same_since_ms is None:
            same_since_ms = now_ms
        last_read_ms = now_ms
        one.saw(now_ms, beat(number))
        due_ms = one.due_ms(eligible=True)
        assert due_ms is not None
        if now_ms >= due_ms:
            assert now_ms - same_since_ms >= RULES.takeover_after_ms - step_ms
