"""The decision log: everything a decision was given and what it answered, line by line.

Theory. `step` is a function, so its inputs are its whole explanation. The first record of a file
holds topology, intents and state; every further one holds what changed in a tick's inputs and the
answer. Replay feeds the inputs to the same function and compares the answers byte for byte.

Records are JSON lines, canonical (sorted keys), each one of
    {"kind":"start", "format":1, "topology":…, "intents":…, "state":…}
    {"kind":"topology", …}  {"kind":"intents", …}     only when changed
    {"kind":"rebase"}                                 a new leader took over this state
    {"kind":"tick", "now_ms":…, "evidence":…, "epoch":…, "events":…, "state":…, "plan":…}

Rules
- A tick's evidence holds only regions that differ from the tick before, in full.
- `plan` is there when the epoch rose; `state` is a checksum of the state after the tick, taken
  every `CHECK_EVERY` ticks and with every new plan: writing large states costs more than deciding.
- A file is complete by itself: the writer starts a new one with `start` when it rotates.

Failure modes. A cut file (power loss) ends with half a line: replay says so and compares the rest.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from controlplane.decision import codec
from controlplane.decision.state import State
from controlplane.decision.step import Step, step
from controlplane.model.errors import InvalidInputError
from controlplane.model.evidence import Evidence, Gains
from controlplane.model.ids import Epoch
from controlplane.model.intents import NO_INTENTS, Intents
from controlplane.model.plan import Plan
from controlplane.model.topology import Topology

FORMAT: Final = 1
CHECK_EVERY: Final = 20


class DecisionLog:
    """Encodes ticks as lines. Holds the last inputs, so that only changes are written."""

    def __init__(self, topology: Topology, intents: Intents, state: State) -> None:
        self._topology = topology
        self._intents = intents
        self._evidence: Evidence | None = None
        self._epoch = state.memory.epoch
        self._ticks = 0
        self._state = state

    def start(self) -> bytes:
        """Return the first line of a file, from which replay can begin; resets what is known."""
        self._evidence = None
        self._ticks = 0
        self._epoch = self._state.memory.epoch
        return _line(
            {
                "kind": "start",
                "format": FORMAT,
                "topology": codec.to_json(self._topology),
                "intents": codec.to_json(self._intents),
                "state": self._state.to_bytes().decode(),
            }
        )

    def rebase(self) -> bytes:
        """Note that the state was taken over by a new leader (`State.rebased`)."""
        return _line({"kind": "rebase"})

    def tick(
        self, topology: Topology, intents: Intents, evidence: Evidence, now_ms: int, decided: Step
    ) -> bytes:
        """Return the lines of one tick."""
        lines = b""
        if topology is not self._topology and topology != self._topology:
            lines += _line({"kind": "topology", "topology": codec.to_json(topology)})
        if intents != self._intents:
            lines += _line({"kind": "intents", "intents": codec.to_json(intents)})
        self._topology, self._intents = topology, intents
        record: dict[str, Any] = {
            "kind": "tick",
            "now_ms": now_ms,
            "evidence": _evidence_delta(self._evidence, evidence),
            "epoch": decided.plan.epoch,
        }
        record |= _answer(decided, self._epoch, check=self._ticks % CHECK_EVERY == 0)
        self._evidence, self._state = evidence, decided.state
        self._epoch = decided.plan.epoch
        self._ticks += 1
        return lines + _line(record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first place where replay and log part."""

    line: int
    field: str
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What replay found: how many ticks agreed, the first difference, how many bytes were cut."""

    ticks: int
    plans: int
    difference: Difference | None = None
    cut: bool = False


class _Replay:
    """The state of a replay between two lines."""

    def __init__(self) -> None:
        self.topology: Topology | None = None
        self.intents: Intents = NO_INTENTS
        self.state: State | None = None
        self.evidence: Evidence | None = None
        self.ticks = 0
        self.plans = 0

    def feed(self, number: int, raw: bytes, record: dict[str, Any]) -> Difference | None:
        """Take one record; return a difference if there is one."""
        kind = record.get("kind")
        if kind == "start":
            return self._start(number, record)
        if self.topology is None or self.state is None:
            raise InvalidInputError(f"line {number}", "a log begins with a start record")
        if kind == "rebase":
            self.state = self.state.rebased()
        elif kind == "topology":
            self.topology = codec.from_json(Topology, record["topology"])
        elif kind == "intents":
            self.intents = codec.from_json(Intents, record["intents"])
        elif kind == "tick":
            return self._tick(number, raw, record)
        else:
            raise InvalidInputError(f"line {number}", f"unknown kind {kind!r}")
        return None

    def _start(self, number: int, record: dict[str, Any]) -> Difference | None:
        if record.get("format") != FORMAT:
            raise InvalidInputError(f"line {number}", f"format {record.get('format')} is unknown")
        data = record["state"].encode()
        difference = None
        if self.state is not None and self.state.to_bytes() != data:
            # the next file of the same leader begins with the state the last one ended with
            difference = Difference(
                line=number, field="state", recorded="another state", replayed="the state so far"
            )
        self.topology = codec.from_json(Topology, record["topology"])
        self.intents = codec.from_json(Intents, record["intents"])
        self.state = State.from_bytes(data)
        self.evidence = None
        return difference

    def _tick(self, number: int, raw: bytes, record: dict[str, Any]) -> Difference | None:
        assert self.topology is not None
        assert self.state is not None
        self.evidence = _evidence_from(self.evidence, record["evidence"])
        epoch = self.state.memory.epoch
        decided = step(
            self.topology, self.state, self.evidence, self.intents, int(record["now_ms"])
        )
        self.state = decided.state
        self.ticks += 1
        self.plans += decided.plan.epoch != epoch
        answer = {
            "kind": "tick",
            "now_ms": record["now_ms"],
            "evidence": record["evidence"],
            "epoch": decided.plan.epoch,
            **_answer(decided, epoch, check="state" in record),
        }
        if _line(answer).rstrip() == raw.rstrip():
            return None
        for field in sorted(answer.keys() | record.keys()):
            recorded, replayed = record.get(field), answer.get(field)
            if codec.dumps(recorded) != codec.dumps(replayed):
                return Difference(
                    line=number,
                    field=field,
                    recorded=codec.dumps(recorded).decode()[:500],
                    replayed=codec.dumps(replayed).decode()[:500],
                )
        return Difference(line=number, field="bytes", recorded="other bytes", replayed="")


def replay(lines: Iterable[bytes]) -> Replayed:
    """Decide again what a log holds; stop at the first difference.

    InvalidInputError when the file is no decision log.
    """
    run = _Replay()
    cut = False
    for number, raw, record in _records(lines):
        if record is None:
            cut = True
            continue
        if cut:
            raise InvalidInputError(f"line {number}", "follows a broken line")
        difference = run.feed(number, raw, record)
        if difference is not None:
            return Replayed(ticks=run.ticks, plans=run.plans, difference=difference)
    if run.state is None:
        raise InvalidInputError("file", "holds no start record; is it a decision log?")
    return Replayed(ticks=run.ticks, plans=run.plans, cut=cut)


def _records(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw)
        except ValueError:
            yield number, raw, None
            continue
        if not isinstance(record, dict):
            raise InvalidInputError(f"line {number}", "is no record")
        yield number, raw, record


def _answer(decided: Step, epoch: Epoch, *, check: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if decided.events:
        out["events"] = [codec.to_json(event) for event in decided.events]
    if decided.resign:
        out["resign"] = True
    if decided.plan.epoch != epoch:
        out["plan"] = codec.to_json(_bare(decided.plan))
    if check or decided.plan.epoch != epoch:
        out["state"] = f"{zlib.crc32(decided.state.to_bytes()):08x}"
    return out


def _bare(plan: Plan) -> Plan:
    """Return the plan without what the executor stamps on it."""
    return replace(plan, term=type(plan.term)(0) if plan.term else plan.term, committed_at_ms=0)


def _evidence_delta(before: Evidence | None, now: Evidence) -> dict[str, Any]:
    held = {} if before is None else {region.region: region for region in before.regions}
    regions = [codec.to_json(r) for r in now.regions if held.get(r.region) != r]
    rest = codec.to_json(replace(now, regions=(), gains=None))
    rest["regions"] = regions
    rest["order"] = [region.region for region in now.regions]
    if now.gains is not None:
        gains = now.gains
        rest["gains"] = {
            name: [int(value) for value in getattr(gains, name)]
            for name in Gains.__dataclass_fields__
        }
    return dict(rest)


def _evidence_from(before: Evidence | None, data: dict[str, Any]) -> Evidence:
    told: Evidence = codec.from_json(Evidence, data)
    held = {} if before is None else {region.region: region for region in before.regions}
    held |= {region.region: region for region in told.regions}
    return replace(told, regions=tuple(held[name] for name in data["order"]))


def _line(record: dict[str, Any]) -> bytes:
    return codec.dumps(record) + b"\n"
