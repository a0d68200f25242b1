"""The checker itself: it accepts what is allowed and finds each broken promise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lock_history import Granted, check


def grant(token: int, asked: int, returned: int, name: str = "a", until: int = 0) -> Granted:
    """A grant in short."""
    return Granted(name=name, token=token, asked_ns=asked, returned_ns=returned, until_ns=until)


def test_overlapping_grants_may_be_in_either_order() -> None:
    """Grants whose times overlap are concurrent: either order is fine."""
    assert check([grant(2, 0, 10), grant(1, 5, 12)]).ok


def test_a_later_grant_with_a_lower_token_is_backwards() -> None:
    """A grant asked for after another returned must have the higher token."""
    verdict = check([grant(2, 0, 10), grant(1, 11, 12)])
    assert (verdict.backwards, verdict.duplicates) == (1, 0)


def test_the_same_token_twice_is_a_duplicate() -> None:
    """Also when the two grants are concurrent."""
    assert check([grant(1, 0, 10), grant(1, 5, 12)]).duplicates == 1


def test_names_are_checked_apart() -> None:
    """Order is promised per name."""
    assert check([grant(2, 0, 1, "a"), grant(1, 2, 3, "b")]).ok


def test_overlapping_holds_are_counted() -> None:
    """Holds that overlap are no broken promise of tokens, but they are seen."""
    verdict = check([grant(1, 0, 10, until=50), grant(2, 11, 20, until=60)])
    assert verdict.ok
    assert verdict.overlaps == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10), st.integers(1, 12)), max_size=14))
def test_it_agrees_with_the_definition(raw: list[tuple[int, int, int]]) -> None:
    """On small histories the fast checker says what the quadratic definition says."""
    history = [grant(token, asked, asked + length) for asked, length, token in raw]
    tokens = [g.token for g in history]
    duplicates = len(tokens) - len(set(tokens))
    backwards = sum(
        any(e.returned_ns < g.asked_ns and e.token >= g.token for e in history) for g in history
    )
    verdict = check(history)
    assert (verdict.duplicates, verdict.backwards) == (duplicates, backwards)


def test_a_hold_that_was_over_before_it_was_returned_overlaps_nothing() -> None:
    """Its holder was told that it has no time; one that used its lock for an instant did hold it."""
    held = grant(1, 0, 10, until=50)
    assert check([held, grant(2, 11, 20, until=15)]).overlaps == 0
    assert check([held, grant(2, 11, 20, until=20)]).overlaps == 1
