"""Weights: every rule on its own, and what holds for all of them together."""

import copy
import gc
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.decision.smoothing import approach, round_columns
from controlplane.decision.weights import Load, target
from controlplane.model.plan import Route, routes
from controlplane.runtime.tick import uncollected
from controlplane.simulation.demo import demo_topology

LOAD = Load.of(demo_topology())
ALL, WELL = np.ones(3), np.ones((3, 4))


def shares(available=ALL, cell=WELL, tilt=WELL, load=LOAD):
    """The target shares, rows East, North, South; columns alipay, bank_direct, unionpay, wechat."""
    return target(load, np.asarray(available, dtype=float), cell, tilt, 0.8)


unit = st.sampled_from([0.0, 0.01, 0.25, 0.7, 1.0])


@settings(max_examples=100, deadline=None)
@given(
    available=st.lists(unit, min_size=3, max_size=3),
    cells=st.lists(st.sampled_from([0.0, 0.01, 1.0]), min_size=12, max_size=12),
    tilts=st.lists(st.sampled_from([0.5, 0.8, 1.0]), min_size=12, max_size=12),
)
def test_columns_are_whole_or_orphans(available, cells, tilts):
    """Shares are never negative and sum to 1, or to 0 where nobody may serve; the out stay out."""
    cell, tilt = np.reshape(cells, (3, 4)), np.reshape(tilts, (3, 4))
    aim = shares(available, cell, tilt)
    total = aim.share.sum(axis=0)
    assert (aim.share >= 0).all()
    assert np.allclose(np.where(aim.orphans, 1.0, total), 1.0)
    assert (total[aim.orphans] == 0).all()
    assert (aim.share[np.asarray(available) == 0] == 0).all()
    assert (aim.share[~LOAD.serves] == 0).all()
    assert ((aim.shed >= 0) & (aim.shed <= 1)).all()


def test_base_shares_are_kept_when_all_is_well():
    """70, 25 and 5 % where all three serve; the same proportion where two do."""
    aim = shares()
    assert np.allclose(aim.share[:, 0], (0.7, 0.25, 0.05))
    assert np.allclose(aim.share[:, 2], (0.7 / 0.95, 0.25 / 0.95, 0))


def test_what_a_dead_region_leaves_spills_by_priority_as_far_as_there_is_room():
    """Without East, North is filled to 80 % of its capacity and South takes the rest."""
    aim = shares((0, 1, 1))
    # unionpay and bank_direct have nowhere else to go: North bears a little more for them
    assert 0.8 <= aim.utilisation[1] < 0.82
    assert 0 < aim.utilisation[2] < 0.8
    assert not aim.shed.any()


def test_a_returning_region_gets_its_ramp_and_nothing_more():
    """At 5 % of its ramp East carries 5 % of its share, however much the others lack."""
    assert np.allclose(shares((0.05, 1, 1)).share[0, 0], 0.035)


def test_above_all_capacity_the_rest_is_shed_and_said():
    """South alone cannot carry alipay and wechat: utilisation is above 1 and shed covers it."""
    aim = shares((0, 0, 1))
    assert aim.utilisation[2] > 1
    assert np.allclose(aim.shed[0], 1 - 1 / aim.utilisation[2])


def test_a_channel_that_the_last_region_does_not_serve_is_an_orphan():
    """No unionpay from South: with South alone nobody may serve it."""
    assert shares((0, 0, 1)).orphans.tolist() == [False, True, True, False]


def test_a_bad_cell_moves_its_channel_and_no_other():
    """An open breaker on East/alipay takes alipay's share away and leaves the other channels."""
    cell = WELL.copy()
    cell[0, 0] = 0.0
    aim = shares(cell=cell)
    assert aim.share[0, 0] == 0
    assert aim.share[0, 3] > 0.6


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.integers(1, 5))
def test_rounding_always_gives_ten_thousand(values, columns):
    """Largest remainder: integers, never negative, 10,000 together, within 1 bp of the exact."""
    share = np.tile(np.array(values)[:, None] + 1e-9, (1, columns))
    share = share / share.sum(axis=0)
    whole = round_columns(share)
    assert (whole.sum(axis=0) == 10_000).all()
    assert ((whole == np.floor(whole)) & (whole >= 0)).all()
    assert (np.abs(whole - share * 10_000) <= 1.001).all()


weights = st.lists(st.integers(0, 1000), min_size=3, max_size=3).filter(lambda w: sum(w) > 0)


@settings(max_examples=100, deadline=None)
@given(weights, weights, st.booleans())
def test_movement_is_bounded_and_arrives(start, end, jump):
    """At most 250 bp a tick unless it may jump, always summing to 10,000, and it ends near."""
    current = round_columns(np.array(start, dtype=float)[:, None] / sum(start))
    goal = round_columns(np.array(end, dtype=float)[:, None] / sum(end))
    for _ in range(60):
        after = approach(current, goal, np.array([jump]), 250, 50)
        assert after.sum() == 10_000
        assert (after >= 0).all()
        assert jump or np.abs(after - current).max() <= 250
        current = after
    assert np.abs(current - goal).max() < 50


def test_the_quick_way_to_make_routes_makes_the_same_routes():
    """`routes` sets every field of a `Route`, and freezes it; a field that is added to one and not to
    the other shows here."""
    row = (("east", 7000), ("north", 3000))
    made, other = routes(("alipay", "wechat"), (row, row), (12, 0), (("ramp",), ()))
    assert made == Route(channel="alipay", weights=row, shed_bp=12, reasons=("ramp",))
    assert other == Route(channel="wechat", weights=row)
    assert replace(made) == made
    assert pickle.loads(pickle.dumps(made)) == copy.copy(made) == made
    with pytest.raises(FrozenInstanceError):
        made.shed_bp = 1
    with pytest.raises(ValueError, match="shorter"):
        list(routes(("alipay", "wechat"), (row,), (0, 0), ((), ())))


def test_the_collector_is_back_after_a_decision():
    """It is off within, on after, also when the decision raised, and left alone where it was off."""
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
