"""Fold: cumulative digests become gains, whatever the network does to them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.decision.fold import REPLICAS_KEPT, Baseline, fold
from controlplane.model.evidence import (
    CellCounters,
    Digest,
    IngressView,
    Outcomes,
    RegionEvidence,
    Subscriber,
)
from controlplane.simulation.demo import demo_topology

TOPOLOGY = demo_topology()


def digest(seq, ok, *, replica="east-0", region="east", boot=7, age=100, since=50, fails=0, **more):
    """A digest of one replica with one cell and one view."""
    return Digest(
        replica=replica,
        region=region,
        boot=boot,
        seq=seq,
        regions=(
            RegionEvidence(
                region=region,
                report_age_ms=age,
                agents_live=1,
                cells=(
                    CellCounters(
                        channel="alipay",
                        traffic=Outcomes(ok=ok, error=ok // 10, latency={20: ok}),
                    ),
                ),
                ingress=(
                    IngressView(
                        target="south",
                        ok=ok,
                        failed=ok // 5,
                        last_success_age_ms=since,
                        failures_since_success=fails,
                    ),
                ),
            ),
        ),
        **more,
    )


def gained(evidence, region="east"):
    """Calls and ok probes of one region's only cell and view."""
    found = next(r for r in evidence.regions if r.region == region)
    calls = found.cells[0].traffic.ok if found.cells else 0
    return calls, (found.ingress[0].ok if found.ingress else 0)


def test_first_sight_and_a_new_boot_are_baselines():
    """Nothing is gained from counters whose beginning was not seen."""
    evidence, base = fold(Baseline(), [(digest(1, 1000), 0)], TOPOLOGY)
    assert gained(evidence) == (0, 0)
    evidence, base = fold(base, [(digest(2, 1010), 0)], TOPOLOGY)
    assert gained(evidence) == (10, 10)
    evidence, base = fold(base, [(digest(1, 500, boot=8), 0)], TOPOLOGY)
    assert gained(evidence) == (0, 0)
    evidence, _ = fold(base, [(digest(2, 503, boot=8), 0)], TOPOLOGY)
    assert gained(evidence) == (3, 3)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    order=st.randoms(use_true_random=False),
)
def test_loss_repetition_and_reordering_lose_and_invent_nothing(steps, order):
    """However digests are dropped, repeated and shuffled, the gains add up to the last counter."""
    total, sent = 100, []
    for seq, step_ in enumerate(steps, start=2):
        total += step_
        sent.append(digest(seq, total))
    arriving = [d for d in sent[:-1] if order.random() < 0.7] * 2
    order.shuffle(arriving)
    arriving.append(sent[-1])
    _, base = fold(Baseline(), [(digest(1, 100), 0)], TOPOLOGY)
    calls = probes = 0
    for one in arriving:
        evidence, base = fold(base, [(one, 0)], TOPOLOGY)
        got = gained(evidence)
        assert min(got) >= 0
        calls, probes = calls + got[0], probes + got[1]
    assert (calls, probes) == (total - 100, total - 100)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(4)))
def test_order_of_digests_is_nothing(order):
    """Any permutation of the replicas gives the same evidence and baseline."""
    first = [(digest(1, 10 * i, replica=f"east-{i}"), 5 * i) for i in range(4)]
    second = [(digest(2, 10 * i + i, replica=f"east-{i}", age=i, fails=i), i) for i in range(4)]
    _, base = fold(Baseline(), first, TOPOLOGY)
    expected = fold(base, second, TOPOLOGY)
    assert fold(base, [second[i] for i in order], TOPOLOGY) == expected


def test_a_region_is_one_vantage_with_the_best_view():
    """Two replicas hear East: gains add up, ages are the youngest, failures the best view's."""
    a, b = digest(1, 10, replica="a"), digest(1, 20, replica="b")
    _, base = fold(Baseline(), [(a, 0), (b, 0)], TOPOLOGY)
    a = digest(2, 13, replica="a", age=900, since=4000, fails=9)
    b = digest(2, 25, replica="b", age=100, since=200, fails=1)
    evidence, _ = fold(base, [(a, 300), (b, 40)], TOPOLOGY)
    east = evidence.regions[0]
    assert gained(evidence) == (8, 8)
    assert (east.report_age_ms, east.agents_live) == (140, 2)
    view = east.ingress[0]
    assert (view.last_success_age_ms, view.failures_since_success) == (240, 1)


def test_ages_grow_with_the_age_of_the_digest():
    """A digest that does not come again makes its evidence older, never younger."""
    _, base = fold(Baseline(), [(digest(1, 10, age=100, since=50), 0)], TOPOLOGY)
    evidence, _ = fold(base, [(digest(1, 10, age=100, since=50), 2500)], TOPOLOGY)
    east = evidence.regions[0]
    assert (east.report_age_ms, east.ingress[0].last_success_age_ms) == (2600, 2550)


def test_highest_epoch_is_the_highest_anyone_has_seen():
    """Plans, replicas and subscribers count; it never goes back."""
    subscriber = Subscriber(name="e", kind="envoy", applied_epoch=41)
    evidence, base = fold(
        Baseline(), [(digest(1, 1, highest_epoch=7, subscribers=(subscriber,)), 0)], TOPOLOGY
    )
    assert evidence.highest_epoch == 41
    evidence, _ = fold(base, [], TOPOLOGY)
    assert evidence.highest_epoch == 41


def test_unknown_names_are_left_out_and_missing_regions_are_unknown():
    """Evidence has exactly the configured regions; silence is unknown, not zero."""
    stranger = digest(1, 5, replica="x-0", region="atlantis")
    evidence, _ = fold(Baseline(), [(stranger, 0)], TOPOLOGY)
    assert [r.region for r in evidence.regions] == ["east", "north", "south"]
    assert all(r.report_age_ms is None for r in evidence.regions)


def test_the_number_of_replicas_remembered_is_bounded():
    """Replicas that come and go do not fill the memory."""
    base = Baseline()
    for i in range(REPLICAS_KEPT + 40):
        _, base = fold(base, [(digest(1, 1, replica=f"r-{i}"), 0)], TOPOLOGY)
    assert len(base.counted) <= REPLICAS_KEPT
