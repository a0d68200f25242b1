"""Which replica comes next, and when: properties of a pure object."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.servers import (
    BACKOFF_BASE_MS,
    BACKOFF_CAP_MS,
    GOOD_MS,
    HOME_CHECK_MAX_MS,
    HOME_CHECK_MS,
    HOME_PROOFS,
    Rotation,
    backoff_ms,
    order,
)

REPLICAS = {
    "east-0": ("east", "e0:1"),
    "north-0": ("north", "n0:1"),
    "south-0": ("south", "s0:1"),
    "south-1": ("south", "s1:1"),
}


def test_order_puts_the_own_region_first() -> None:
    """Without `agent.servers` every replica is used, those of the own region first."""
    assert order((), REPLICAS, "south") == (("s0:1", "s1:1", "e0:1", "n0:1"), 2)
    assert order((), REPLICAS, "west") == (("e0:1", "n0:1", "s0:1", "s1:1"), 0)


def test_configured_servers_win() -> None:
    """`agent.servers` is used as given; home is what the configuration places in the region."""
    assert order(("n0:1", "e0:1"), REPLICAS, "east") == (("e0:1", "n0:1"), 1)
    assert order(("x:1", "y:1"), REPLICAS, "east") == (("x:1", "y:1"), 1)


@given(failures=st.integers(0, 10_000), seed=st.integers())
def test_backoff_is_full_jitter_within_its_bounds(failures: int, seed: int) -> None:
    """Pauses start anywhere from 0, double in bound, and stop growing at the cap."""
    pause = backoff_ms(failures, random.Random(seed))
    assert 0 <= pause <= min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2 ** max(failures - 1, 0))


@given(lasted=st.lists(st.integers(0, 2 * GOOD_MS), min_size=20, max_size=60), seed=st.integers())
def test_every_server_is_tried(lasted: list[int], seed: int) -> None:
    """However sessions end, each server gets its turn: nobody is stuck with a dead replica."""
    rotation = Rotation(["a", "b", "c", "d"], 1, random.Random(seed))
    seen = []
    for ms in lasted:
        seen.append(rotation.current)
        rotation.lost(ms)
    for i in range(len(seen) - 3):
        assert set(seen[i : i + 4]) == {"a", "b", "c", "d"}


def test_returning_home_needs_proofs_in_a_row() -> None:
    """One good look is not enough; a bad one starts over."""
    rotation = Rotation(["home", "away"], 1, random.Random(1))
    rotation.lost(0)
    assert (rotation.current, rotation.at_home) == ("away", False)
    looks = [True] * (HOME_PROOFS - 1) + [False] + [True] * (HOME_PROOFS - 1)
    assert not any(rotation.looked(well) for well in looks)
    assert rotation.looked(True)
    assert (rotation.current, rotation.at_home) == ("home", True)


def test_flapping_home_is_returned_to_ever_more_rarely() -> None:
    """Each return that fails soon doubles the pause between looks, up to a bound; a good session
    at home resets it."""
    rotation = Rotation(["home", "away"], 1, random.Random(1))
    pauses = []
    rotation.lost(0)
    for _ in range(8):
        pauses.append(max(rotation.home_check_ms for _ in range(50)))
        while not rotation.looked(True):
            pass
        rotation.lost(100)
        assert rotation.current == "away"
    rising = [min(pause, HOME_CHECK_MAX_MS * 0.75) for pause in pauses]
    assert rising == sorted(rising)
    assert pauses[0] <= HOME_CHECK_MS * 1.25
    assert HOME_CHECK_MAX_MS * 0.75 <= pauses[-1] <= HOME_CHECK_MAX_MS * 1.25
    while not rotation.looked(True):
        pass
    rotation.lost(GOOD_MS)
    assert rotation.home_check_ms <= HOME_CHECK_MS * 1.25


def test_agents_away_do_not_look_home_together() -> None:
    """Each look comes after a pause of its own, up to a quarter shorter or longer."""
    rotation = Rotation(["home", "away"], 1, random.Random(1))
    rotation.lost(0)
    pauses = [rotation.home_check_ms / HOME_CHECK_MS for _ in range(100)]
    assert 0.75 <= min(pauses) < 0.8
    assert 1.2 < max(pauses) <= 1.25


def test_several_home_replicas_are_looked_at_in_turn() -> None:
    """A dead home replica does not hide another one of the same region."""
    rotation = Rotation(["h0", "h1", "away"], 2, random.Random(1))
    rotation.lost(0)
    assert rotation.at_home
    rotation.lost(0)
    assert not rotation.at_home
    assert rotation.home == "h0"
    assert not rotation.looked(False)
    assert rotation.home == "h1"
    while not rotation.looked(True):
        pass
    assert rotation.current == "h1"


def test_without_home_nobody_looks() -> None:
    """A region without replicas is at home everywhere."""
    assert Rotation(["a"], 0, random.Random(1)).at_home
    with pytest.raises(ValueError, match="no servers"):
        Rotation([], 0, random.Random(1))
