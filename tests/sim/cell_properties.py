"""What must hold of cells and breakers, each as a function that says whether it does."""

from dataclasses import replace

import numpy as np

from controlplane.decision.cells import observe_cells
from controlplane.decision.state import State
from controlplane.decision.world import compiled
from controlplane.model.evidence import Evidence, Gains
from controlplane.model.intents import Freeze, Intents
from controlplane.simulation.faults import Fault
from tests.sim import worlds


def provider_outage_is_said():
    """One channel fails from everywhere: it is called an outage, and base shares stay."""
    faults = [Fault(kind="errors", channel="alipay", rate=0.6, start_ms=10_000)]
    result = worlds.run(faults, duration_ms=20_000, with_payments=True)
    return result.count("provider_outage") == 1 and result.weights[-1][1][0] == 7000


def incident_is_not_learned():
    """A slow rise to 12 % errors does not become the norm within its minutes."""
    world = compiled(worlds.TOPOLOGY)
    state, rng = State.initial(worlds.TOPOLOGY), np.random.default_rng(1)
    for tick in range(1200):
        share = 0.01 if tick < 600 else 0.5
        calls = rng.poisson(5.0, 1)
        bad = rng.binomial(calls, share)
        gains = Gains(
            cell=[0], traffic_good=calls - bad, traffic_bad=bad, probe_good=[0], probe_bad=[0]
        )
        memory = replace(state.memory, now_ms=500 * tick)
        state, _ = observe_cells(
            world, state.having(memory), Evidence(regions=(), gains=gains), 500
        )
    return state.columns["error_base"][0] < 0.05


def a_freeze_opens_no_breaker():
    """Frozen by an operator: a bad cell stays closed."""
    return not worlds.opened([(2, 8, 0, 0, 0)] * 60, intents=Intents(freeze=Freeze(reason="audit")))


def an_outage_moves_nothing():
    """A provider fails from everywhere: East's share is not moved for a moment, not even before the
    outage is recognised."""
    faults = [Fault(kind="errors", channel="alipay", rate=0.2, start_ms=10_000)]
    result = worlds.run(faults, duration_ms=30_000, with_payments=True, seed=2)
    return all(row[0] == 7000 for _, row in result.weights)


def a_bad_cell_carries_a_trickle_at_most():
    """30 % of East's calls to alipay fail for a minute: after the trip it never has its share back."""
    faults = [Fault(kind="errors", region="east", channel="alipay", rate=0.3, start_ms=5000)]
    result = worlds.run(faults, with_payments=True)
    rows = [row[0] for _, row in result.weights]
    return max(rows[rows.index(0) :]) <= 100


def probation_asks_for_evidence():
    """A cell with few calls that goes on failing 20 % of them is not closed by chance."""
    faults = [Fault(kind="errors", region="east", channel="bank_direct", rate=0.2, start_ms=5000)]
    result = worlds.run(faults, with_payments=True, duration_ms=180_000)
    return result.count("breaker_closed") == 0


def a_bad_cell_is_asked_less_and_less():
    """All calls of East to alipay fail for five minutes: it is tried again a few times only."""
    faults = [Fault(kind="errors", region="east", channel="alipay", rate=1.0, start_ms=5000)]
    result = worlds.run(faults, with_payments=True, duration_ms=300_000)
    return result.count("breaker_opened") <= 9


def once_a_minute(total, bad):
    """Ticks of 1.25 s with one payment a minute; `bad` tells which of them fail."""
    return [
        (int(not bad(i // 48)), int(bad(i // 48)), 0, 0, 0) if i % 48 == 0 else (0,) * 5
        for i in range(48 * total)
    ]


def one_failure_proves_nothing():
    """One request a minute, the third fails: nothing opens."""
    return not worlds.opened(once_a_minute(5, lambda minute: minute == 2), every_ms=1250)


def failures_in_a_row_prove_enough():
    """One request a minute, and after eight good ones all fail: opened, not blind."""
    return worlds.opened(once_a_minute(20, lambda minute: minute >= 8), every_ms=1250)


def probes_do_not_drown_payments():
    """Half of the payments fail while every probe succeeds, ten for each payment: opened."""
    return worlds.opened([(1, 1, 0, 20, 0)] * 120)


def a_decline_is_an_answer():
    """Half of the payments are declined by the issuer: nothing opens."""
    return not worlds.opened([(5, 0, 5, 0, 0)] * 120)


def an_unwell_observer_judges_no_cell():
    """The agents' own loop is late: the failures they see are of their own making."""
    return not worlds.opened([(2, 8, 0, 0, 0)] * 120, unwell=("east",))
