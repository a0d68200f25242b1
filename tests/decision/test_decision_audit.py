"""The plan checker refuses every broken plan, and only those."""

from dataclasses import replace

import pytest

from controlplane.model.audit import check
from controlplane.model.plan import BreakerStatus, Phase, Plan, RegionStatus, Route
from controlplane.simulation.demo import demo_topology

TOPOLOGY = demo_topology()
THREE = (("east", 7000), ("north", 2500), ("south", 500))
TWO = (("east", 7000), ("north", 3000))
GOOD = Plan(
    epoch=5,
    routes=(
        Route(channel="alipay", weights=THREE),
        Route(channel="bank_direct", weights=TWO),
        Route(channel="unionpay", weights=TWO),
        Route(channel="wechatpay", weights=THREE),
    ),
    regions=tuple(RegionStatus(name=n) for n in ("east", "north", "south")),
    breakers=(BreakerStatus(region="east", channel="alipay"),),
)


def first(weights, **changes):
    """GOOD with another first route."""
    route = replace(GOOD.routes[0], weights=weights, **changes)
    return replace(GOOD, routes=(route, *GOOD.routes[1:]))


def region(name, **changes):
    """GOOD with one region's status changed."""
    return replace(
        GOOD, regions=tuple(replace(r, **changes) if r.name == name else r for r in GOOD.regions)
    )


def test_a_sound_plan_passes_with_and_without_topology():
    """Nothing is found where nothing is wrong; agents without a topology may check too."""
    assert check(GOOD, TOPOLOGY) == ()
    assert check(GOOD, None) == ()
    assert check(GOOD, TOPOLOGY, replace(GOOD, epoch=4)) == ()


@pytest.mark.parametrize(
    ("plan", "rule"),
    [
        (replace(GOOD, epoch=0), "epoch"),
        (replace(GOOD, routes=()), "empty"),
        (first(()), "empty"),
        (first((("east", 7000), ("north", 2500), ("south", 499))), "sum"),
        (first((("east", 10_001), ("north", -1), ("south", 0))), "range"),
        (first((("east", 7000.0), ("north", 2500), ("south", 500))), "range"),
        (first((("east", True), ("north", 9999), ("south", 0))), "range"),
        (first(THREE, shed_bp=10_001), "range"),
        (first((("north", 2500), ("east", 7500))), "order"),
        (first((("east", 5000), ("east", 5000))), "order"),
        (replace(GOOD, routes=GOOD.routes[::-1]), "order"),
        (replace(GOOD, regions=GOOD.regions[::-1]), "order"),
        (replace(GOOD, routes=GOOD.routes[1:]), "missing"),
        (replace(GOOD, regions=GOOD.regions[1:]), "missing"),
        (first((("atlantis", 1), ("east", 9999))), "unknown"),
        (replace(GOOD, routes=(*GOOD.routes, Route(channel="zzz", weights=TWO))), "unknown"),
        (replace(GOOD, breakers=(BreakerStatus(region="south", channel="unionpay"),)), "unknown"),
        (region("east", phase=Phase.FAILED), "out"),
        (region("south", drained=True), "out"),
        (
            replace(GOOD, regions=tuple(replace(r, drained=True) for r in GOOD.regions)),
            "last_region",
        ),
    ],
)
def test_each_broken_invariant_is_named(plan, rule):
    """Every rule finds its own kind of broken plan and calls it by its name."""
    assert rule in {violation.rule for violation in check(plan, TOPOLOGY)}


def test_the_epoch_must_rise():
    """The same epoch, or an older plan that comes late, is refused (night 1)."""
    for epoch in (5, 6):
        assert {v.rule for v in check(GOOD, TOPOLOGY, replace(GOOD, epoch=epoch))} == {"epoch"}


def test_a_failed_region_may_keep_what_nobody_else_can_serve():
    """With East and North failed, unionpay has nowhere to go: the least bad is no violation."""
    plan = replace(
        GOOD,
        routes=(
            Route(channel="alipay", weights=(("east", 0), ("north", 0), ("south", 10_000))),
            GOOD.routes[1],
            GOOD.routes[2],
            Route(channel="wechatpay", weights=(("east", 0), ("north", 0), ("south", 10_000))),
        ),
        regions=tuple(
            RegionStatus(name=n, phase=Phase.HEALTHY if n == "south" else Phase.FAILED)
            for n in ("east", "north", "south")
        ),
    )
    assert check(plan, TOPOLOGY) == ()


@pytest.mark.parametrize(
    ("sound", "equal"),
    [
        ((("east", 7000), ("north", 3000)), (("east", 7000.0), ("north", 3000))),
        ((("east", 1), ("north", 9999)), (("east", True), ("north", 9999))),
    ],
)
def test_weights_that_equal_sound_ones_are_not_sound_for_that(sound, equal):
    """Sound weights are judged once for all channels that share them; what merely equals them, a
    fraction or a truth value, is judged itself."""
    assert sound == equal
    routes = [replace(r, weights=w) for r, w in zip(GOOD.routes[1:3], (sound, equal), strict=True)]
    found = check(replace(GOOD, routes=(GOOD.routes[0], *routes, GOOD.routes[3])), TOPOLOGY)
    assert [(v.rule, v.field) for v in found] == [("range", "routes[unionpay].east")]


@pytest.mark.parametrize("shed_bp", [1.0, True])
def test_a_shed_share_that_equals_a_sound_one_is_not_sound_for_that(shed_bp):
    """The same for what is shed."""
    routes = [
        replace(r, weights=TWO, shed_bp=s)
        for r, s in zip(GOOD.routes[1:3], (1, shed_bp), strict=True)
    ]
    found = check(replace(GOOD, routes=(GOOD.routes[0], *routes, GOOD.routes[3])), TOPOLOGY)
    assert {(v.rule, v.field) for v in found} == {("range", "routes[unionpay].shed_bp")}


def test_weights_sound_for_one_channel_are_judged_anew_for_other_regions():
    """Alipay may go South, unionpay may not, though both share one object."""
    routes = (*GOOD.routes[:2], replace(GOOD.routes[2], weights=THREE), GOOD.routes[3])
    found = check(replace(GOOD, routes=routes), TOPOLOGY)
    assert [(v.rule, v.field) for v in found] == [("unknown", "routes[unionpay].south")]
