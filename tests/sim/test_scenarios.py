"""The scenario files: each is a night that must end as it says."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from controlplane.decision import step as step_module
from controlplane.model.audit import check
from controlplane.model.intents import Drain, Intents
from controlplane.simulation import run as run_module
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault
from controlplane.simulation.run import Result, Simulation, note

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.yaml"))


def faults_of(entry):
    """One line of `faults` as values; `up`/`down` repeat it until `stop`."""
    entry = dict(entry)
    start, end = entry.pop("start") * 1000, entry.pop("end", 10**6) * 1000
    up, down, stop = entry.pop("up", None), entry.pop("down", None), entry.pop("stop", None)
    if up is None:
        return [Fault(start_ms=int(start), end_ms=int(end), **entry)]
    period = int((up + down) * 1000)
    return [
        Fault(start_ms=at, end_ms=at + int(down * 1000), **entry)
        for at in range(int(start), int(stop * 1000), period)
    ]


def intents_of(night):
    """Drains and gates by the second they begin."""
    moments = sorted({*night.get("drains", {}), *night.get("gates", {})})
    out = []
    for moment in moments:
        drains = [v for k, v in night.get("drains", {}).items() if k <= moment]
        gates = [v for k, v in night.get("gates", {}).items() if k <= moment]
        out.append(
            (
                moment * 1000,
                Intents(
                    drains=tuple(Drain(region=r, reason="night") for r in (drains or [[]])[-1]),
                    closed_gates=tuple((gates or [[]])[-1]),
                ),
            )
        )
    return out


def run(night, seed=1):
    """Run one night; returns the result and the weights of the first channel at each second."""
    world = Simulation(
        demo_topology(),
        [fault for entry in night["faults"] for fault in faults_of(entry)],
        duration_ms=night["seconds"] * 1000,
        leader=night.get("leader", "south"),
        with_payments=night.get("payments", False),
        intents=intents_of(night),
        seed=seed,
    )
    result, weights = Result(), {}
    for tick in world.ticks():
        note(result, tick)
        weights[tick.at_ms // 1000] = dict(tick.step.plan.routes[0].weights)
    return result, weights


def within(value, bounds):
    """Tell whether a first time (ms) fits [from, to] in seconds, or null for never."""
    if bounds is None:
        return value is None
    return value is not None and bounds[0] * 1000 <= value <= bounds[1] * 1000


def fits(weight, wanted):
    """Tell whether a weight is what a scenario file asks for."""
    if isinstance(wanted, int):
        return weight == wanted
    sign, number = wanted.split()
    return weight <= int(number) if sign == "<=" else weight >= int(number)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_night(path, monkeypatch):
    """The night ends as its file says: what moved, what failed, what was said, where weights are."""
    night = yaml.safe_load(path.read_text())
    if "coordination" in night:
        ill_from, ill_to = (at * 1000 for at in night["coordination"])
        original = step_module.step
        origin = []

        def suspect(topology, state, evidence, intents, now_ms):
            origin.append(now_ms)
            at_ms = now_ms - origin[0] + 500
            ill = ill_from <= at_ms < ill_to
            return original(
                topology, state, replace(evidence, coordination_suspect=ill), intents, now_ms
            )

        monkeypatch.setattr(run_module, "step", suspect)
    result, weights = run(night)
    expect = night["expect"]
    said = [(at, event.kind, event.message) for at, event in result.events]
    for name, bounds in expect.get("moved", {}).items():
        assert within((result.moved.get(name) or [None])[0], bounds), (name, said)
    for name, bounds in expect.get("failed", {}).items():
        assert within((result.failed.get(name) or [None])[0], bounds), (name, said)
    for kind, (least, most) in expect.get("events", {}).items():
        assert least <= result.count(kind) <= most, (kind, said)
    for second, wanted in expect.get("weights", {}).items():
        for name, weight in wanted.items():
            assert fits(weights[second][name], weight), (second, weights[second], said)


def test_night_1_old_and_empty_plans_are_refused():
    """1: a delayed worker wrote an older plan, a clean-up then deleted it. The checker refuses both
    an older epoch and an empty plan, and the decision itself never makes one."""
    world = Simulation(demo_topology(), duration_ms=5000, with_payments=False)
    plan = [tick.step.plan for tick in world.ticks()][-1]
    assert check(plan, demo_topology()) == ()
    newer = replace(plan, epoch=plan.epoch + 1)
    assert {v.rule for v in check(plan, demo_topology(), newer)} == {"epoch"}
    assert "empty" in {v.rule for v in check(replace(newer, routes=()), demo_topology(), plan)}
