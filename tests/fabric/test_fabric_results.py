"""How a campaign adds up, and what counts as over, on runs written by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from controlplane.clock import SystemClock
from controlplane.dev.ledger import Charge, Ledger
from controlplane.dev.measure import ENVOY, Recorder, Seen
from tests.fabric.figures import Payment, Run, _leaked, outcome
from tests.fabric.results import Results, markdown
from tests.fabric.scenarios import SCENARIOS

REGIONS = ("east", "north", "south")


def watched(tmp_path: Path, *seen: Seen) -> Any:
    """Return as much of a laboratory as the figures read."""
    recorder = Recorder({}, SystemClock())
    recorder.seen = list(seen)
    layout = SimpleNamespace(regions=REGIONS, ledgers=tmp_path)
    return SimpleNamespace(recorder=recorder, layout=layout)


def gives(source: str, at_ms: int, east_bp: int, phase: str = "healthy") -> Seen:
    """Return a plan with one channel."""
    weights = {"alipay": {"east": east_bp, "north": 10_000 - east_bp}}
    return Seen(at_ms=at_ms, source=source, epoch=1, weights=weights, phases={"east": phase})


def test_scenarios_take_turns_and_a_dead_laboratory_frees_its_run(tmp_path: Path) -> None:
    """The scenario with the fewest runs comes first, whoever does them, and a claim dies with its
    owner."""
    results = Results(tmp_path)
    names = ["a", "b"]
    assert [results.claim(names, 2) for _ in range(3)] == [("a", 1), ("b", 1), ("a", 2)]
    results.put(Run("a", 1))
    results.discard("a", 2, "etcd never led")
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    (tmp_path / "runs/b/001.claim").write_text(str(beyond))
    assert {results.claim(names, 2) for _ in range(3)} == {("a", 2), ("b", 1), ("b", 2)}
    assert results.claim(names, 2) is None
    assert [run.number for run in results.runs("a")] == [1]


def test_a_run_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Figures, marks, broken promises and payments survive the file."""
    results = Results(tmp_path)
    run = Run(
        "a", 3, {"outage_ms": 5}, {"applied": 9.0}, [Payment(1, 2, "ok", "east", "x")], ["no"]
    )
    results.put(run)
    assert results.runs("a") == [run]


def test_the_report_says_what_never_came(tmp_path: Path) -> None:
    """The documentation's table has median, p99 and max, and counts the runs without a figure."""
    results = Results(tmp_path)
    for number, took in enumerate((900.0, 1100.0, None), 1):
        results.put(Run("region-hung", number, {"everywhere_ms": took, "failed": 3.0}))
    lines = markdown(results.summarise(["region-hung", "one-way"], "t.txt")).splitlines()
    assert lines[0] == "| | runs | unanswered | weight 0 at every live subscriber |"
    assert lines[2] == "| region-hung | 3 | 3 / 3 / 3 | 1.10 / 1.10 / 1.10 s, 1 never |"


def test_everywhere_waits_for_every_live_follower(tmp_path: Path) -> None:
    """The lost region's own replica is not waited for; a reachable one is."""
    seen = [gives("north-0", 20, 0), gives("south-0", 40, 0), gives(ENVOY, 30, 0, "failed")]
    lab = watched(tmp_path, gives("north-0", 5, 0), *seen)
    hung = outcome(lab, SCENARIOS["region-hung"], 10)
    assert hung == {"committed": 20, "applied": 30, "everywhere": 40, "failed": 30}
    assert outcome(lab, SCENARIOS["black-hole"], 10)["everywhere"] is None
    assert outcome(lab, SCENARIOS["flapping"], 10) == {}


def test_a_charge_whose_answer_was_lost_is_a_leak(tmp_path: Path) -> None:
    """Behind a one-way partition the victim charges what nobody hears of: the ledger tells."""
    ledger = Ledger(tmp_path / "east.jsonl")
    for key in ("early", "late"):
        ledger.append(
            Charge(key=key, payment_id=key, region="east", channel="alipay", amount=1,
                   currency="CNY", at_ms=0)
        )  # fmt: skip
    ledger.close()
    run = Run("one-way", 1, marks={"applied": 100.0})
    run.payments = [
        Payment(150, 3000, "unknown", "", "alipay", "early"),
        Payment(300, 3300, "unknown", "", "alipay", "late"),
        Payment(300, 400, "succeeded", "north", "alipay", "well"),
    ]
    assert _leaked(watched(tmp_path), SCENARIOS["one-way"], run) == 1
