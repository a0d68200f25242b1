"""Messages as JSON, exactly as the public contract says."""

from __future__ import annotations

import json
import math

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters.jsonview import to_json
from controlplane.v1 import admin_pb2, agent_pb2, common_pb2, peer_pb2, routing_pb2
from tests.agents.plans import plan


def test_a_plan() -> None:
    """Proto names, integers as numbers, times with milliseconds or null, empty lists kept, other
    unset fields left out."""
    message = plan(1 << 53)
    message.breakers.add(region="east", channel="alipay", state="closed")
    view = json.loads(json.dumps(to_json(message)))
    assert list(view) == [
        "epoch",
        "term",
        "committed_at",
        "routes",
        "regions",
        "breakers",
        "frozen",
        "panic",
    ]
    assert view["epoch"] == 1 << 53
    assert view["committed_at"] == "2023-11-14T22:13:20.123Z"
    assert view["regions"][0]["since"] == "2023-11-14T22:13:20.000Z"
    assert view["routes"][0] == {
        "channel": "alipay",
        "weights": [
            {"region": "east", "weight_bp": 7000},
            {"region": "north", "weight_bp": 3000},
        ],
        "shed_bp": 0,
        "reasons": ["base: configured shares"],
    }
    assert view["frozen"] is False
    assert view["breakers"] == [
        {
            "region": "east",
            "channel": "alipay",
            "state": "closed",
            "since": None,
            "open_until": None,
            "cause": "",
        }
    ]


def test_optional_and_nan() -> None:
    """An unset optional is left out, a set 0 is not; what JSON cannot say is null."""
    assert to_json(agent_pb2.LocalHealth()) == {"loop_lag_ms": 0.0}
    assert to_json(agent_pb2.LocalHealth(clock_offset_ms=0.0))["clock_offset_ms"] == 0.0
    for value in (math.nan, math.inf):
        assert to_json(agent_pb2.LocalHealth(loop_lag_ms=value)) == {"loop_lag_ms": None}


def test_maps_are_sorted_objects() -> None:
    """Map fields become objects with string keys, in order."""
    view = to_json(admin_pb2.Event(data={"b": "2", "a": "1"}))
    assert list(view["data"].items()) == [("a", "1"), ("b", "2")]


def test_error_details() -> None:
    """A status shows its details, those of unknown types included."""
    status = status_pb2.Status(code=3, message="no")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="R", domain="weir"))
    status.details.add(type_url="type.googleapis.com/nobody.Knows", value=b"\x01")
    first, second = to_json(agent_pb2.ReportResponse(error=status))["error"]["details"]
    assert first["reason"] == "R"
    assert second == {"@type": "type.googleapis.com/nobody.Knows", "value": "AQ=="}


@pytest.mark.parametrize("module", [admin_pb2, agent_pb2, common_pb2, peer_pb2, routing_pb2])
def test_every_message_of_the_api_is_shown_field_by_field(module: object) -> None:
    """For each message, empty: exactly the fields without presence and the times
    are there, by proto name."""
    descriptors = module.DESCRIPTOR.message_types_by_name  # type: ignore[attr-defined]
    assert descriptors
    for descriptor in descriptors.values():
        message = message_factory.GetMessageClass(descriptor)()
        view = to_json(message)
        wanted = [
            field.name
            for field in descriptor.fields
            if not field.has_presence
            or (field.message_type and field.message_type.name == "Timestamp")
        ]
        assert list(view) == wanted, descriptor.full_name
        json.dumps(view, allow_nan=False)


@given(data=st.binary(max_size=200))
def test_whatever_parses_can_be_shown(data: bytes) -> None:
    """Property: any plan or report that parses renders to JSON."""
    for kind in (common_pb2.Plan, agent_pb2.ReportRequest, admin_pb2.Event):
        message: Message = kind()
        try:
            message.ParseFromString(data)
        except Exception:  # noqa: BLE001 - not a message: nothing to show
            continue
        try:
            view = to_json(message)
        except (ValueError, OverflowError):
            # a timestamp outside the years 1 to 9999 has no RFC 3339 form
            continue
        json.dumps(view, allow_nan=False)


def test_bytes_and_enums_of_future_messages() -> None:
    """Kinds of fields that the API does not use yet have a form as well."""
    file = FileDescriptorProto(name="weir_test.proto", package="weir_test", syntax="proto3")
    enum = file.enum_type.add(name="Colour")
    enum.value.add(name="RED", number=0)
    enum.value.add(name="BLUE", number=1)
    thing = file.message_type.add(name="Thing")
    kinds = (FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.TYPE_ENUM)
    for number, (name, kind) in enumerate(zip(("raw", "colour"), kinds, strict=True), 1):
        field = thing.field.add(name=name, number=number, type=kind)
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        if kind == FieldDescriptorProto.TYPE_ENUM:
            field.type_name = ".weir_test.Colour"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    thing_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("weir_test.Thing"))
    assert to_json(thing_class(raw=b"\xff", colour=1)) == {"raw": "/w==", "colour": "BLUE"}
    assert to_json(thing_class(colour=9)) == {"raw": "", "colour": 9}
