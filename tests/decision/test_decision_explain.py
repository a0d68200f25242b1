"""Explain: the rules that applied, with their numbers, in plain words."""

import re

from controlplane.decision.damping import damped, penalty_now, reuse_in_ms
from controlplane.decision.explain import explain
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault
from controlplane.simulation.run import Simulation
from controlplane.simulation.scenarios import flapping

TOPOLOGY = demo_topology()


def last(faults, duration_ms, **options):
    """The last step of a short world."""
    options = {"with_payments": False, "leader": "south"} | options
    world = Simulation(TOPOLOGY, faults, duration_ms=duration_ms, **options)
    return [tick.step for tick in world.ticks()][-1]


def texts(decided, channel, rule):
    """What one rule says of a channel."""
    steps = explain(TOPOLOGY, decided.state, decided.plan, channel)
    return [step.detail for step in steps if step.rule == rule]


def test_a_damped_region_is_explained_with_its_numbers():
    """East was dead for 4 s in every 24, five times: the penalty, the limits and how long it stays."""
    decided = last(flapping("east", 20_000, 4000, 120_000), 160_000)
    east, policy = decided.state.memory.regions["east"], TOPOLOGY.policy
    now_ms = decided.state.memory.now_ms
    assert damped(east, policy, now_ms)
    said = texts(decided, "alipay", "evidence")[0]
    found = re.search(
        r"flap penalty (\d+), halved every 300 s: kept out until below 750, for (\d+) s more", said
    )
    assert found, said
    assert int(found[1]) == round(penalty_now(east, policy, now_ms))
    wait_ms = reuse_in_ms(east, policy, now_ms)
    assert int(found[2]) == round(wait_ms / 1000)
    assert not damped(east, policy, now_ms + wait_ms + 1)
    assert damped(east, policy, now_ms + wait_ms - 1000)


def test_a_penalty_below_the_limit_names_the_limit():
    """One move on suspicion: not kept out, and the reader learns from which penalty it would be."""
    decided = last([Fault(kind="crash", region="east", start_ms=10_000, end_ms=14_000)], 30_000)
    said = texts(decided, "alipay", "evidence")[0]
    assert re.search(
        r"east is healthy: .*flap penalty 4\d\d, .*: it would be kept out from 2000", said
    )


def test_an_open_breaker_is_explained_with_its_evidence():
    """30 % of East's calls to alipay fail: what is usual, what was seen, and which rule took what."""
    fault = Fault(kind="errors", region="east", channel="alipay", rate=0.3, start_ms=5000)
    decided = last([fault], 8000, with_payments=True)
    cell = texts(decided, "alipay", "cell")[0]
    assert cell.startswith("east breaker open: ")
    assert re.search(r"\d+ of the last \d+ calls failed, usually \d+\.\d%; \d+ nats", cell)
    steps = explain(TOPOLOGY, decided.state, decided.plan, "alipay")
    by_rule = {step.rule: dict(step.weights) for step in steps if step.weights}
    assert by_rule["base_share"]["east"] == 7000
    assert by_rule["breaker"]["east"] == 0
    assert by_rule["plan"]["east"] == 0


def test_slow_calls_are_counted_in_the_reason():
    """Calls take eight times as long from now on: the reason names how many of the last calls were
    over the limit and what is usual, and no mean over a time when all was well."""
    fault = Fault(kind="slow", region="east", channel="alipay", rate=8.0, start_ms=5000)
    decided = last([fault], 8000, with_payments=True)
    cell = texts(decided, "alipay", "cell")[0]
    said = re.search(r"(\d+) of the last (\d+) calls took over (\d+) ms, usually (\d+\.\d)%", cell)
    assert said, cell
    slow, calls, _, usual = (float(part) for part in said.groups())
    assert slow / calls > 5 * usual / 100
    assert "mean" not in cell
