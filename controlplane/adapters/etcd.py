"""An asyncio client for etcd v3: the port `KeyValueStore` over the wire stubs of `etcd3`.

Theory. Safety comes from guarded transactions, liveness from never waiting long for one member
(`etcd_links`). What is left is the outcome of a write whose answer was lost. A transaction is
*once-only* when its success makes its own condition false: it compares a key that it also writes.
Then any number of repetitions, and any copy that a stopped member sends minutes later, apply at
most once in all, and the key tells afterwards whether it was ours. Those are repeated; everything
else that may have happened raises AmbiguousError.

Rules. Reads are linearizable. The value written to a compared key should be unique (carry a
counter, a nonce): "was it ours?" is answered by comparing it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from etcd3 import etcdrpc

from controlplane.adapters.etcd_call import Call
from controlplane.adapters.etcd_links import (
    Attempt,
    EtcdError,
    EtcdOptions,
    EtcdStats,
    Link,
    Links,
    ended_early,
    prefix_end,
)
from controlplane.adapters.etcd_watch import watch
from controlplane.clock import Clock, SystemClock
from controlplane.model.errors import AmbiguousError, UnavailableError
from controlplane.ports import Compare, Delete, Get, KeyValue, Put, TxnResult, WatchEvent

PAGE: Final = 500
"""Keys read per request when listing a prefix."""

_RESULT: Final = {
    "==": etcdrpc.Compare.EQUAL,
    "!=": etcdrpc.Compare.NOT_EQUAL,
    "<": etcdrpc.Compare.LESS,
    ">": etcdrpc.Compare.GREATER,
}
_TARGET: Final = {
    "mod": (etcdrpc.Compare.MOD, "mod_revision"),
    "create": (etcdrpc.Compare.CREATE, "create_revision"),
    "version": (etcdrpc.Compare.VERSION, "version"),
    "value": (etcdrpc.Compare.VALUE, "value"),
}

_T = TypeVar("_T")
Op = Put | Delete | Get


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """One member as it sees itself; `answers` is false when it did not answer."""

    endpoint: str
    answers: bool
    leads: bool = False
    version: str = ""
    db_bytes: int = 0
    revision: int = 0


class EtcdClient:
    """Client of one cluster. Make it with `connect` inside the running loop."""

    def __init__(self, links: Links, clock: Clock) -> None:
        self._links = links
        self._clock = clock

    @classmethod
    async def connect(
        cls,
        endpoints: Sequence[str],
        *,
        options: EtcdOptions | None = None,
        clock: Clock | None = None,
        seed: int | None = None,
    ) -> EtcdClient:
        """Make a client of `host:port` endpoints. Does not wait for etcd: a replica starts
        without it."""
        clock = clock or SystemClock()
        return cls(Links(endpoints, options or EtcdOptions(), clock, seed), clock)

    async def aclose(self) -> None:
        """Close every link; calls in flight are cancelled."""
        await self._links.aclose()

    @property
    def stats(self) -> EtcdStats:
        """Counters for metrics."""
        return self._links.stats

    async def _call(
        self,
        name: str,
        attempt: Attempt[_T],
        *,
        repeat: bool,
        on_unknown: Callable[[], None] | None = None,
    ) -> _T:
        call = Call(self._links, self._clock, name, attempt, repeat=repeat, on_unknown=on_unknown)
        return await call.run()

    # --- keys ------------------------------------------------------------------------------------

    async def get(self, key: bytes) -> KeyValue | None:
        """Linearizable read of one key."""
        answer = await self._range(etcdrpc.RangeRequest(key=key))
        return _kv(answer.kvs[0]) if answer.kvs else None

    async def get_prefix(self, prefix: bytes) -> tuple[Sequence[KeyValue], int]:
        """Linearizable read of a prefix, in pages at one revision, and that revision."""
        found: list[KeyValue] = []
        key, end, revision = prefix or b"\0", prefix_end(prefix), 0
        while True:
            answer = await self._range(
                etcdrpc.RangeRequest(key=key, range_end=end, limit=PAGE, revision=revision)
            )
            revision = revision or answer.header.revision
            found += map(_kv, answer.kvs)
            if not answer.more:
                return found, revision
            key = answer.kvs[-1].key + b"\0"

    async def get_range(
        self, start: bytes, end: bytes, *, limit: int, descending: bool = False
    ) -> tuple[Sequence[KeyValue], bool]:
        """Linearizable read of at most `limit` keys of [start, end); also whether there are
        more."""
        order = etcdrpc.RangeRequest.DESCEND if descending else etcdrpc.RangeRequest.ASCEND
        answer = await self._range(
            etcdrpc.RangeRequest(
                key=start, range_end=end, limit=limit, sort_order=order,
                sort_target=etcdrpc.RangeRequest.KEY,
            )
        )  # fmt: skip
        return [_kv(kv) for kv in answer.kvs], bool(answer.more)

    async def revision(self) -> int:
        """Return the current revision, linearizable: proves that a quorum answers."""
        answer = await self._range(etcdrpc.RangeRequest(key=b"\0", count_only=True))
        return int(answer.header.revision)

    async def _range(self, request: Any) -> Any:
        return await self._call(
            "range",
            lambda link, timeout_s, md: link.kv.Range(request, timeout=timeout_s, metadata=md),
            repeat=True,
        )

    async def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """One transaction; repeated only when it only reads or is once-only (see module).

        Raises UnavailableError when it certainly did not happen, AmbiguousError when it may have.
        """
        marks = once_marks(compares, success, failure)
        reads_only = all(isinstance(op, Get) for op in (*success, *failure))
        request = etcdrpc.TxnRequest(
            compare=[_compare(c) for c in compares],
            success=[_op(op) for op in success],
            failure=[_op(op) for op in (*failure, *(Get(key=op.key) for op in marks))],
        )
        unknown = False

        def note() -> None:
            nonlocal unknown
            unknown = True

        answer = await self._call(
            "range" if reads_only else "txn",
            lambda link, timeout_s, md: link.kv.Txn(request, timeout=timeout_s, metadata=md),
            repeat=bool(marks) or reads_only,
            on_unknown=note,
        )
        reads = tuple(
            tuple(map(_kv, response.response_range.kvs))
            for response in answer.responses
            if response.HasField("response_range")
        )
        result = TxnResult(succeeded=answer.succeeded, revision=answer.header.revision, reads=reads)
        if answer.succeeded or not marks:
            return result
        seen, rest = reads[len(reads) - len(marks) :], reads[: len(reads) - len(marks)]
        if unknown:
            outcome = _was_ours(marks, seen, compares)
            if outcome is None:
                self.stats.ambiguous += 1
                raise AmbiguousError("etcd txn: overwritten before its outcome could be read")
            if outcome:
                return await self._as_success(outcome, success)
        return TxnResult(succeeded=False, revision=result.revision, reads=rest)

    async def _as_success(self, revision: int, success: Sequence[Op]) -> TxnResult:
        """Report a transaction that turned out to have happened; its reads are made again."""
        gets = [op for op in success if isinstance(op, Get)]
        reads = (await self.txn((), gets)).reads if gets else ()
        return TxnResult(succeeded=True, revision=revision, reads=reads)

    def watch(
        self, prefix: bytes, start_revision: int
    ) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """Yield changes below `prefix` from `start_revision` on, whole revisions, each exactly
        once, over any number of members. CompactedError when history is gone: list again."""
        return watch(self._links, self._clock, prefix, start_revision)

    # --- leases ----------------------------------------------------------------------------------

    async def grant_lease(self, ttl_s: int) -> int:
        """Grant a lease. Repeated freely: a grant whose answer was lost lapses by itself."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl_s)
        try:
            answer = await self._call(
                "grant",
                lambda link, timeout_s, md: link.lease.LeaseGrant(
                    request, timeout=timeout_s, metadata=md
                ),
                repeat=True,
            )
        except AmbiguousError as error:
            raise UnavailableError(str(error)) from error
        return int(answer.ID)

    async def keepalive(self, lease: int) -> int:
        """Renew a lease once; return the TTL in s, 0 when it is gone. An answer is *not* proof of
        a quorum."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)

        async def attempt(link: Link, timeout_s: float, md: Any) -> int:
            call = link.lease.LeaseKeepAlive(timeout=timeout_s, metadata=md)
            try:
                await call.write(request)
                answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise ended_early(link)
                return int(answer.TTL)
            except asyncio.InvalidStateError as error:  # ended before it was written to
                raise ended_early(link) from error
            finally:
                call.cancel()

        return await self._call("keepalive", attempt, repeat=True)

    async def revoke_lease(self, lease: int) -> None:
        """Revoke a lease and delete its keys; one that is gone already is fine."""
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        try:
            await self._call(
                "revoke",
                lambda link, timeout_s, md: link.lease.LeaseRevoke(
                    request, timeout=timeout_s, metadata=md
                ),
                repeat=True,
            )
        except EtcdError as error:
            if "lease not found" not in str(error):
                raise

    # --- upkeep ----------------------------------------------------------------------------------

    async def compact(self, revision: int) -> None:
        """Drop history below `revision`; done already is fine."""
        request = etcdrpc.CompactionRequest(revision=revision)
        try:
            await self._call(
                "compact",
                lambda link, timeout_s, md: link.kv.Compact(
                    request, timeout=timeout_s, metadata=md
                ),
                repeat=True,
            )
        except EtcdError as error:
            if "has been compacted" not in str(error):
                raise

    async def alarms(self) -> Sequence[str]:
        """Return etcd's raised alarms, e.g. NOSPACE."""
        request = etcdrpc.AlarmRequest(action=etcdrpc.AlarmRequest.GET)
        answer = await self._call(
            "alarms",
            lambda link, timeout_s, md: link.maintenance.Alarm(
                request, timeout=timeout_s, metadata=md
            ),
            repeat=True,
        )
        return sorted({etcdrpc.AlarmType.Name(alarm.alarm) for alarm in answer.alarms})

    async def members(self) -> Sequence[MemberStatus]:
        """Ask every member for its status, all at once: hung ones cost one attempt, for people."""
        return await asyncio.gather(*map(self._member, self._links.all))

    async def _member(self, link: Link) -> MemberStatus:
        timeout_s = self._links.options.attempt_ms / 1000
        try:
            metadata = await self._links.metadata(timeout_s)
            status = await link.maintenance.Status(
                etcdrpc.StatusRequest(), timeout=timeout_s, metadata=metadata
            )
        except grpc.aio.AioRpcError:
            return MemberStatus(endpoint=link.endpoint, answers=False)
        return MemberStatus(
            endpoint=link.endpoint,
            answers=True,
            leads=status.leader == status.header.member_id,
            version=status.version,
            db_bytes=status.dbSize,
            revision=status.header.revision,
        )


