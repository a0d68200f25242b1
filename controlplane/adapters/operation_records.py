"""Operations in etcd for the keeper: protobuf outside, plain values inside."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.wire import unix_ms
from controlplane.model.errors import DeposedError
from controlplane.model.ids import Epoch
from controlplane.model.operation import OperationState
from controlplane.ports import Compare, Delete, KeyValue, KeyValueStore, Leadership, Put
from controlplane.v1 import admin_pb2 as pb


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
        """Write an operation; DeposedError when the term or the version is not current any more."""
        kv = await self._intents.operation(operation.id)
        if kv is None:
            return
        message = pb.Operation.FromString(kv.value)
        message.stage, message.done = operation.stage, operation.done
        message.epoch, message.message = operation.epoch, operation.message
        message.commit_ms, message.converge_ms = operation.commit_ms, operation.converge_ms
        message.held_since_ms = operation.held_since_ms
        writes: list[Put | Delete] = [
            Put(key=kv.key, value=message.SerializeToString(), lease=kv.lease)
        ]
        if end_drain:
            writes.append(self._intents.intent_delete("drain", operation.target))
        result = await self._kv.txn(
            (
                Compare(
                    key=self._intents.keys.leader, target="mod", op="==", operand=leadership.term
                ),
                Compare(key=kv.key, target="mod", op="==", operand=operation.revision),
            ),
            writes,
        )
        if not result.succeeded:
            raise DeposedError(f"operation {operation.id}: written by another, or we do not lead")
