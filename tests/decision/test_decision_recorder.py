"""The recorder: the decision log on disk is bounded, rotated, and every file is complete by itself."""

import json

from controlplane.decision.log import replay
from controlplane.decision.state import State
from controlplane.decision.step import step
from controlplane.model.intents import NO_INTENTS
from controlplane.ports import Leadership
from controlplane.runtime import recorder as recorder_module
from controlplane.runtime.recorder import DecisionRecorder
from controlplane.runtime.tick import Tick
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault
from controlplane.simulation.run import Simulation

TOPOLOGY = demo_topology()


def test_files_are_rotated_bounded_and_each_replays_alone(tmp_path, monkeypatch):
    """Two terms of a crash, files of 60 kB, three kept: the oldest are gone, none is much too large,
    each replays from its first line to its last, and a new term begins a new file."""
    monkeypatch.setattr(recorder_module, "FILE_MAX_BYTES", 60_000)
    monkeypatch.setattr(recorder_module, "FILES_KEPT", 3)
    faults = [Fault(kind="crash", region="east", start_ms=10_000)]
    seen = list(Simulation(TOPOLOGY, faults, duration_ms=100_000, leader="south").ticks())
    recorder, state, written = DecisionRecorder(tmp_path), State.initial(TOPOLOGY), set()
    for number, one in enumerate(seen):
        if one.at_ms == 95_000:
            state = State.from_bytes(state.to_bytes()).rebased()
        decided = step(TOPOLOGY, state, one.evidence, NO_INTENTS, one.at_ms)
        term = 7 if one.at_ms < 95_000 else 8
        recorder.record(
            Tick(
                leadership=Leadership(term=term, replica="south-0", region="south"),
                topology=TOPOLOGY,
                evidence=one.evidence,
                intents=NO_INTENTS,
                now_ms=one.at_ms,
                wall_ms=1_700_000_000_000 + one.at_ms,
                before=state,
                result=decided,
            )
        )
        state = decided.state
        while number % 4 == 3 and (waiting := recorder.take()) is not None:
            written.add(waiting[0])
            recorder.write(*waiting)
    kept = sorted(tmp_path.glob("decisions-*.jsonl"))
    assert len(kept) == 3
    assert len(written) > 3
    assert kept == sorted(written)[-3:]
    assert {path.stem.split("-")[-1] for path in kept} == {"7", "8"}
    times = []
    for path in kept:
        assert path.stat().st_size < 90_000
        lines = path.read_bytes().splitlines(keepends=True)
        times += [json.loads(line)["now_ms"] for line in lines if b'"kind":"tick"' in line]
        found = replay(lines)
        assert found.difference is None
        assert found.ticks > 0
    # no tick is lost between two files
    assert times == [one.at_ms for one in seen if one.at_ms >= times[0]]
