"""Protobuf messages as the JSON that people and scripts read: `/api/*` and `-o json`.

It differs from protobuf's own JSON mapping where the public contract does: proto names in
snake_case, 64-bit integers as numbers, times as RFC 3339 UTC with exactly three decimals. Plain
fields and lists are always there, so that a reader never has to guess a default; so are times, null
when unset: a closed breaker still has its `open_until`. Other fields that can be unset (messages,
`optional`) are left out when they are. NaN and infinities, which JSON does not know, become null.

The walk follows the descriptor: a new field of the API appears here by itself. Well-known types are
told by their name, so that a command that meets none of them does not import protobuf's JSON.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from controlplane.clock import rfc3339

_NS_PER_MS = 1_000_000


def to_json(message: Message) -> dict[str, Any]:
    """Return a message as plain dictionaries, lists, strings and numbers for `json.dumps`."""
    return {
        field.name: _field(message, field)
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or _is_time(field) or message.HasField(field.name)
    }


def _is_time(field: Any) -> bool:
    """Tell whether this is one time outside a `oneof`, where null would claim a choice."""
    kind = field.message_type
    return (
        kind is not None
        and kind.full_name == Timestamp.DESCRIPTOR.full_name
        and field.containing_oneof is None
    )


def _field(message: Message, field: Any) -> Any:  # the stubs know two descriptor types
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        item = kind.fields_by_name["value"]
        entries = cast("Mapping[Any, Any]", value)
        return {str(key): _value(item, entries[key]) for key in sorted(entries)}
    if field.is_repeated:
        return [_value(field, item) for item in cast("Iterable[Any]", value)]
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    if isinstance(value, Message):
        return _message(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    return value


def _message(value: Message) -> Any:
    if isinstance(value, Timestamp):
        return rfc3339(value.seconds * 1000 + value.nanos // _NS_PER_MS)
    package, _, kind = value.DESCRIPTOR.full_name.rpartition(".")
    if package != "google.protobuf":
        return to_json(value)
    if kind == "Duration":
        duration = cast("Any", value)
        return duration.seconds + duration.nanos / 1e9
    if kind == "Any":
        return _any(cast("Any", value))
    if kind in {"Struct", "Value", "ListValue"}:
        return _by_protobuf(value)
    return to_json(value)


def _by_protobuf(value: Message) -> Any:
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 - see the top

    return MessageToDict(value, preserving_proto_field_name=True)


def _any(value: Any) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", _by_protobuf(value))
    except (TypeError, KeyError, ValueError):  # a type this process does not know
        return {"@type": value.type_url, "value": base64.b64encode(value.value).decode()}
