"""Nasty requests on every method: typed answers only, and nothing changes."""

from __future__ import annotations

import asyncio
import itertools
import random

import grpc
import pytest

from controlplane.adapters import authorisation
from controlplane.v1 import admin_pb2 as pb
from tests.operate.fuzz import calls
from tests.operate.lab import Lab
from tests.operate.test_security import METHODS

SERVED = [(n, m) for n, m in METHODS if "LockService" not in n and "Wait" not in n]
EACH = 40
BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


async def call(
    channel: grpc.aio.Channel, name: str, method: object, data: bytes
) -> grpc.StatusCode:
    """Send raw bytes to a method and return how it ended; streams are read once."""
    try:
        async with asyncio.timeout(10):
            if method.server_streaming and method.client_streaming:
                stream = channel.stream_stream(name)()
                await stream.write(data)
                await stream.done_writing()
                await stream.read()
                stream.cancel()
            elif method.server_streaming:
                stream = channel.unary_stream(name)(data)
                async with asyncio.timeout(0.2):
                    await stream.read()
                stream.cancel()
            else:
                await channel.unary_unary(name)(data)
    except grpc.aio.AioRpcError as error:
        return error.code()
    except TimeoutError:
        return grpc.StatusCode.OK
    return grpc.StatusCode.OK


async def test_nasty_requests_get_typed_answers_and_change_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structure-aware nonsense on every method: no INTERNAL, no crash, same plan, same intents."""
    monkeypatch.setattr(authorisation, "BURST", 10**9)
    replica = lab.replicas["east"]
    async with lab.admin() as stub:
        before = await stub.GetStatus(pb.GetStatusRequest())
        intents = await replica.store.intents()
        rng = random.Random(7)
        broken = []
        async with lab.channel() as channel:
            for name, method, data in itertools.islice(calls(rng, SERVED), EACH * len(SERVED)):
                code = await call(channel, name, method, data)
                if code in BROKEN and data and _parses(method, data):
                    broken.append((name, code, data))
        assert not broken
        after = await stub.GetStatus(pb.GetStatusRequest())
        assert after.plan_epoch == before.plan_epoch
        assert await replica.store.intents() == intents


def _parses(method: object, data: bytes) -> bool:
    """Bytes that are no message at all are refused by gRPC itself, with INTERNAL."""
    try:
        method.input_type._concrete_class.FromString(data)
    except Exception:  # noqa: BLE001 - whatever the parser says
        return False
    return True
