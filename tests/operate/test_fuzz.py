"""Nasty requests on every method: typed answers only, and nothing changes."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid

import grpc
import pytest
from google.rpc import error_details_pb2

from controlplane.adapters import authorisation
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import lock_pb2, lock_pb2_grpc
from tests.operate.fuzz import calls
from tests.operate.lab import Lab, half_close
from tests.operate.test_changes import details
from tests.operate.test_security import METHODS

EACH = 40
BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


async def call(
    channel: grpc.aio.Channel, name: str, method: object, data: bytes, *, to_the_end: bool = False
) -> grpc.StatusCode:
    """Send raw bytes to a method and return how it ended; streams are read once, or to their end."""
    try:
        async with asyncio.timeout(100 if to_the_end else 10):
            if method.server_streaming and method.client_streaming:
                stream = channel.stream_stream(name)()
                await stream.write(data)
                await half_close(stream)
                while await stream.read() is not grpc.aio.EOF and to_the_end:
                    pass
                stream.cancel()
            elif method.server_streaming:
                stream = channel.unary_stream(name)(data)
                async with asyncio.timeout(100 if to_the_end else 0.2):
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
    monkeypatch.setattr(authorisation, "RATE_PER_S", 10**9)  # what earlier tests used up is back
    replica = lab.replicas["east"]
    async with lab.admin() as stub:
        before = await stub.GetStatus(pb.GetStatusRequest())
        intents = await replica.store.intents()
        held = await hold_a_lock(lab)
        rng = random.Random(7)
        broken = []
        async with lab.channel() as channel:
            for name, method, data in itertools.islice(calls(rng, METHODS), EACH * len(METHODS)):
                code = await call(channel, name, method, data)
                if code in BROKEN:
                    broken.append((name, code, data))
        assert not broken
        after = await stub.GetStatus(pb.GetStatusRequest())
        assert after.plan_epoch == before.plan_epoch
        assert await replica.store.intents() == intents
        assert await lock_of(lab) == held


BYSTANDER = "somebody-elses"
HOLD_MS = 300_000


async def hold_a_lock(lab: Lab) -> int:
    """Take a lock that no nasty request names, or extend it; return its token.

    A Redis without a fence gets one from the leader first: until then nothing is granted.
    """
    request = lock_pb2.AcquireRequest(
        name=BYSTANDER, owner="bystander", ttl_ms=HOLD_MS, request_id=str(uuid.uuid4())
    )
    async with lab.channel() as channel, asyncio.timeout(90):
        stub = lock_pb2_grpc.LockServiceStub(channel)
        while True:
            try:
                return int((await stub.Acquire(request)).token)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


async def lock_of(lab: Lab) -> int:
    """Token of whoever holds the bystander's lock; fails when that is not one holder."""
    async with lab.channel() as channel:
        lock = await lock_pb2_grpc.LockServiceStub(channel).GetLock(
            lock_pb2.GetLockRequest(name=BYSTANDER)
        )
    (holder,) = lock.holders
    assert holder.owner == "bystander"
    return holder.token


async def test_bytes_that_are_no_message_are_the_callers_mistake(lab: Lab) -> None:
    """On every method, streams and ADS included: INVALID_ARGUMENT with the field, never INTERNAL or UNKNOWN."""
    replica = lab.replicas["east"]
    found = {}
    async with lab.channel() as channel:
        for name, method in METHODS:
            found[name] = await call(channel, name, method, b"\xff\xff\xff", to_the_end=True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/controlplane.v1.AdminService/GetStatus")(b"\xff\xff\xff")
    wrong = {n: c for n, c in found.items() if c is not grpc.StatusCode.INVALID_ARGUMENT}
    assert not wrong
    (bad,) = details(refused.value, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == "request"
    assert replica.board.plan is not None
