"""What the laboratory concludes from a run, on runs written by hand."""

from __future__ import annotations

import itertools
import json
import struct
import xml.etree.ElementTree as ET
from pathlib import Path

from controlplane.dev.measure import Seen
from tests.fabric.delay import parse
from tests.fabric.dns_payer import first_address, question
from tests.fabric.figures import (
    Payment,
    Run,
    last_due_ms,
    plan_switches,
    read_payments,
    slow,
    summary,
    switches,
)
from tests.fabric.peers import CHECKS_S, phase_s
from tests.fabric.plot import timeline
from tests.fabric.scenarios import SCENARIOS

EAST, NORTH = "east", "north"


def paid(due_ms: int, region: str, took_ms: int = 100) -> Payment:
    """Return a payment that a region answered."""
    return Payment(due_ms, due_ms + took_ms, "succeeded", region, "alipay")


def lost(due_ms: int) -> Payment:
    """Return a payment that nobody answered."""
    return Payment(due_ms, due_ms + 3000, "unknown", "", "alipay")


def test_leaving_once_is_one_switch() -> None:
    """Payments lost in the hung region still belong to it: leaving it is one switch, not two."""
    run = [paid(0, EAST), paid(400, NORTH), lost(600), lost(1100), paid(1600, NORTH)]
    assert switches(run, EAST) == 1


def test_flapping_back_and_forth_is_counted_both_ways() -> None:
    """Every move away and every move back counts."""
    run = [paid(t, EAST if (t // 1000) % 2 == 0 else NORTH) for t in range(0, 6000, 100)]
    assert switches(run, EAST) == 5


def test_a_bin_that_the_end_cuts_off_is_no_switch() -> None:
    """The one payment of the last, unfinished bin went north by the weights: that is no third switch.
    A whole bin without the victim is one, the last included."""
    run = [paid(t, EAST if t < 500 or t >= 1000 else NORTH) for t in range(0, 2000, 50)]
    cut = [*run, paid(2000, NORTH), paid(2050, NORTH)]
    assert switches(cut, EAST, until_ms=last_due_ms(cut)) == 2
    whole = run + [paid(t, NORTH) for t in range(2000, 2550, 50)]
    assert switches(whole, EAST, until_ms=last_due_ms(whole)) == 3


def test_a_payment_that_was_sent_nowhere_moves_no_traffic(tmp_path: Path) -> None:
    """Envoy without any region to choose refuses by itself: a failure, but no return to the victim.
    One that was sent and not answered, or whose connection failed, still belongs to the victim."""

    def outcome(reason: str) -> tuple[int, bool]:
        path = tmp_path / "payer.jsonl"
        lines = [[0, 90, "succeeded", EAST, "alipay", "a", ""],
                 [1000, 1090, "succeeded", NORTH, "alipay", "b", ""],
                 [2000, 2001, "failed", "", "alipay", "c", reason],
                 [3000, 3090, "succeeded", NORTH, "alipay", "d", ""]]  # fmt: skip
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = read_payments(path, 0)
        return switches(found, EAST), any(p.unanswered for p in found)

    assert outcome("503 no healthy upstream") == (1, True)
    assert outcome("no address") == (1, True)
    assert outcome("503 upstream connect error or disconnect/reset before headers") == (3, True)


def test_the_plans_part_of_switching_is_counted_apart() -> None:
    """Only weights that go to nothing or come back are moves; a smaller share is none."""
    seen = [Seen(at_ms=at, source="envoy", epoch=0, weights={"alipay": {EAST: w, NORTH: 10_000 - w}})
            for at, w in enumerate((7000, 6000, 0, 0, 250, 5000))]  # fmt: skip
    assert plan_switches(seen, EAST) == 2


def test_slow_answers_are_not_failures_but_are_seen() -> None:
    """A payment that waited out a hang is counted as slow; one that nobody answered is not."""
    assert slow([paid(0, EAST), paid(0, EAST, 1500), lost(0)]) == 1


def test_summary_counts_what_never_came() -> None:
    """A figure that a run never reached is counted, and does not hide behind the others."""
    runs = [
        Run("x", 1, figures={"applied_ms": 10.0}),
        Run("x", 2, figures={"applied_ms": None}),
        Run("x", 3, figures={"applied_ms": 30.0}),
    ]
    assert summary(runs)["applied_ms"] == {"p50": 30.0, "p99": 30.0, "max": 30.0, "never": 1}


def test_timeline_is_a_picture() -> None:
    """The picture is well-formed and names every mark."""
    run = Run("region-hung", 1, payments=[paid(t, EAST) for t in range(-2000, 2000, 50)])
    run.marks = {"applied": 800.0, "failed": 1500.0}
    root = ET.fromstring(timeline(run))
    texts = " ".join(element.text or "" for element in root.iter())
    assert "applied by Envoy 0.8" in texts
    assert "declared failed 1.5" in texts


def test_delays_are_symmetric() -> None:
    """A pair's delay holds in both directions, by network."""
    delays = parse("a=10.99.1.0/24,b=10.99.2.0/24", ["a:b:14"])
    a, b = bytes([10, 99, 1]), bytes([10, 99, 2])
    assert delays == {(a, b): 0.014, (b, a): 0.014}


def test_lookups_read_the_first_address() -> None:
    """The payer's own reading of DNS skips other records."""
    asked = question(7, "gw.pay.test")
    header = struct.pack(">HHHHHH", 7, 0x8180, 1, 2, 0, 0)
    cname = b"\xc0\x0c" + struct.pack(">HHIH", 5, 1, 1, 2) + b"\xc0\x0c"
    address = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + bytes([10, 99, 1, 1])
    assert first_address(header + asked[12:] + cname + address) == "10.99.1.1"
    assert first_address(header[:6] + b"\0\0" + header[8:] + asked[12:]) == ""


def test_every_scenario_of_the_issue_exists() -> None:
    """Nobody drops a scenario quietly."""
    assert set(SCENARIOS) == {
        "region-killed", "region-hung", "region-isolated", "one-way", "black-hole",
        "provider-grey", "flapping", "leader-lost", "etcd-leader-lost", "control-plane-gone",
        "cold-start",
    }  # fmt: skip


def test_the_faults_of_peers_are_spread_over_their_checks() -> None:
    """Five runs or twenty: no gap without a fault is twice as long as an even share."""
    for runs in (5, 20):
        phases = sorted(phase_s(number) for number in range(1, runs + 1))
        gaps = [b - a for a, b in itertools.pairwise([0.0, *phases, CHECKS_S])]
        assert max(gaps) < 2 * CHECKS_S / runs
