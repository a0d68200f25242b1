"""The small worlds in which properties of the decision are checked."""

from dataclasses import replace

from controlplane.decision import (
    step,
)
from controlplane.decision.state import State
from controlplane.model.evidence import CellCounters, Evidence, Outcomes, RegionEvidence
from controlplane.model.intents import NO_INTENTS, Failback
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.run import Simulation

TOPOLOGY = demo_topology()


def policy(**changes):
    """The demo under another policy."""
    return replace(TOPOLOGY, policy=replace(TOPOLOGY.policy, **changes))


def called_back(region, *, gates=(), intents=NO_INTENTS):
    """An operator calls a region back from the outage it is in, past `gates`; `intents` hold too."""

    def ask(state):
        since_ms = state.memory.regions[region].since_ms
        back = Failback(region=region, since_ms=since_ms, gates=gates)
        return replace(intents, failback=(back,))

    return ask


def run(faults, **options):
    """Run a short world; by default without payments."""
    options = {"duration_ms": 60_000, "with_payments": False, "leader": "south"} | options
    return Simulation(TOPOLOGY, faults, **options).run()


def ticks(faults, **options):
    """The ticks of the same."""
    options = {"duration_ms": 60_000, "with_payments": False, "leader": "south"} | options
    return list(Simulation(TOPOLOGY, faults, **options).ticks())


def opened(rows, *, unwell=(), intents=NO_INTENTS, every_ms=500):
    """Feed alipay's cells from East; tells whether its breaker opened. A row holds the good and bad
    payments, the declined ones, and the good and bad probes of one tick."""
    state = State.initial(TOPOLOGY)
    for number, (good, bad, declined, probe_good, probe_bad) in enumerate(rows):
        cells_ = CellCounters(
            channel="alipay",
            traffic=Outcomes(ok=good, error=bad, declined=declined),
            probe=Outcomes(ok=probe_good, error=probe_bad),
        )
        lag = 9000.0 if "east" in unwell else 0.0
        evidence = Evidence(
            regions=tuple(
                RegionEvidence(
                    region=name,
                    report_age_ms=100,
                    agents_live=1,
                    loop_lag_ms=lag if name == "east" else 0.0,
                    cells=(cells_,) if name == "east" else (),
                )
                for name in ("east", "north", "south")
            )
        )
        decided = step.step(TOPOLOGY, state, evidence, intents, every_ms * number)
        state = decided.state
        if any(event.kind == "breaker_opened" for event in decided.events):
            return True
    return False
