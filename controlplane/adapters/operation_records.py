"""Operations in etcd for the keeper: protobuf outside, plain values inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.wire import unix_ms
from controlplane.model.errors import DeposedError
from controlplane.model.ids import Epoch
from controlplane.model.operation import OperationState
from controlplane.ports import Compare, Delete, KeyValue, KeyValueStore, Leadership, Put
from controlplane.v1 import admin_pb2 as pb

TAKEN_OVER: Final = "aborted: an operator keeps the region out"
"""Why a drill did not bring its region back."""


def parse(kv: KeyValue) -> OperationState:
    """Read an operation as stored."""
    message = pb.Operation.FromString(kv.value)
    return OperationState(
        id=message.id,
        kind=message.kind,
        target=message.target,
        stage=message.stage,
        accepted_ms=unix_ms(message.created_at),
        done=message.done,
        epoch=Epoch(message.epoch),
        message=message.message,
        commit_ms=message.commit_ms,
        converge_ms=message.converge_ms,
        hold_s=message.hold_s,
        held_since_ms=message.held_since_ms,
        wanted={
            weight.region: weight.weight_bp
            for route in message.effect.routes
            if route.channel == message.target
            for weight in route.weights
        },
        revision=kv.mod_revision,
    )


class OperationRecords:
    """Reads running operations and writes how far they have come."""

    def __init__(self, kv: KeyValueStore, intents: EtcdIntents) -> None:
        self._kv = kv
        self._intents = intents

    async def running(self) -> Sequence[OperationState]:
        """Return every operation that is not done."""
        found = [parse(kv) for kv in await self._intents.operations()]
        return [operation for operation in found if not operation.done]

    async def save(
        self, leadership: Leadership, operation: OperationState, *, end_drain: bool
    ) -> None:
        """Write an operation; DeposedError when the term or the version is not current any more.

        `end_drain` ends the drain of a drill, never one that an operator has put in its place: then
        the drill has failed instead of returning.
        """
        kv = await self._intents.operation(operation.id)
        if kv is None:
            return
        keys, target = self._intents.keys, operation.target
        held, by_drill = await self._intents.drain_of(target) if end_drain else (0, False)
        if held and not by_drill and not operation.done:
            operation = replace(operation, stage="failed", done=True, message=TAKEN_OVER)
        message = pb.Operation.FromString(kv.value)
        message.stage, message.done = operation.stage, operation.done
        message.epoch, message.message = operation.epoch, operation.message
        message.commit_ms, message.converge_ms = operation.commit_ms, operation.converge_ms
        message.held_since_ms = operation.held_since_ms
        writes: list[Put | Delete] = [
            Put(key=kv.key, value=message.SerializeToString(), lease=kv.lease)
        ]
        compares = [
            Compare(key=keys.leader, target="mod", op="==", operand=leadership.term),
            Compare(key=kv.key, target="mod", op="==", operand=operation.revision),
        ]
        if by_drill:
            drain = self._intents.intent_delete("drain", target)
            writes.append(drain)
            compares.append(Compare(key=drain.key, target="mod", op="==", operand=held))
        result = await self._kv.txn(compares, writes)
        if not result.succeeded and by_drill and (await self._intents.drain_of(target))[0] != held:
            await self.save(leadership, operation, end_drain=True)  # somebody came in between
            return
        if not result.succeeded:
            raise DeposedError(f"operation {operation.id}: written by another, or we do not lead")
