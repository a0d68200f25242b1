"""Orders that stand: renewed with another end or reason, and told with who, why and until when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from controlplane.adapters.admin_ports import EffectView
from controlplane.adapters.admin_transitions import Change
from controlplane.adapters.wire import timestamp
from controlplane.clock import rfc3339
from controlplane.model.errors import RefusedError
from controlplane.model.intents import Order
from controlplane.v1 import admin_pb2 as pb


def renewed(
    change: Change,
    orders: Iterable[Order],
    mutation: pb.Mutation,
    roles: frozenset[str],
    *,
    default_s: int,
    wall_ms: int,
) -> tuple[Change, int]:
    """Make of a repetition that says another end or another reason a change of just these; returns
    it with how long it holds, in s.

    Without `ttl_s` the end never comes nearer. Raises RefusedError when an order that was set past
    a safety rule shall hold longer and that rule is not overridden again.
    """
    ttl_s = mutation.ttl_s or default_s
    held = next((o for o in orders if change.renewal and o.key == change.renewal[:2]), None)
    if change.renewal is None or held is None:
        return change, ttl_s
    if not mutation.ttl_s and mutation.reason in {"", held.reason}:
        return change, ttl_s
    if not mutation.ttl_s:
        ttl_s = max(default_s, -(-(held.expires_ms - wall_ms) // 1000))
    missing = sorted(set(held.overridden) - set(mutation.override_rules))
    until_ms = wall_ms + ttl_s * 1000
    if missing and until_ms > held.expires_ms:
        raise RefusedError(
            missing[0],
            f"it was set past rule {missing[0]} and would hold longer. To override it again: "
            f"--override-rule {missing[0]} (role breakglass)",
        )
    if mutation.override_rules and "breakglass" not in roles:
        raise RefusedError("breakglass", "overriding a safety rule needs the role breakglass")
    was = f" instead of {rfc3339(held.expires_ms)}" if held.expires_ms else ""
    asked = f" by {held.by}" * bool(held.by) + f" ({held.reason})" * bool(held.reason)
    kind, name, body = change.renewal
    if held.expires_ms:
        body = {**body, "was_until": rfc3339(held.expires_ms)}
    if held.overridden:
        body = {**body, "overridden": list(held.overridden)}
    note = f"already so{asked}; holds until {rfc3339(until_ms)}{was}, nothing moves"
    return replace(change, puts=((kind, name, body),), note=note, renews=held), ttl_s


def with_overridden(change: Change, view: EffectView, mutation: pb.Mutation) -> Change:
    """Note in what is written the safety rules that it is set past."""
    rules = sorted({r.rule for r in view.refusals} & set(mutation.override_rules))
    if not rules or change.renews is not None:
        return change
    puts = tuple((kind, name, {**body, "overridden": rules}) for kind, name, body in change.puts)
    return replace(change, puts=puts)


def with_gates(view: EffectView, orders: Sequence[Order]) -> EffectView:
    """Say in a refusal by gates who closed each, since when and why: who can open it."""
    closed = [_closed(order) for order in orders if order.kind == "gate"]
    if not closed:
        return view
    refusals = tuple(
        replace(r, message=f"closed: {'; '.join(closed)}") if r.rule == "gate" else r
        for r in view.refusals
    )
    return replace(view, refusals=refusals)


def _closed(gate: Order) -> str:
    since = f" since {rfc3339(gate.created_ms)}" * bool(gate.created_ms)
    words = f" by {gate.by}" * bool(gate.by) + since + f": {gate.reason}" * bool(gate.reason)
    return gate.target + (words or " (its key does not say by whom)")


def encode_order(order: Order) -> pb.Order:
    """Tell an order."""
    message = pb.Order(
        kind=order.kind,
        target=order.target,
        by=order.by,
        reason=order.reason,
        local=order.local,
    )
    if order.created_ms:
        message.created_at.CopyFrom(timestamp(order.created_ms))
    if order.expires_ms:
        message.expires_at.CopyFrom(timestamp(order.expires_ms))
    return message
