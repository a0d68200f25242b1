"""What the values of the plan store look like: events, failovers, pulse, state, plan. Pure.

Bounds: a transaction of etcd takes 128 operations and 1.5 MiB, so a burst of events is cut (the
critical ones first in, the rest counted), and states are compressed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Final

from controlplane.adapters import wire
from controlplane.adapters.etcd_keys import Keys, unpack_plan
from controlplane.model.errors import InvalidInputError
from controlplane.model.plan import Event, FailoverRecord, Severity
from controlplane.ports import Beat, Committed, Delete, KeyValue, Leadership, Put

EVENTS_KEPT: Final = 10_000
EVENTS_PER_WRITE: Final = 64
FAILOVERS_PER_WRITE: Final = 32
COMPRESS_FROM: Final = 4_096
"""Bytes of a decision state from which it is compressed."""
STATE_MAX: Final = 64 << 20
"""Bytes of a decision state after decompression."""


def event_ops(
    keys: Keys, events: Sequence[Event], *, last: int, beat: Beat, epoch: int, term: int
) -> list[Put | Delete]:
    """Put events, numbered on from `last`, and delete those beyond EVENTS_KEPT."""
    ops: list[Put | Delete] = []
    for number, event in enumerate(_at_most(events), last + 1):
        message = wire.encode_event(
            event, event_id=number, at_wall_ms=beat.wall_ms, epoch=epoch, term=term
        )
        ops.append(Put(key=keys.event(number), value=message.SerializeToString()))
    if ops and (cut := last + len(ops) - EVENTS_KEPT) > 0:
        end = keys.event(cut + 1)
        ops.append(Delete(key=keys.event(0), range_end=end))
    return ops


def failover_puts(
    keys: Keys, failovers: Sequence[FailoverRecord], *, beat: Beat, budget_ms: int
) -> list[Put]:
    """Put changed failovers, the newest FAILOVERS_PER_WRITE of them."""
    return [
        Put(
            key=keys.failover(record.id),
            value=wire.encode_failover(
                record,
                now_ms=beat.attentive_ms,
                now_wall_ms=beat.wall_ms,
                budget_ms=budget_ms,
            ).SerializeToString(),
        )
        for record in failovers[-FAILOVERS_PER_WRITE:]
    ]


def _at_most(events: Sequence[Event]) -> Sequence[Event]:
    """Bound a burst: critical events first in, the rest counted in one event."""
    if len(events) <= EVENTS_PER_WRITE:
        return events
    rank = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)
    kept = sorted(range(len(events)), key=lambda i: (rank.index(events[i].severity), i))
    left_out = len(events) - (EVENTS_PER_WRITE - 1)
    return [
        *(events[i] for i in sorted(kept[: EVENTS_PER_WRITE - 1])),
        Event(
            kind="events_left_out",
            message=f"{left_out} more events in this tick than one transaction may carry",
            severity=Severity.WARNING,
            data={"count": left_out},
        ),
    ]


def pulse_value(leadership: Leadership, seq: int, beat: Beat) -> bytes:
    """Return the heartbeat's value; `seq` makes it unique within its term."""
    return json.dumps(
        {
            "replica": leadership.replica,
            "region": leadership.region,
            "term": leadership.term,
            "seq": seq,
            "tick": beat.tick,
            "attentive_ms": beat.attentive_ms,
            "wall_ms": beat.wall_ms,
        },
        separators=(",", ":"),
    ).encode()


def pack_state(state: bytes) -> bytes:
    """One byte for the form (0 plain, 1 zlib), then the state."""
    return b"\1" + zlib.compress(state, 1) if len(state) >= COMPRESS_FROM else b"\0" + state


def unpack_state(value: bytes) -> bytes:
    """Return the state; InvalidInputError when it is absurdly large."""
    if value[:1] != b"\1":
        return value[1:]
    unpack = zlib.decompressobj()
    state = unpack.decompress(value[1:], STATE_MAX)
    if unpack.unconsumed_tail:
        raise InvalidInputError("state", f"more than {STATE_MAX} bytes")
    return state


def read_plan(kv: KeyValue) -> Committed:
    """Read a plan's value, without its state; InvalidInputError when it may not be followed."""
    epoch, data = unpack_plan(kv.value)
    plan = wire.parse_plan(data)
    if plan.epoch != epoch:
        raise InvalidInputError("plan", f"holds epoch {plan.epoch} under the key of {epoch}")
    return Committed(plan=plan, state=b"", revision=kv.mod_revision)
