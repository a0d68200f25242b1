"""The time of a lock in hand: a pure machine, so every instant can be asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.locks.errors import LockLostError
from controlplane.locks.grant import Grant
from controlplane.locks.tenure import RENEW_PAUSE_MS, Tenure
from controlplane.locks.token import Token
from controlplane.model.errors import UnavailableError

TTL = 3_000
GRANT = Grant(
    name="a", owner="o", token=Token(1, 1), deadline_ms=10_000, ttl_ms=TTL, request="r", shared=True
)


@pytest.fixture
def tenure() -> Tenure:
    """From 7000 to 10000, to be left at 9700."""
    return Tenure(GRANT, margin_ms=300)


def test_it_is_renewed_when_a_third_is_over_and_then_again_and_again(tenure: Tenure) -> None:
    """First at 8000; after that with a pause, and never slept through the moment to tell."""
    assert tenure.pause_ms(7_000) == 1_000
    assert tenure.pause_ms(8_000) == RENEW_PAUSE_MS
    assert tenure.pause_ms(9_690) == 10
    assert tenure.pause_ms(9_700) == 0


@pytest.mark.parametrize("ttl_ms", [20, 100, 400])
def test_very_short_holds_are_renewed_in_time_too(ttl_ms: int) -> None:
    """The pause shrinks with the TTL."""
    short = Tenure(replace(GRANT, ttl_ms=ttl_ms), margin_ms=ttl_ms // 10)
    at = GRANT.deadline_ms - ttl_ms
    at += short.pause_ms(at)
    assert 0 < short.pause_ms(at) <= ttl_ms // 10
    assert short.remaining_ms(at) > short.pause_ms(at)


def test_a_renewal_moves_the_end_and_nothing_else(tenure: Tenure) -> None:
    """Whatever a renewal's answer leaves out stays as it was granted."""
    fresh = Grant(
        name="a", owner="o", token=GRANT.token, deadline_ms=12_000, ttl_ms=TTL, request=""
    )
    tenure.renewed(fresh)
    assert tenure.grant == replace(GRANT, deadline_ms=12_000)
    assert not tenure.over(9_700)


def test_nobody_answers_until_it_is_too_late(tenure: Tenure) -> None:
    """Silence loses nothing before the margin begins; then the lock is lost for good, with why."""
    tenure.failed(TimeoutError())
    tenure.failed(UnavailableError("gone"))
    assert not tenure.over(9_699)
    assert tenure.over(9_700)
    tenure.renewed(replace(GRANT, deadline_ms=20_000))
    assert tenure.over(9_701), "what is lost stays lost"
    assert "gone" in str(tenure.error())


def test_an_answer_that_it_is_gone_ends_it_at_once(tenure: Tenure) -> None:
    """No time is left of what somebody else may hold."""
    tenure.failed(LockLostError("a", "taken away"))
    assert tenure.remaining_ms(7_000) == 0
    assert "taken away" in str(tenure.error())
