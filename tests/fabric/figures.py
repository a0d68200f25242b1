"""What one run showed, computed from the payer's lines, the record of plans, and the ledgers.

Times are ms after the fault. A payment *failed* when no gateway answered it (Envoy or the client
gave up); a provider's own error is counted apart. A *leak* is a payment that started more than
100 ms after Envoy had applied weight 0 and that the victim answered, or charged without an answer
that arrived: its ledger tells. *Everywhere* is when the last live subscriber had weight 0: Envoy,
and every replica's followers where that replica has a quorum.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.dev.ledger import double_charges, read_ledger
from controlplane.dev.measure import ENVOY, Seen, violations
from tests.fabric.lab import Lab
from tests.fabric.scenarios import GREY_CHANNEL, Scenario

LEAK_AFTER_MS = 100
"""An acknowledgement is not convergence: workers of a data plane follow within this."""
BIN_MS = 500
NOWHERE = ("no healthy upstream", "no address")
"""How Envoy and the DNS payer say that a payment was sent to no region at all."""
SLOW_MS = 1000
"""Well above a payment's usual latency: it waited out a hang. A client in a hurry has given up."""


@dataclass(frozen=True, slots=True)
class Payment:
    """One line of the payer, times relative to the fault. `nowhere`: it was refused before any region
    was chosen, so that it says nothing about where traffic goes."""

    due_ms: int
    end_ms: int
    outcome: str
    region: str
    channel: str
    key: str = ""
    nowhere: bool = False

    @property
    def unanswered(self) -> bool:
        """No gateway answered."""
        return not self.region and self.outcome in {"failed", "unknown"}


