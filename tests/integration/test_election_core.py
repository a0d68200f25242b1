"""When a candidate claims the leader key: the pure core, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.model.ids import Term
from controlplane.ports import LeaderKeyState
from controlplane.runtime.election import Candidate, ElectionRules

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
