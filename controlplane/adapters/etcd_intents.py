"""What operators asked for, and the record of their requests, in etcd.

Theory. An intent is a key under a lease: it expires even while nobody leads. A mutation writes its
answer under `requests/<uuid>` in the transaction of its effect, on the condition that this key does
not exist: whoever repeats the request, at whatever replica, gets the first answer and changes
nothing. The record lives for at least 24 h under a lease shared by the requests of an hour.

Intents are JSON: `reason`, `by`, `at`, `expires_at` (RFC 3339), `overridden` (safety rules it was
set past), `was_until` (the end it had before it was renewed), and by kind
- drain/<region>: `immediate`, `drill`
- override/<channel>: `weights` {region: bp}
- readiness/<region>: `lag_ms`; it asks for nothing, and is no change of what others decided on
- failback/<region>: `since_ms` of the outage it ends (attentive ms), `gates` it overrides
- freeze/all: nothing more
- gate/<name>: nothing more; written by others than us, closed by whatever stands there
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from controlplane.adapters.etcd_keys import Keys
from controlplane.clock import Clock, rfc3339
from controlplane.model.errors import InvalidInputError, RefusedError, ReusedRequestIdError
from controlplane.model.ids import FULL_BP, ChannelName, RegionName, valid_name
from controlplane.model.intents import (
    Drain,
    Failback,
    Freeze,
    Intents,
    Order,
    Override,
    Readiness,
)
from controlplane.ports import Compare, Delete, Get, KeyValue, KeyValueStore, Put

log = structlog.get_logger(__name__)

KINDS: Final = ("drain", "override", "freeze", "failback", "gate", "readiness")
REQUEST_TTL_S: Final = 25 * 3600
"""A lease shared for an hour that still leaves its youngest record 24 h."""
REQUEST_LEASE_MS: Final = 3_600_000
ANSWER_MAX: Final = 65_536
"""Bytes of a recorded answer."""
TOLD_MAX: Final = 500
"""Characters of a name or a reason that are shown of an intent; ours are no longer."""
EFFECTS_MAX: Final = 100
"""Writes of one mutation; etcd takes 128 operations a transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The answer to a mutation; `repeated` when it is the first one's, told again."""

    answer: bytes
    repeated: bool