@dataclass(slots=True)
class Run:
    """Everything one run showed."""

    scenario: str
    number: int
    figures: dict[str, float | None] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    payments: list[Payment] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_payments(path: Path, t0_ms: int) -> list[Payment]:
    """Read the payer's file."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        due, end, outcome, region, channel, key, reason = json.loads(line)
        nowhere = any(words in reason for words in NOWHERE)
        found.append(Payment(due - t0_ms, end - t0_ms, outcome, region, channel, key, nowhere))
    return sorted(found, key=lambda payment: payment.due_ms)


def figures(lab: Lab, scenario: Scenario, number: int, t0_ms: int, payments: list[Payment]) -> Run:
    """Compute the figures of a run."""
    run = Run(scenario.name, number, payments=payments)
    after = [p for p in payments if p.end_ms > 0]
    failed = [p for p in after if p.unanswered]
    put = run.figures
    put["sent"] = sum(p.due_ms > 0 for p in payments)
    put["failed"] = len(failed)
    put["nowhere"] = sum(p.nowhere for p in failed)
    put["unknown"] = sum(p.outcome == "unknown" for p in failed)
    put["slow"] = slow(after)
    put["outage_ms"] = max((p.due_ms for p in failed if p.due_ms > 0), default=0)
    put["provider_errors"] = sum(bool(p.region) and p.outcome == "failed" for p in after)
    put["double_charges"] = len(double_charges(sorted(lab.layout.ledgers.glob("*.jsonl"))))
    if scenario.victim:
        _weights(lab, scenario, t0_ms, run)
        put["switches"] = switches(after, scenario.victim, until_ms=last_due_ms(payments))
        put["plan_switches"] = plan_switches(lab.recorder.of(ENVOY), scenario.victim)
        put["leaked"] = _leaked(lab, scenario, run)
    run.faults += violations(lab.recorder.seen)
    return run


def _leaked(lab: Lab, scenario: Scenario, run: Run) -> int:
    """Count payments that started after weight 0 was applied and still reached the victim."""
    zero = run.marks.get("applied")
    if zero is None:
        return 0
    late = [p for p in run.payments if p.due_ms > zero + LEAK_AFTER_MS]
    if not scenario.fails_region:
        late = [p for p in late if p.channel == GREY_CHANNEL]
    ledger = lab.layout.ledgers / f"{scenario.victim}.jsonl"
    charged = {charge.key for charge in read_ledger(ledger)}
    return sum(p.region == scenario.victim or p.key in charged for p in late)


def outcome(lab: Lab, scenario: Scenario, t0_ms: int) -> dict[str, int | None]:
    """Return when what must happen happened, in boot time; None for what has not yet.

    `committed`: some replica served weight 0. `applied`: Envoy had it. `everywhere`: every live
    subscriber had it. `failed`: some replica said that the region has failed.
    """
    if not scenario.moves_weight:
        return {}
    channel = None if scenario.fails_region else GREY_CHANNEL
    sources = [f"{region}-0" for region in lab.layout.regions]
    zero = {
        source: lab.recorder.zero_since(source, scenario.victim, t0_ms, channel)
        for source in (*sources, ENVOY)
    }
    served = [at for source, at in zero.items() if source != ENVOY and at is not None]
    live = [s for s in zero if scenario.reachable or s != f"{scenario.victim}-0"]
    times = [zero[source] for source in live]
    known = [at for at in times if at is not None]
    found: dict[str, int | None] = {
        "committed": min(served, default=None),
        "applied": zero[ENVOY],
        "everywhere": max(known) if len(known) == len(times) else None,
    }
    if scenario.fails_region:
        found["failed"] = _phase(lab, scenario.victim, "failed", t0_ms)
    return found


def _weights(lab: Lab, scenario: Scenario, t0_ms: int, run: Run) -> None:
    suspected = _phase(lab, scenario.victim, "suspect", t0_ms)
    if suspected is not None:
        _mark(run, "suspect", suspected - t0_ms)
    for name, at_ms in outcome(lab, scenario, t0_ms).items():
        _mark(run, name, None if at_ms is None else at_ms - t0_ms)


def _phase(lab: Lab, region: str, phase: str, t0_ms: int) -> int | None:
    """Return when any replica first gave a region this phase."""
    seen = lab.recorder.seen
    times = [s.at_ms for s in seen if s.at_ms >= t0_ms and s.phases.get(region) == phase]
    return min(times, default=None)


def _mark(run: Run, name: str, at_ms: float | None) -> None:
    run.figures[f"{name}_ms"] = at_ms
    if at_ms is not None:
        run.marks[name] = at_ms


def switches(payments: Sequence[Payment], victim: str, *, until_ms: float = math.inf) -> int:
    """Count how often traffic moved away from, or back to, the victim, in bins of half a second.

    A bin belongs to the victim when a payment that started in it was sent there: answered by it,
    or answered by nobody. A payment that was sent nowhere failed, but moved no traffic. A bin that
    the end of the watch (`until_ms`) cuts off is left out: its one or two payments may all have gone
    elsewhere by the weights.
    """
    bins: dict[int, bool] = {}
    for payment in payments:
        if payment.due_ms < 0 or payment.nowhere:
            continue
        to_victim = payment.region == victim or payment.unanswered
        number = payment.due_ms // BIN_MS
        bins[number] = bins.get(number, False) or to_victim
    states = [bins[number] for number in sorted(bins) if (number + 1) * BIN_MS <= until_ms]
    return sum(a != b for a, b in itertools.pairwise(states))


def last_due_ms(payments: Iterable[Payment]) -> int:
    """Return when the last payment was due: until then the watch saw everything."""
    return max((p.due_ms for p in payments), default=0)


def plan_switches(applied: Iterable[Seen], victim: str) -> int:
    """Count how often the weights that Envoy had applied left the victim out, or took it in again:
    the part of `switches` that the plan is behind, and not Envoy's own reaction."""
    states = [seen.share_bp(victim) > 0 for seen in applied]
    return sum(a != b for a, b in itertools.pairwise(states))


def slow(payments: Iterable[Payment]) -> int:
    """Count payments that were answered, but too late for a client in a hurry."""
    return sum(p.end_ms - p.due_ms > SLOW_MS and not p.unanswered for p in payments)


def percentile(values: Iterable[float], share: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Return p50, p99 and max of every figure over the runs of one scenario."""
    names = {name: None for run in runs for name in run.figures}
    table: dict[str, Any] = {"scenario": runs[0].scenario, "runs": len(runs)}
    for name in names:
        values = [run.figures.get(name) for run in runs]
        known = [value for value in values if value is not None]
        missing = len(values) - len(known)
        table[name] = {
            "p50": percentile(known, 0.5) if known else None,
            "p99": percentile(known, 0.99) if known else None,
            "max": max(known, default=None),
            "never": missing,
        }
    table["violations"] = sum(len(run.faults) for run in runs)
    return table


def regions_in(payments: Iterable[Payment]) -> Counter[str]:
    """Count payments by who answered."""
    return Counter(payment.region or payment.outcome for payment in payments)
