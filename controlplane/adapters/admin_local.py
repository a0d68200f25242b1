"""A change for the data planes of one replica, while etcd has no quorum: asked for by `local`.

It goes through the same transitions, the same rules and the same checks of reason, identity and
request id as any change; what differs is where it is kept (here), for how long (half an hour at
most), and that its record reaches the audit in etcd only when etcd answers again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, Protocol

import grpc
import structlog

from controlplane.adapters.admin_ports import Caller, EffectView
from controlplane.adapters.admin_rules import describe, fingerprint_of, obey
from controlplane.adapters.admin_transitions import Change
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError, RefusedError, ReusedRequestIdError
from controlplane.model.intents import Intents
from controlplane.v1 import admin_pb2 as pb

log = structlog.get_logger(__name__)

KINDS: Final = frozenset({"drain", "failover", "undrain", "override", "clear_override"})
SET: Final = {"drain": "drain", "failover": "drain", "override": "override"}
"""What puts an intent into force, with the kind of that intent."""
ABSOLUTE: Final = frozenset({"single_writer"})
"""Rules that nobody overrides here: only a committed plan can fence the other writer."""
DEFAULT_S: Final = 600
MAX_S: Final = 1_800
ANSWERS_MAX: Final = 1_000
"""Answers kept for repeats; they are gone with the process, as the override is."""


class Local(Protocol):
    """Where the override is held (runtime.local)."""

    @property
    def intents(self) -> Intents:
        """The intents that hold here."""
        ...

    async def hold(
        self,
        intents: Intents,
        *,
        by: str,
        reason: str,
        ttl_s: int,
        renewed: tuple[str, str] | None = None,
        overridden: frozenset[str] = frozenset(),
    ) -> None:
        """Put intents into force here."""
        ...


class Audit(Protocol):
    """Where it is recorded (adapters.audit_trail)."""

    def note(
        self, kind: str, *, target: str, by: str, reason: str, message: str, op_id: str = ""
    ) -> None:
        """Record something that is done."""
        ...


class LocalChanger:
    """Makes local changes, each once."""

    def __init__(
        self,
        *,
        replica: str,
        local: Local,
        audit: Audit,
        what_if: Callable[[Intents], EffectView],
        coordinated: Callable[[], bool],
        caller: Caller,
        clock: Clock,
    ) -> None:
        self._replica = replica
        self._local = local
        self._audit = audit
        self._what_if = what_if
        self._coordinated = coordinated
        self._caller = caller
        self._clock = clock
        self._answers: OrderedDict[str, tuple[bytes, pb.Operation]] = OrderedDict()

    @property
    def coordinated(self) -> bool:
        """Whether etcd answers this replica."""
        return self._coordinated()

    def refusal(self) -> str:
        """Say what can be done while nothing can be committed."""
        return (
            f"etcd has no quorum as {self._replica} sees it: nothing can be committed, and the "
            "last known good plan stays in force. To move only what the data planes of this "
            "replica follow, for half an hour at most: drain, failover --from or override with "
            "--local"
        )

    async def make(
        self, request: Any, context: grpc.aio.ServicerContext, work_out: Callable[[Intents], Change]
    ) -> pb.Operation:
        """Make the change that `work_out` finds for the intents that hold here."""
        mutation: pb.Mutation = request.mutation
        if mutation.etag:
            raise InvalidInputError(
                "mutation.etag", "must be empty for a local change: nothing in etcd is compared"
            )
        fingerprint = fingerprint_of(request)
        first = self._answers.get(mutation.request_id)
        if first is not None and not mutation.validate_only:
            if first[0] != fingerprint:
                raise ReusedRequestIdError(mutation.request_id)
            return first[1]
        if self._coordinated():
            raise RefusedError(
                "coordinated", "etcd answers: change it for everybody, without --local"
            )
        if mutation.ttl_s > MAX_S:
            raise InvalidInputError("mutation.ttl_s", f"must be at most {MAX_S} for a local change")
        operation, change = self._worked_out(mutation, context, work_out)
        if mutation.validate_only:
            return operation
        if not operation.effect.unchanged:
            await self._local.hold(
                change.after,
                by=operation.by,
                reason=f"{change.kind} {change.target}: {mutation.reason}",
                ttl_s=mutation.ttl_s or DEFAULT_S,
                renewed=change.puts[0][:2] if change.puts else None,
                overridden=frozenset(mutation.override_rules),
            )
            self._record(operation)
        self._answers[mutation.request_id] = (fingerprint, operation)
        while len(self._answers) > ANSWERS_MAX:
            self._answers.popitem(last=False)
        return operation

    def _worked_out(
        self,
        mutation: pb.Mutation,
        context: grpc.aio.ServicerContext,
        work_out: Callable[[Intents], Change],
    ) -> tuple[pb.Operation, Change]:
        now = self._local.intents
        change = work_out(now)
        if change.kind not in KINDS:
            raise RefusedError(
                "local",
                f"a {change.kind} needs a quorum; at one replica alone there are drains, failovers "
                "and overrides",
            )
        renewed = change.after == now and change.kind in SET
        if renewed:  # asked for again: it holds from now, by the one who asks now
            kind = SET[change.kind]
            change = replace(change, puts=((kind, change.target, {}),))
        by, roles = self._caller(context)
        operation = describe(
            change,
            now,
            mutation,
            self._what_if(change.after),
            by=by,
            etag="",
            wall_ms=self._clock.wall_ms(),
            ttl_s=mutation.ttl_s or DEFAULT_S,
        )
        operation.local = True
        if renewed:
            operation.effect.unchanged = False  # judged by the rules once more
        if not operation.effect.unchanged:
            operation.stage, operation.done = "completed", True
            operation.message = (
                f"only the data planes of {self._replica} follow it, without a quorum; it ends by "
                "itself, or as soon as etcd answers"
            )
        obey(operation, mutation, roles, absolute=ABSOLUTE)
        return operation, change

    def _record(self, operation: pb.Operation) -> None:
        moved = ", ".join(
            f"{r.region} {r.load_before_bp} -> {r.load_after_bp} bp"
            for r in operation.effect.regions
        )
        log.warning(
            "local_override",
            kind=operation.kind,
            target=operation.target,
            by=operation.by,
            reason=operation.reason,
            operation=operation.id,
            moved=moved,
        )
        self._audit.note(
            f"local_{operation.kind}",
            target=operation.target,
            by=operation.by,
            reason=operation.reason,
            message=f"at {self._replica}, without a quorum: {moved}",
            op_id=operation.id,
        )
