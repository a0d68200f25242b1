"""Summary: a run's outcome as plain values for JSON and tables. Times of virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from controlplane.model.topology import Topology
from controlplane.simulation.run import Result, Simulation
from controlplane.simulation.scenarios import Scenario

EVENTS_SHOWN: Final = 200


def simulation(
    topology: Topology, scenario: Scenario, seed: int, duration_ms: int | None = None
) -> Simulation:
    """Return the simulation of a scenario, `duration_ms` long when given."""
    names = [region.name for region in topology.regions]
    leader = next((name for name in names if name == scenario.leader), names[-1])
    return Simulation(
        topology,
        scenario.faults,
        noise=scenario.noise,
        seed=seed,
        duration_ms=duration_ms or scenario.duration_ms,
        leader=leader,
        with_payments=scenario.with_payments,
    )


def summary(scenario: Scenario, seed: int, duration_ms: int, result: Result) -> dict[str, Any]:
    """Return what a run showed; the same seed gives the same summary."""
    hurt = _regions_at_fault(scenario)
    started = min((fault.start_ms for fault in scenario.faults), default=0)
    false_failed = [
        name for name, times in result.failed.items() if name not in hurt for _ in times
    ]
    false_moves = [name for name, times in result.moved.items() if name not in hurt for _ in times]
    return {
        "scenario": scenario.name,
        "shows": scenario.shows,
        "seed": seed,
        "virtual_s": duration_ms / 1000,
        "ticks": result.ticks,
        "plans": result.plans,
        "moves_on_suspicion": sum(len(times) for times in result.moved.values()),
        "failed_regions": sum(len(times) for times in result.failed.values()),
        "false_failovers": len(false_failed),
        "false_moves": len(false_moves),
        "detection": _detection(hurt, started, result),
        "failovers": [
            {
                "id": record.id,
                "region": record.region,
                "kind": record.kind,
                "outcome": record.outcome,
                "cause": record.cause,
                "suspect_ms": _since(record.suspected_ms, record.symptom_ms),
                "decide_ms": _since(record.decided_ms, record.symptom_ms),
                "commit_ms": _since(record.committed_ms, record.symptom_ms),
                "converge_ms": _since(record.converged_ms, record.symptom_ms),
            }
            for record in result.failovers.values()
        ],
        "events": dict(sorted(Counter(event.kind for _, event in result.events).items())),
        "timeline": [
            {"at_s": at_ms / 1000, "kind": event.kind, "message": event.message}
            for at_ms, event in result.events[:EVENTS_SHOWN]
        ],
    }


def _regions_at_fault(scenario: Scenario) -> frozenset[str]:
    kinds = ("crash", "ingress", "isolate", "loss", "agents")
    return frozenset(f.region for f in scenario.faults if f.kind in kinds)


def _detection(hurt: Sequence[str] | frozenset[str], started: int, result: Result) -> list[Any]:
    out = []
    for name in sorted(hurt):
        moved = [at for at in result.moved.get(name, []) if at >= started]
        failed = [at for at in result.failed.get(name, []) if at >= started]
        out.append(
            {
                "region": name,
                "moved_ms": moved[0] - started if moved else None,
                "failed_ms": failed[0] - started if failed else None,
            }
        )
    return out


def _since(at_ms: int | None, symptom_ms: int) -> int:
    return -1 if at_ms is None else at_ms - symptom_ms
