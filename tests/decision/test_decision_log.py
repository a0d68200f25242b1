"""The decision log: what is recorded is enough to decide again, byte for byte."""

import json
from dataclasses import replace

import pytest

from controlplane.decision import log as decision_log
from controlplane.decision.log import DecisionLog, replay
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.errors import InvalidInputError
from controlplane.model.intents import NO_INTENTS, Freeze, Intents
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault
from controlplane.simulation.run import Simulation
from tests.sim.worlds import called_back

TOPOLOGY = demo_topology()


@pytest.fixture(scope="module")
def recorded():
    """A minute with a crash, a failback, a grey channel, a freeze, a takeover and a smaller topology."""
    lines = []
    state = State.initial(TOPOLOGY)
    writer = DecisionLog(TOPOLOGY, NO_INTENTS, state)
    lines.append(writer.start())
    inputs = []

    def keep(topology, _state, evidence, intents, now_ms):
        inputs.append((evidence, intents, now_ms))
        return step(topology, _state, evidence, intents, now_ms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlplane.simulation.run.step", keep)
        Simulation(
            TOPOLOGY,
            [
                Fault(kind="crash", region="east", start_ms=20_000, end_ms=40_000),
                Fault(kind="errors", region="north", channel="alipay", start_ms=8000, rate=0.4),
            ],
            duration_ms=60_000,
            intents=[
                (41_000, called_back("east")),
                (50_000, Intents(freeze=Freeze(reason="audit"))),
            ],
        ).run()
    smaller = replace(TOPOLOGY, channels=TOPOLOGY.channels[:3])
    for i, (evidence, intents, now_ms) in enumerate(inputs):
        if i == 60:
            state = State.from_bytes(state.to_bytes()).rebased()
            lines.append(writer.rebase())
        topology = TOPOLOGY if i < 110 else smaller
        told = evidence if i < 110 else replace(evidence, gains=None)
        decided = step(topology, state, told, intents, now_ms)
        lines.append(writer.tick(topology, intents, told, now_ms, decided))
        state = decided.state
        if i == 80:
            lines.append(writer.start())
    return b"".join(lines).splitlines(keepends=True)


def test_replay_agrees_with_itself(recorded):
    """All ticks, across takeover, rotation, intents and another topology, give the same bytes."""
    outcome = replay(recorded)
    assert outcome.difference is None
    assert outcome.ticks == 120
    assert outcome.plans > 5


def test_replay_stops_at_the_first_difference(recorded):
    """A changed answer, and a changed input, are found at their line and field."""
    for old, new, field in (
        (b'"weight', b'"weight', None),
        (b'"region_suspect"', b'"region_healthy"', "events"),
        (b'"failures_since_success":4', b'"failures_since_success":0', None),
    ):
        lines = [line.replace(old, new, 1) for line in recorded]
        changed = [i for i, (a, b) in enumerate(zip(recorded, lines, strict=True)) if a != b]
        outcome = replay(lines)
        if not changed:
            assert outcome.difference is None
            continue
        assert outcome.difference is not None
        assert outcome.difference.line >= changed[0] + 1
        if field:
            assert outcome.difference.field == field
            assert outcome.difference.line == changed[0] + 1


def test_a_cut_tail_is_said_and_the_rest_compared(recorded):
    """Half a last line (power loss) is no difference; a broken line in the middle is an error."""
    cut = [*recorded[:-1], recorded[-1][:40]]
    outcome = replay(cut)
    assert outcome.cut
    assert outcome.difference is None
    with pytest.raises(InvalidInputError):
        replay([*recorded[:5], b"{", *recorded[6:]])


@pytest.mark.parametrize(
    "lines", [[], [b"{}\n"], [b'{"kind":"tick"}\n'], [b'{"kind":"start","format":99}\n']]
)
def test_what_is_no_log_is_refused(lines):
    """Empty, foreign and future files raise with a message, never replay as fine."""
    with pytest.raises(InvalidInputError):
        replay(lines)


def test_a_decision_that_is_not_a_function_is_found(recorded, monkeypatch):
    """Mutation: a step that adds a hidden counter to its events no longer replays."""
    counter = iter(range(10_000))

    def impure(*arguments):
        decided = step(*arguments)
        events = tuple(replace(e, message=f"{e.message} {next(counter)}") for e in decided.events)
        return replace(decided, events=events)

    monkeypatch.setattr(decision_log, "step", impure)
    assert replay(recorded).difference is not None


def test_unchanged_evidence_is_not_written_again(recorded):
    """The log is made of changes: a tick names only regions that differ."""
    sizes = [len(json.loads(line)["evidence"]["regions"]) for line in recorded if b'"tick"' in line]
    assert max(sizes) == 3
    assert min(sizes) < 3
