"""The plan store: where the leader writes, and everybody reads.

Theory. Every leader write is one transaction with three conditions. The leader key still carries
this term (mod_revision): a deposed leader writes nothing, however late it wakes. The heartbeat
still is the one this leader wrote last: its writes form a chain, so a copy of an earlier request
that a stopped member sends minutes later finds the chain moved on and does nothing. The plan's
epoch, compared by etcd itself, is below the new one: epochs rise whatever the leader believes.
The heartbeat is put in every write, so the transaction defeats its own condition and the client
may repeat it until the outcome is known.

Rules
- Plan, state, events and failovers of one tick travel in one transaction or not at all.
- The store checks a plan by itself before it writes; a broken one is an Alarm.
- Events are numbered by the writer inside the chain; the newest 10,000 stay.
- `follow` yields rising epochs only, and reads the key again every `RELIST_MS`, so that neither a
  lost watch event nor a restored etcd can hide a plan.

Failure modes. DeposedError: another leads, or the epoch would not rise; nothing was written.
AmbiguousError and UnavailableError: the next write finds out by itself. NoSpaceError: etcd is full.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from controlplane.adapters import wire
from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.etcd_keys import Keys, number_of, pack_plan, unpack_plan
from controlplane.adapters.etcd_links import NoSpaceError
from controlplane.adapters.etcd_records import (
    EVENTS_PER_WRITE,
    FAILOVERS_PER_WRITE,
    event_ops,
    failover_puts,
    pack_state,
    pulse_value,
    read_plan,
    unpack_state,
)
from controlplane.clock import Clock
from controlplane.model import audit, epochs
from controlplane.model.errors import (
    Alarm,
    AmbiguousError,
    CompactedError,
    DeposedError,
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)
from controlplane.model.ids import Epoch, Term
from controlplane.model.intents import Intents, Order
from controlplane.model.plan import Event, FailoverRecord, Plan
from controlplane.ports import (
    Beat,
    Committed,
    Compare,
    Delete,
    Get,
    KeyValue,
    KeyValueStore,
    Leadership,
    Put,
)
from controlplane.v1 import admin_pb2

log = structlog.get_logger(__name__)

FAILOVERS_READ: Final = 100
FAILOVERS_KEPT: Final = 1_000
UPKEEP_MS: Final = 300_000
"""One compaction in this time, to where history stood the time before: watches that were cut off
for less than that resume exactly."""
UPKEEP_PATIENCE_MS: Final = 300
REQUEST_MAX: Final = 1_400_000
"""Bytes of one transaction; etcd refuses 1.5 MiB."""
RELIST_MS: Final = 30_000
RETRY_MS: Final = 250


@dataclass(slots=True)
class _Chain:
    """What the next write of this term compares, and what it counts on from."""

    term: Term
    heartbeat_revision: int
    epoch: Epoch
    has_plan: bool
    last_event: int


class EtcdPlanStore:
    """Implements `controlplane.ports.PlanStore`.

    `on_write(term, sent_ms)` is told of every guarded write that succeeded, with the monotonic ms
    before it was sent: the election renews its deadline with it. `on_deposed(term)` is told when
    etcd showed that a term is over.
    """

    def __init__(
        self, kv: KeyValueStore, cluster: str, clock: Clock, *, budget_ms: int = 30_000
    ) -> None:
        self.keys = Keys(cluster)
        self.on_write: Callable[[Term, int], None] = lambda _term, _sent_ms: None
        self.on_deposed: Callable[[Term], None] = lambda _term: None
        self._kv = kv
        self._clock = clock
        self._one_write = asyncio.Lock()
        self._budget_ms = budget_ms
        self._chain: _Chain | None = None
        self._seq = 0
        self._kept_up: tuple[int, int] | None = None
        self._intents = EtcdIntents(kv, self.keys, clock)

    def writing(self) -> bool:
        """Whether a guarded write is under way."""
        return self._one_write.locked()

    # --- reading ---------------------------------------------------------------------------------

    async def load(self) -> Committed | None:
        """Linearizable read of plan, state and the newest failovers; None before the first plan.

        Raises InvalidInputError when the plan in etcd may not be followed.
        """
        reads = await self._read_both()
        if not reads[0]:
            return None
        failovers = await self.failovers(FAILOVERS_READ)
        state = unpack_state(reads[1][0].value) if reads[1] else b""
        return replace(read_plan(reads[0][0]), state=state, failovers=tuple(failovers))

    async def _read_both(self) -> Sequence[Sequence[KeyValue]]:
        """Read plan and state at one revision; one after the other while etcd is full."""
        keys = (self.keys.plan, self.keys.state)
        try:
            return (await self._kv.txn((), [Get(key=key) for key in keys])).reads
        except NoSpaceError:
            # a full etcd refuses every transaction, even one that only reads. Two reads do: who
            # leads is alone to write, and a plan between them is refused at the next write
            found = [await self._kv.get(key) for key in keys]
            return [[kv] if kv else [] for kv in found]

    async def state(self) -> bytes:
        """Linearizable read of the decision state alone, for showing; empty before the first."""
        kv = await self._kv.get(self.keys.state)
        return unpack_state(kv.value) if kv else b""

    async def intents(self) -> Intents:
        """Return what operators asked for."""
        return (await self.standing())[0]

    async def standing(self) -> tuple[Intents, Sequence[Order]]:
        """Return what operators asked for, and for people who did, why and until when."""
        return await self._intents.standing()

    async def follow(self) -> AsyncGenerator[Committed, None]:
        """Yield every committed plan whose epoch rises, newest wins, for ever; without its
        state."""
        seen = Epoch(0)
        while True:
            try:
                kvs, revision = await self._kv.get_prefix(self.keys.plan)
                kv = kvs[0] if kvs else None
                async with contextlib.aclosing(self._changes(kv, revision + 1)) as changes:
                    async for newest in changes:
                        if newest.plan.epoch > seen:
                            seen = newest.plan.epoch
                            yield newest
            except UnavailableError as error:
                remedy = (
                    "start etcd, or correct coordination.endpoints; tried again until it answers"
                )
                log.warning("plan_not_readable", error=str(error), remedy=remedy)
                await self._clock.sleep_ms(RETRY_MS)
            except CompactedError:
                continue  # read the key again: only the newest plan matters

    async def _changes(self, kv: KeyValue | None, revision: int) -> AsyncGenerator[Committed, None]:
        """Yield the plan just read, then what the watch brings, for at most RELIST_MS of quiet."""
        if kv is not None and (committed := _readable(kv.value, kv.mod_revision)):
            yield committed
        events = self._kv.watch(self.keys.plan, revision)
        try:
            while True:
                async with asyncio.timeout(RELIST_MS / 1000):
                    changes = await anext(events)
                puts = [c for c in changes if c.key == self.keys.plan and c.value is not None]
                if puts and (committed := _readable(puts[-1].value or b"", puts[-1].mod_revision)):
                    yield committed
        except TimeoutError:
            return
        finally:
            await events.aclose()

    async def events(
        self, limit: int = 100, before: int | None = None
    ) -> tuple[Sequence[admin_pb2.Event], int | None]:
        """Return at most `limit` events, newest first, with ids below `before`, and the `before`
        of the next page (None at the end)."""
        end = self.keys.event(before) if before is not None else self.keys.events + b"\xff"
        kvs, more = await self._kv.get_range(self.keys.events, end, limit=limit, descending=True)
        found = [admin_pb2.Event.FromString(kv.value) for kv in kvs]
        return found, number_of(kvs[-1].key) if more else None

    async def failovers(self, limit: int = 100) -> Sequence[FailoverRecord]:
        """Return failovers, newest first; times are wall ms."""
        return [wire.decode_failover(message) for message in await self.failover_messages(limit)]

    async def failover_messages(self, limit: int = 100) -> Sequence[admin_pb2.Failover]:
        """Return failovers as they are shown, newest first."""
        kvs, _ = await self._kv.get_prefix(self.keys.failovers)
        newest = sorted(kvs, key=lambda kv: kv.create_revision, reverse=True)[:limit]
        return [admin_pb2.Failover.FromString(kv.value) for kv in newest]

    # --- writing ---------------------------------------------------------------------------------

    async def commit(
        self,
        leadership: Leadership,
        plan: Plan,
        state: bytes,
        events: Sequence[Event] = (),
        failovers: Sequence[FailoverRecord] = (),
    ) -> Committed:
        """Write plan, state, events and changed failovers; see `controlplane.ports.PlanStore`."""
        wall_ms = self._clock.wall_ms()
        plan = replace(plan, term=leadership.term, committed_at_ms=wall_ms)
        if plan.local is not None:
            raise Alarm(f"plan {plan.epoch} carries a local override, which is never committed")
        if violations := audit.check(plan, None):
            raise Alarm(f"plan {plan.epoch} breaks invariants: {'; '.join(map(str, violations))}")
        async with self._one_write:
            return await self._commit(leadership, plan, state, events, failovers)

    async def _commit(
        self,
        leadership: Leadership,
        plan: Plan,
        state: bytes,
        events: Sequence[Event],
        failovers: Sequence[FailoverRecord],
    ) -> Committed:
        chain = await self._begin(leadership)
        if plan.epoch > epochs.EPOCH_MAX or plan.epoch > chain.epoch + epochs.EPOCH_JUMP_MAX + 1:
            raise RefusedError(
                "epoch_jump", f"epoch {plan.epoch} after {chain.epoch}: use model.epochs.next_epoch"
            )
        if (same := await self._already(chain, plan)) is not None:
            return same
        value = pack_plan(plan.epoch, wire.encode_plan(plan).SerializeToString())
        beat = Beat(tick=0, attentive_ms=plan.decided_at_ms, wall_ms=plan.committed_at_ms)
        puts = [
            Put(key=self.keys.plan, value=value),
            Put(key=self.keys.state, value=pack_state(state)),
            *self._records(chain, beat, plan.epoch, events, failovers),
        ]
        guard = (
            Compare(key=self.keys.plan, target="value", op="<", operand=b"%020d" % plan.epoch)
            if chain.has_plan
            else Compare(key=self.keys.plan, target="create", op="==", operand=0)
        )
        revision = await self._write(leadership, chain, beat, puts, len(events), (guard,))
        chain.epoch, chain.has_plan = plan.epoch, True
        read_back = KeyValue(
            key=self.keys.plan, value=value, mod_revision=revision, create_revision=0, version=0
        )
        return replace(read_plan(read_back), state=state)

    async def heartbeat(
        self,
        leadership: Leadership,
        beat: Beat,
        state: bytes | None = None,
        events: Sequence[Event] = (),
        failovers: Sequence[FailoverRecord] = (),
    ) -> None:
        """Say that the leader is alive; see `controlplane.ports.PlanStore`."""
        async with self._one_write:
            chain = await self._begin(leadership)
            puts = self._records(chain, beat, chain.epoch, events, failovers)
            if state is not None:
                puts.append(Put(key=self.keys.state, value=pack_state(state)))
            await self._write(leadership, chain, beat, puts, len(events), ())
            await self._keep_up(leadership, chain.heartbeat_revision)

    async def touch(self, leadership: Leadership) -> None:
        """Make one guarded write that says nothing: proves the term, renews the deadline."""
        await self.heartbeat(
            leadership, Beat(tick=0, attentive_ms=0, wall_ms=self._clock.wall_ms())
        )

    async def _begin(self, leadership: Leadership) -> _Chain:
        """Return this term's chain; a new or uncertain one is read from etcd."""
        if self._chain is not None and self._chain.term == leadership.term:
            return self._chain
        reads = (
            await self._kv.txn(
                (), [Get(key=k) for k in (self.keys.leader, self.keys.heartbeat, self.keys.plan)]
            )
        ).reads
        leader, heartbeat, plan = (kvs[0] if kvs else None for kvs in reads)
        if leader is None or leader.mod_revision != leadership.term:
            raise self._over(leadership)
        if heartbeat is not None:
            self._seq = max(self._seq, int(json.loads(heartbeat.value).get("seq", 0)))
        newest, _ = await self._kv.get_range(
            self.keys.events, self.keys.events + b"\xff", limit=1, descending=True
        )
        self._chain = _Chain(
            term=leadership.term,
            heartbeat_revision=heartbeat.mod_revision if heartbeat else 0,
            epoch=unpack_plan(plan.value)[0] if plan else Epoch(0),
            has_plan=plan is not None,
            last_event=number_of(newest[0].key) if newest else 0,
        )
        return self._chain

    async def _already(self, chain: _Chain, plan: Plan) -> Committed | None:
        """Recognise a plan of this term whose commit succeeded although its answer was lost."""
        if not chain.has_plan or plan.epoch > chain.epoch:
            return None
        kv = await self._kv.get(self.keys.plan)
        stored = read_plan(kv) if kv else None
        if (
            stored is not None
            and (stored.plan.epoch, stored.plan.term) == (plan.epoch, plan.term)
            and stored.plan.routes == plan.routes
        ):
            return stored
        raise DeposedError(f"epoch {plan.epoch} would not rise above {chain.epoch}; load again")

    async def _write(
        self,
        leadership: Leadership,
        chain: _Chain,
        beat: Beat,
        ops: Sequence[Put | Delete],
        events: int,
        guards: Sequence[Compare],
    ) -> int:
        """One guarded transaction; returns its revision."""
        self._seq += 1  # never the same bytes twice: the client tells by them whose write it was
        pulse = pulse_value(leadership, self._seq, beat)
        if (size := len(pulse) + sum(len(op.value) for op in ops if isinstance(op, Put))) > (
            REQUEST_MAX
        ):
            raise RefusedError("request_size", f"{size} bytes in one tick, at most {REQUEST_MAX}")
        sent_ms = self._clock.monotonic_ms()
        try:
            result = await self._kv.txn(
                (*self._guards(chain), *guards),
                (Put(key=self.keys.heartbeat, value=pulse), *ops),
                (Get(key=self.keys.leader), Get(key=self.keys.plan)),
            )
        except BaseException:
            self._chain = None  # the next write reads where the chain stands
            raise
        if not result.succeeded:
            self._chain = None
            raise self._why(leadership, *result.reads)
        chain.heartbeat_revision = result.revision
        chain.last_event += min(events, EVENTS_PER_WRITE)
        self.on_write(leadership.term, sent_ms)
        return result.revision

    async def _keep_up(self, leadership: Leadership, revision: int) -> None:
        """Every UPKEEP_MS: drop etcd's history older than that, and the oldest failovers."""
        now_ms = self._clock.monotonic_ms()
        since_ms, old_revision = self._kept_up or (now_ms, revision)
        self._kept_up = self._kept_up or (now_ms, revision)
        if now_ms - since_ms < UPKEEP_MS:
            return
        self._kept_up = (now_ms, revision)
        try:
            async with asyncio.timeout(UPKEEP_PATIENCE_MS / 1000):
                await self._kv.compact(old_revision)
                kvs, _ = await self._kv.get_prefix(self.keys.failovers)
                kvs = sorted(kvs, key=lambda kv: kv.create_revision)
                surplus = kvs[: max(0, len(kvs) - FAILOVERS_KEPT)][:FAILOVERS_PER_WRITE]
                if surplus:
                    await self._kv.txn(
                        (
                            Compare(
                                key=self.keys.leader, target="mod", op="==",
                                operand=leadership.term,
                            ),
                        ),
                        [Delete(key=kv.key) for kv in surplus],
                    )  # fmt: skip
        except (TimeoutError, WeirError) as error:
            log.info("upkeep_put_off", error=str(error))

    def _guards(self, chain: _Chain) -> tuple[Compare, ...]:
        """Conditions of every leader write: the term, and the link of the chain."""
        return (
            Compare(key=self.keys.leader, target="mod", op="==", operand=chain.term),
            Compare(
                key=self.keys.heartbeat, target="mod", op="==", operand=chain.heartbeat_revision
            ),
        )

    def _why(
        self, leadership: Leadership, leader: Sequence[KeyValue], _plan: Sequence[KeyValue]
    ) -> Exception:
        if not leader or leader[0].mod_revision != leadership.term:
            return self._over(leadership)
        return AmbiguousError(f"term {leadership.term}: an earlier write arrived late; load again")

    def _records(
        self,
        chain: _Chain,
        beat: Beat,
        epoch: Epoch,
        events: Sequence[Event],
        failovers: Sequence[FailoverRecord],
    ) -> list[Put | Delete]:
        return [
            *event_ops(
                self.keys, events, last=chain.last_event, beat=beat, epoch=epoch, term=chain.term
            ),
            *failover_puts(self.keys, failovers, beat=beat, budget_ms=self._budget_ms),
        ]

    def _over(self, leadership: Leadership) -> DeposedError:
        self.on_deposed(leadership.term)
        return DeposedError(f"term {leadership.term} is over; nothing was written")


def _readable(value: bytes, revision: int) -> Committed | None:
    """Decode a followed plan; a broken one is logged and the last good one stays in force."""
    try:
        return read_plan(
            KeyValue(key=b"", value=value, mod_revision=revision, create_revision=0, version=0)
        )
    except InvalidInputError as error:
        log.error("plan_in_etcd_refused", revision=revision, error=str(error))
        return None