def once_marks(
    compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]
) -> Sequence[Put | Delete]:
    """Return the writes that make the transaction's own condition false; empty when none does."""
    if any(not isinstance(op, Get) for op in failure):
        return ()
    guards = {compare.key: compare for compare in compares if _self_defeating(compare)}
    return [
        op
        for op in success
        if not isinstance(op, Get) and op.key in guards and _defeats(op, guards[op.key])
    ]


def _self_defeating(compare: Compare) -> bool:
    return compare.op == "==" or (compare.op == "<" and compare.target == "value")


def _defeats(op: Put | Delete, compare: Compare) -> bool:
    """Whether the condition is false once `op` has happened."""
    if isinstance(op, Delete):  # an absent key has revision and version 0 and no value
        return not op.range_end and compare.operand != 0
    if compare.target != "value":
        return True
    if not isinstance(compare.operand, bytes):
        return False
    return op.value != compare.operand if compare.op == "==" else op.value >= compare.operand


def _was_ours(
    marks: Sequence[Put | Delete],
    seen: Sequence[Sequence[KeyValue]],
    compares: Sequence[Compare],
) -> int | None:
    """Tell whether an earlier try happened: its revision, 0 for no, None when nobody can tell."""
    operands = {c.key: c.operand for c in compares if c.target == "mod"}
    revision, untouched = 0, True
    for op, kvs in zip(marks, seen, strict=True):
        found = kvs[0] if kvs else None
        if (found.value if found else None) != (op.value if isinstance(op, Put) else None):
            same = (found.mod_revision if found else 0) == operands.get(op.key, -1)
            untouched = untouched and same
            revision = -1
        elif revision >= 0:
            revision = max(revision, found.mod_revision if found else 1)
    if revision > 0:
        return revision
    return 0 if untouched else None


def _kv(kv: Any) -> KeyValue:
    return KeyValue(
        key=kv.key,
        value=kv.value,
        mod_revision=kv.mod_revision,
        create_revision=kv.create_revision,
        version=kv.version,
        lease=kv.lease,
    )


def _compare(compare: Compare) -> Any:
    target, name = _TARGET[compare.target]
    return etcdrpc.Compare(
        key=compare.key, result=_RESULT[compare.op], target=target, **{name: compare.operand}
    )


def _op(op: Op) -> Any:
    if isinstance(op, Put):
        put = etcdrpc.PutRequest(key=op.key, value=op.value, lease=op.lease)
        return etcdrpc.RequestOp(request_put=put)
    if isinstance(op, Delete):
        delete = etcdrpc.DeleteRangeRequest(key=op.key, range_end=op.range_end)
        return etcdrpc.RequestOp(request_delete_range=delete)
    return etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=op.key, range_end=op.range_end))
