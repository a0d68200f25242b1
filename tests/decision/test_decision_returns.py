"""Returns: a region whose drain ends, whatever ended it, and whatever else happens meanwhile."""

from __future__ import annotations

from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.decision.whatif import whatif
from controlplane.model.evidence import Evidence
from controlplane.model.intents import NO_INTENTS, Drain, Intents
from controlplane.model.plan import Phase
from controlplane.simulation.faults import Fault
from tests.sim import worlds

DRAINED = Intents(drains=(Drain(region="east", reason="patch"),))


def phases(asked, faults=(), *, seconds=60):
    """East's phase and its weight in the first channel at every tick, by time in ms."""
    seen = {}
    for tick in worlds.ticks(faults, intents=asked, duration_ms=seconds * 1000):
        east = tick.step.plan.regions[0]
        seen[tick.at_ms] = (east.phase, dict(tick.step.plan.routes[0].weights)["east"])
    return seen


def test_a_drain_of_a_second_ends_in_the_same_ramp():
    """Its region lost all its connections, however short it was."""
    seen = phases([(10_000, DRAINED), (11_000, NO_INTENTS)], seconds=30)
    assert seen[10_500] == (Phase.HEALTHY, 0)
    assert {seen[at] for at in range(11_000, 20_500, 500)} == {(Phase.RECOVERING, 70)}


def test_a_drain_in_the_middle_of_a_return_starts_it_anew():
    """Drained again at 25 %, back again: the first step is 1 %."""
    again = [(10_000, DRAINED), (11_000, NO_INTENTS), (33_000, DRAINED), (34_000, NO_INTENTS)]
    seen = phases(again, seconds=40)
    assert seen[32_500][1] > 700
    assert seen[34_500] == (Phase.RECOVERING, 70)


def test_what_nobody_else_can_serve_takes_no_ramp():
    """North, the other region that serves unionpay, is dead when East's drain ends: there is nowhere
    better for a ramp to keep those payments. Those that South serves too come by ramp."""
    dead = [Fault(kind="crash", region="north", start_ms=12_000)]
    asked = [(5000, DRAINED), (30_000, NO_INTENTS)]
    for tick in worlds.ticks(dead, intents=asked, duration_ms=36_000):
        if tick.at_ms >= 30_000:
            rows = {r.channel: dict(r.weights)["east"] for r in tick.step.plan.routes}
            assert rows["unionpay"] == 10_000
            assert rows["alipay"] <= 10_000 // 4


def test_a_region_that_failed_while_it_was_drained_returns_as_a_failed_one():
    """The end of its drain spares it nothing: held down, then the ramp, once."""
    faults = [Fault(kind="crash", region="east", start_ms=15_000, end_ms=30_000)]
    seen = phases([(10_000, DRAINED), (32_000, NO_INTENTS)], faults, seconds=70)
    assert {seen[at][0] for at in range(32_000, 60_000, 500)} == {Phase.FAILED}
    assert seen[64_000] == (Phase.RECOVERING, 70)


def test_a_drained_region_that_is_suspect_returns_into_the_ramp():
    """Its drain ends while it is suspect: when the suspicion is withdrawn it takes the steps."""
    faults = [Fault(kind="crash", region="east", start_ms=15_000, end_ms=19_500)]
    seen = phases([(10_000, DRAINED), (18_500, NO_INTENTS)], faults, seconds=40)
    assert seen[19_000] == (Phase.SUSPECT, 0)
    assert Phase.HEALTHY not in {phase for at, (phase, _) in seen.items() if at >= 19_000}
    assert (Phase.RECOVERING, 70) in seen.values()


def test_a_drain_that_is_not_honoured_ends_in_no_ramp():
    """All three are asked to drain, so East stays; when that is over it does not fall to 1 %."""
    everybody = Intents(
        drains=tuple(Drain(region=n, reason="x") for n in ("east", "north", "south"))
    )
    seen = phases([(10_000, everybody), (15_000, NO_INTENTS)], seconds=20)
    assert {phase for phase, _ in seen.values()} == {Phase.HEALTHY}
    assert seen[16_000][1] > 5000


def test_the_next_leader_knows_that_a_drain_ended():
    """The drain ends while nobody leads: the next one has the state, and the ramp begins."""
    state = State.initial(worlds.TOPOLOGY)
    first = step(worlds.TOPOLOGY, state, Evidence(regions=()), DRAINED, 0)
    state = State.from_bytes(first.state.to_bytes()).rebased()
    then = step(worlds.TOPOLOGY, state, Evidence(regions=()), NO_INTENTS, 99_000)
    assert then.plan.regions[0].phase is Phase.RECOVERING


def test_a_dry_run_of_a_failback_shows_where_the_ramp_ends():
    """East is failed and well again: what a failback would lead to is its whole share, not the
    nothing of the first tick."""
    faults = [Fault(kind="crash", region="east", start_ms=10_000, end_ms=25_000)]
    ticks = worlds.ticks(faults, duration_ms=28_000)
    state, evidence = ticks[-1].step.state, ticks[-1].evidence
    asked = worlds.called_back("east")(state)
    after = whatif(worlds.TOPOLOGY, state, evidence, asked).plan
    assert after.regions[0].phase is Phase.HEALTHY
    assert dict(after.routes[0].weights)["east"] == 7000
