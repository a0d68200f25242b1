"""What a replica did by itself, written to the audit in etcd as soon as etcd answers.

An operator's change is its own audit record, written in its own transaction. A reload and a local
override happen at one replica, perhaps while etcd is gone: they are logged at once, kept here, and
written as operations when a write succeeds. Each is written once (its id is its request id), kept
for a week, and never changed.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog

from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.wire import timestamp
from controlplane.clock import Clock
from controlplane.model.errors import AmbiguousError, UnavailableError, WeirError
from controlplane.v1 import admin_pb2 as pb

log = structlog.get_logger(__name__)

KEPT_MAX: Final = 200
"""Records kept while etcd is gone; the log has them all."""
KEEP_S: Final = 604_800
RETRY_MS: Final = 1_000
MESSAGE_MAX: Final = 4_000


class AuditTrail:
    """Keeps records until they are written. `run` must be running."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[pb.Operation] = deque(maxlen=KEPT_MAX)
        self._added = asyncio.Event()

    @property
    def waiting(self) -> Sequence[pb.Operation]:
        """What is not yet in etcd, oldest first."""
        return tuple(self._waiting)

    def note(
        self, kind: str, *, target: str, by: str, reason: str, message: str, op_id: str = ""
    ) -> None:
        """Keep a record of something that is done; it is written when etcd answers."""
        operation = pb.Operation(
            id=op_id or f"op-{uuid.uuid4()}",
            kind=kind,
            target=target,
            stage="completed",
            done=True,
            by=by,
            reason=reason,
            created_at=timestamp(self._clock.wall_ms()),
            commit_ms=-1,
            converge_ms=-1,
            message=message[:MESSAGE_MAX],
        )
        self._waiting.append(operation)
        self._added.set()

    async def run(self, intents: EtcdIntents) -> None:
        """Write what is kept, in order, for ever."""
        while True:
            await self._added.wait()
            while self._waiting:
                record = self._waiting[0]
                try:
                    await self._write(intents, record)
                except (UnavailableError, AmbiguousError):
                    await self._clock.sleep_ms(RETRY_MS)
                    continue
                except WeirError as error:
                    log.error("audit_not_written", operation=record.id, error=str(error))
                if self._waiting and self._waiting[0] is record:
                    self._waiting.popleft()
            self._added.clear()

    @staticmethod
    async def _write(intents: EtcdIntents, record: pb.Operation) -> None:
        data = record.SerializeToString(deterministic=True)
        put = await intents.operation_put(record.id, data, KEEP_S)
        await intents.apply(record.id.removeprefix("op-"), (put,), b"", fingerprint=data)
