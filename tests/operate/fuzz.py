"""Requests that know the structure of the API and break its rules: every field of every message, with nasty values.

Nothing generated here may change anything that exists: a mutation is always only validated, or has no valid
request_id. Locks may be taken and given back, but only by names that the fuzzer has for itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

TEXTS: Final = (
    "", "east", "north", "alipay", "unionpay", "mars", "EAST", "east ", "../etc", "a" * 64, "x" * 5000, "\x00",
    "\u202eeast", "💥", "east\n", "'; DROP TABLE", "-1", "NaN", "op-1", "op-" + "0" * 36, "dns", "job-1", "strict",
    "00000000-0000-4000-8000-000000000000", "not-a-uuid",
)  # fmt: skip
INTS: Final = (0, 1, -1, 2, 7, 100, 9_999, 10_000, 10_001, 65, 66, 2**31 - 1, -(2**31))
LONGS: Final = (*INTS, 2**53, 2**62, 2**63 - 1, -(2**63))
FLOATS: Final = (0.0, -0.0, 1.5, -1.0, float("nan"), float("inf"), float("-inf"), 1e308)
WAIT_MAX_MS: Final = 60_000
DEPTH_MAX: Final = 4
REPEATS_MAX: Final = 4


def message(kind: type[Message], rng: random.Random, depth: int = 0) -> Message:
    """One message with a random choice of its fields set to nasty values."""
    out = kind()
    for field in kind.DESCRIPTOR.fields:
        if rng.random() < 0.25:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        if field.is_repeated:
            target = getattr(out, field.name)
            for _ in range(rng.randrange(REPEATS_MAX)):
                if field.message_type is not None:
                    if depth < DEPTH_MAX:
                        target.append(_sub(field, rng, depth))
                else:
                    target.append(_scalar(field, rng))
        elif field.message_type is not None:
            if depth < DEPTH_MAX:
                getattr(out, field.name).CopyFrom(_sub(field, rng, depth))
        else:
            setattr(out, field.name, _scalar(field, rng))
    _harmless(out, rng)
    return out


def _sub(field: Any, rng: random.Random, depth: int) -> Message:
    kind = field.message_type._concrete_class
    if kind is Timestamp or field.message_type.full_name == "google.protobuf.Timestamp":
        return Timestamp(
            seconds=rng.choice((0, 1, 4 * 10**9, 253402300799)), nanos=rng.choice((0, 999_999_999))
        )
    return message(kind, rng, depth + 1)


def _scalar(field: Any, rng: random.Random) -> Any:
    if field.type == F.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == F.TYPE_BYTES:
        return rng.randbytes(rng.randrange(64))
    if field.type == F.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (F.TYPE_DOUBLE, F.TYPE_FLOAT):
        return rng.choice(FLOATS)
    if field.type == F.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.type in (F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64):
        return rng.choice(LONGS)
    if field.type in (F.TYPE_UINT64, F.TYPE_FIXED64, F.TYPE_UINT32, F.TYPE_FIXED32):
        return rng.choice([n for n in INTS if n >= 0])
    return rng.choice(INTS)


def _harmless(out: Message, rng: random.Random) -> None:
    """Make sure that a change cannot be carried out."""
    if out.DESCRIPTOR.name == "Mutation":
        if rng.random() < 0.5:
            out.validate_only = True
        elif rng.random() < 0.9:
            out.request_id = rng.choice(("", "7", "not-a-uuid", "x" * 5000))
        else:
            out.reason = ""
    names = {field.name for field in out.DESCRIPTOR.fields}
    if out.DESCRIPTOR.name == "ForceReleaseRequest":
        out.validate_only = True
    elif {"validate_only", "request_id"} <= names and out.DESCRIPTOR.name != "Mutation":
        out.validate_only = rng.random() < 0.5
    if "wait_ms" in names and 0 < out.wait_ms <= WAIT_MAX_MS:
        out.wait_ms = 7  # a queue that is waited in tells nothing more


def calls(rng: random.Random, methods: list[tuple[str, Any]]) -> Iterator[tuple[str, Any, bytes]]:
    """Endless (method name, descriptor, request bytes), methods in turn; now and then raw noise."""
    while True:
        for name, method in methods:
            if rng.random() < 0.02:
                yield name, method, rng.randbytes(rng.randrange(200))
                continue
            kind = method.input_type._concrete_class
            yield name, method, message(kind, rng).SerializeToString()