class EtcdIntents:
    """Intents, request records and operations of one cluster."""

    def __init__(self, kv: KeyValueStore, keys: Keys, clock: Clock) -> None:
        self.keys = keys
        self._kv = kv
        self._clock = clock
        self._lease = (0, 0)  # lease id, monotonic ms until which it is shared

    async def read(self) -> Intents:
        """Linearizable read of every intent; one that makes no sense is logged and left out."""
        return (await self.standing())[0]

    async def standing(self) -> tuple[Intents, Sequence[Order]]:
        """Linearizable read of every intent, as decisions and as people know them."""
        kvs, _ = await self._kv.get_prefix(self.keys.intents)
        return parse_intents(self.keys, {kv.key: kv.value for kv in kvs}), self.orders(kvs)

    def orders(self, stored: Sequence[KeyValue]) -> Sequence[Order]:
        """Return who asked for what stands; nothing of what was merely told (readiness)."""
        found = (_order(self.keys, kv) for kv in stored)
        return tuple(order for order in found if order is not None)

    async def raw(self) -> Sequence[KeyValue]:
        """Linearizable read of every intent as stored, for etags and expiry; not of what was told
        of regions: a measurement every minute must not undo an operator's etag."""
        told = self.keys.intents + b"readiness/"
        kvs = (await self._kv.get_prefix(self.keys.intents))[0]
        return [kv for kv in kvs if not kv.key.startswith(told)]

    async def generation(self) -> int:
        """Linearizable read of the revision of the last change; 0 before the first."""
        kv = await self._kv.get(self.keys.generation)
        return kv.mod_revision if kv else 0

    def next_generation(self, seen: int, by: str) -> tuple[Compare, Put]:
        """Make the condition that nobody changed anything since `seen`, and the write that says
        that now somebody did; hand both to `apply`."""
        key = self.keys.generation
        return Compare(key=key, target="mod", op="==", operand=seen), Put(
            key=key, value=by.encode()
        )

    async def intent_put(
        self, kind: str, name: str, *, reason: str, by: str, ttl_s: int, **body: Any
    ) -> Put:
        """Make the write of an intent that expires after `ttl_s`; hand it to `apply`."""
        if kind not in KINDS or not valid_name(name):
            raise InvalidInputError("intent", f"{kind}/{name}: kinds are {', '.join(KINDS)}")
        wall_ms = self._clock.wall_ms()
        lease = await self._kv.grant_lease(ttl_s)
        value = {
            **body,
            "reason": reason,
            "by": by,
            "at": rfc3339(wall_ms),
            "expires_at": rfc3339(wall_ms + ttl_s * 1000),
        }
        return Put(key=self.keys.intent(kind, name), value=_json(value), lease=lease)

    def intent_delete(self, kind: str, name: str) -> Delete:
        """Make the deletion of an intent; hand it to `apply`."""
        return Delete(key=self.keys.intent(kind, name))

    async def drain_of(self, region: str) -> tuple[int, bool]:
        """Linearizable read of a region's drain: its revision, 0 when there is none, and whether a
        drill asked for it."""
        key = self.keys.intent("drain", region)
        kv = await self._kv.get(key)
        held = parse_intents(self.keys, {key: kv.value}).drains if kv else ()
        return (kv.mod_revision if kv else 0), any(drain.drill for drain in held)

    async def apply(
        self,
        request_id: str,
        effects: Sequence[Put | Delete],
        answer: bytes,
        *,
        fingerprint: bytes = b"",
        compares: Sequence[Compare] = (),
    ) -> Applied:
        """Do `effects` and record `answer`, once per `request_id`.

        `fingerprint` is the request's content: the same id with another content is a mistake of
        the caller (ReusedRequestIdError).
        `compares` are conditions of the caller (an etag); RefusedError("etag") when they fail.
        """
        if not valid_name(request_id.lower()):
            raise InvalidInputError("request_id", f"{request_id[:80]!r} is no UUID")
        if len(answer) > ANSWER_MAX or len(effects) > EFFECTS_MAX:
            raise InvalidInputError("request", f"{len(answer)} bytes, {len(effects)} effects")
        key = self.keys.request(request_id.lower())
        mark = hashlib.sha256(fingerprint).hexdigest().encode()
        record = Put(key=key, value=mark + b"\n" + answer, lease=await self._request_lease())
        result = await self._kv.txn(
            (Compare(key=key, target="create", op="==", operand=0), *compares),
            (record, *effects),
            (Get(key=key),),
        )
        if result.succeeded:
            return Applied(answer=answer, repeated=False)
        found = result.reads[0]
        if not found:
            raise RefusedError("etag", "it changed since you read it; read again and retry")
        first_mark, _, first_answer = found[0].value.partition(b"\n")
        if first_mark != mark:
            raise ReusedRequestIdError(request_id)
        return Applied(answer=first_answer, repeated=True)

    async def answered(self, request_id: str) -> bytes | None:
        """Return the recorded answer of a request, None when there is none."""
        kv = await self._kv.get(self.keys.request(request_id.lower()))
        return kv.value.partition(b"\n")[2] if kv else None

    async def operation_put(self, op_id: str, value: bytes, ttl_s: int) -> Put:
        """Make the write of an operation that is kept for `ttl_s`; hand it to `apply`."""
        lease = await self._kv.grant_lease(ttl_s)
        return Put(key=self.keys.operations + op_id.encode(), value=value, lease=lease)

    async def operation(self, op_id: str) -> KeyValue | None:
        """Linearizable read of one operation."""
        return await self._kv.get(self.keys.operations + op_id.encode())

    async def operations(self) -> Sequence[KeyValue]:
        """Linearizable read of every operation."""
        return (await self._kv.get_prefix(self.keys.operations))[0]

    async def _request_lease(self) -> int:
        now_ms = self._clock.monotonic_ms()
        lease, until_ms = self._lease
        if not lease or now_ms >= until_ms:
            lease = await self._kv.grant_lease(REQUEST_TTL_S)
            self._lease = (lease, now_ms + REQUEST_LEASE_MS)
        return lease


