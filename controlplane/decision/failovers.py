"""Failovers: one record from the first symptom until every live subscriber has applied the plan.

Rules
- Opened when a region becomes suspect (dated back to the last sign of life) or is ordered out.
- `decided` is the tick whose plan first has the region at 0: usually the move on suspicion.
- `committed` and `converged` are told by the evidence: epochs read back, and applied everywhere.
- `completed`: the region failed and the plan is applied everywhere. `reverted`: the suspicion was
  withdrawn, or the region came back, before that; weights that left on suspicion returned.
"""

from __future__ import annotations

from dataclasses import replace

from controlplane.decision.state import KEPT_FAILOVERS, ORDERED, Memory, RegionMemory
from controlplane.model.evidence import Evidence
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.plan import Event, FailoverRecord, Phase, Severity
from controlplane.model.topology import Policy


def track(
    memory: Memory, evidence: Evidence, epoch: Epoch, policy: Policy, events: list[Event]
) -> Memory:
    """Open, advance and close records after the phases of this tick are known."""
    if not memory.failovers and not any(_out(region) for region in memory.regions.values()):
        return memory
    now_ms = memory.now_ms
    records = list(memory.failovers)
    open_for = {r.region: i for i, r in enumerate(records) if r.outcome == "running"}
    number = memory.next_failover
    for name, region in memory.regions.items():
        if _out(region) and name not in open_for and _begins(region, now_ms):
            records.append(_open(f"f-{number}", name, region))
            open_for[name] = len(records) - 1
            number += 1
    for name, place in open_for.items():
        region = memory.regions.get(name, RegionMemory())
        records[place] = _advance(records[place], region, evidence, epoch, memory, policy, events)
    running = [record for record in records if record.outcome == "running"]
    closed = [record for record in records if record.outcome != "running"][-KEPT_FAILOVERS:]
    kept = (*closed, *running)
    if kept == memory.failovers and number == memory.next_failover:
        return memory
    return replace(memory, failovers=kept, next_failover=number)


def _out(region: RegionMemory) -> bool:
    return region.phase in (Phase.SUSPECT, Phase.FAILED)


def _begins(region: RegionMemory, now_ms: int) -> bool:
    return region.suspect_ms == now_ms


def _open(name: str, region_name: RegionName, region: RegionMemory) -> FailoverRecord:
    since_ms = region.since_ms
    return FailoverRecord(
        id=name,
        region=region_name,
        kind=region.kind,
        cause=region.cause,
        symptom_ms=since_ms if region.symptom_ms is None else region.symptom_ms,
        suspected_ms=since_ms,
    )


def _advance(
    record: FailoverRecord,
    region: RegionMemory,
    evidence: Evidence,
    epoch: Epoch,
    memory: Memory,
    policy: Policy,
    events: list[Event],
) -> FailoverRecord:
    now_ms = memory.now_ms
    if not _out(region):
        text = f"{record.region}: failover {record.id} reverted, the evidence cleared"
        events.append(Event(kind="failover_reverted", message=text, region=record.region))
        return replace(record, outcome="reverted")
    told = (record.kind, record.cause) == (region.kind, region.cause)
    # what began as an order stays one in the record, whatever happens to the region meanwhile
    if region.phase is Phase.FAILED and not told and record.kind not in ORDERED:
        record = replace(record, kind=region.kind, cause=region.cause)
    gone = region.moved or region.phase is Phase.FAILED
    if gone and record.decided_ms is None and not memory.frozen:
        record = replace(record, decided_ms=now_ms, epoch=epoch)
        waited_s = (now_ms - record.symptom_ms) / 1000
        text = f"{record.region} left {waited_s:.1f} s after the first symptom: {record.cause}"
        events.append(
            Event(
                kind="failover_started",
                message=text,
                region=record.region,
                severity=Severity.WARNING,
                data={
                    "id": record.id,
                    "kind": record.kind,
                    "waited_ms": now_ms - record.symptom_ms,
                },
            )
        )
    if record.epoch and record.committed_ms is None and evidence.committed_epoch >= record.epoch:
        record = replace(record, committed_ms=now_ms)
    if record.epoch and record.converged_ms is None and evidence.converged_epoch >= record.epoch:
        record = replace(record, converged_ms=now_ms, committed_ms=record.committed_ms or now_ms)
    if region.phase is Phase.FAILED and record.converged_ms is not None:
        took_ms = record.converged_ms - record.symptom_ms
        text = (
            f"{record.region}: failover {record.id} applied everywhere {took_ms / 1000:.1f} s after"
            f" the first symptom, {(policy.budget_ms - took_ms) / 1000:.1f} s of the budget left"
        )
        severity = Severity.INFO if took_ms <= policy.budget_ms else Severity.CRITICAL
        events.append(
            Event(
                kind="failover_completed",
                message=text,
                region=record.region,
                severity=severity,
                data={"id": record.id, "kind": record.kind, "took_ms": took_ms},
            )
        )
        return replace(record, outcome="completed")
    return record