def parse_intents(keys: Keys, values: Mapping[bytes, bytes]) -> Intents:
    """Read intents from their keys and JSON values, sorted; what makes no sense is left out."""
    drains: list[Drain] = []
    overrides: list[Override] = []
    freeze: Freeze | None = None
    failback: list[Failback] = []
    gates: list[str] = []
    readiness: list[Readiness] = []
    for key in sorted(values):
        try:
            kind, _, name = key.removeprefix(keys.intents).decode().partition("/")
            if kind == "gate":  # other programs write it: a slip of the pen does not open it
                gates.append(name)
                continue
            body = json.loads(values[key])
            reason, by = str(body.get("reason", "")), str(body.get("by", ""))
            if kind == "drain":
                drains.append(
                    Drain(
                        region=RegionName(name),
                        reason=reason,
                        by=by,
                        immediate=body.get("immediate") is True,
                        drill=body.get("drill") is True,
                    )
                )
            elif kind == "override":
                overrides.append(_override(name, body["weights"], reason, by))
            elif kind == "freeze":
                freeze = Freeze(reason=reason, by=by)
            elif kind == "failback":
                failback.append(
                    Failback(
                        region=RegionName(name),
                        since_ms=int(body["since_ms"]),
                        gates=tuple(str(gate) for gate in body.get("gates", ())),
                    )
                )
            elif kind == "readiness":
                readiness.append(
                    Readiness(
                        region=RegionName(name),
                        lag_ms=int(body["lag_ms"]),
                        until_ms=_until_ms(body),
                        reason=reason,
                        by=by,
                    )
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("intent_refused", key=key.decode(errors="replace"), error=str(error))
    return Intents(
        drains=tuple(drains),
        overrides=tuple(overrides),
        freeze=freeze,
        failback=tuple(failback),
        closed_gates=tuple(gates),
        readiness=tuple(readiness),
    )


def _order(keys: Keys, kv: KeyValue) -> Order | None:
    """Read who wrote an intent, as far as it says so; None for what is no order."""
    try:
        kind, _, name = kv.key.removeprefix(keys.intents).decode().partition("/")
    except UnicodeDecodeError:
        return None
    if kind not in KINDS or kind == "readiness":
        return None
    try:
        body = json.loads(kv.value)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    rules = body.get("overridden")
    drain = "failover" if body.get("immediate") is True else "drain"
    return Order(
        key=(kind, name),
        kind={"drain": "drill" if body.get("drill") is True else drain}.get(kind, kind),
        target="" if kind == "freeze" else name,
        by=_told(body.get("by")),
        reason=_told(body.get("reason")),
        created_ms=_moment_ms(body.get("at")),
        expires_ms=_moment_ms(body.get("expires_at")),
        was_until_ms=_moment_ms(body.get("was_until")),
        overridden=tuple(map(str, rules)) if isinstance(rules, list) else (),
        revision=kv.mod_revision,
    )


def _told(text: object) -> str:
    """Return what somebody wrote of himself in a form that may travel."""
    return "".join(c if c.isprintable() else " " for c in str(text or "")[:TOLD_MAX]).strip()


def _moment_ms(text: object) -> int:
    """Read a time that is for people only; 0 when it is none."""
    try:
        return max(0, round(datetime.fromisoformat(str(text)).timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        return 0


def _until_ms(body: Mapping[str, Any]) -> int:
    return round(datetime.fromisoformat(body["expires_at"]).timestamp() * 1000)


def _override(channel: str, weights: Mapping[str, int], reason: str, by: str) -> Override:
    pairs = tuple(sorted((RegionName(name), int(bp)) for name, bp in weights.items()))
    if sum(bp for _, bp in pairs) != FULL_BP or any(bp < 0 for _, bp in pairs):
        raise ValueError(f"weights of {channel} do not sum to {FULL_BP}")
    return Override(channel=ChannelName(channel), weights=pairs, reason=reason, by=by)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
