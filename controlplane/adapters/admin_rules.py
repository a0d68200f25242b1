"""A change as it is told, and whether the safety rules let it pass."""

from __future__ import annotations

import uuid
from typing import Any

from controlplane.adapters.admin_ports import EffectView
from controlplane.adapters.admin_transitions import Change
from controlplane.adapters.wire import encode_route, timestamp
from controlplane.model.errors import RefusedError
from controlplane.model.intents import Intents
from controlplane.v1 import admin_pb2 as pb


def fingerprint_of(request: Any) -> bytes:
    """Return what tells a request from another: its content and its kind. Drain and undrain of one
    region have the same bytes."""
    name: str = request.DESCRIPTOR.full_name
    content: bytes = request.SerializeToString(deterministic=True)
    return name.encode() + b" " + content


def describe(
    change: Change,
    now: Intents,
    mutation: pb.Mutation,
    view: EffectView,
    *,
    by: str,
    etag: str,
    wall_ms: int,
    ttl_s: int,
) -> pb.Operation:
    """Tell a change: who, what, why, until when, and what it does."""
    unchanged = not change.puts and not change.deletes
    renews = change.renews is not None
    done = unchanged or change.informs or renews
    operation = pb.Operation(
        id=f"op-{uuid.uuid4()}",
        kind=change.kind,
        target=change.target,
        stage="completed" if done else "accepted",
        done=done,
        by=by,
        reason=mutation.reason,
        created_at=timestamp(wall_ms),
        etag=etag,
        validate_only=mutation.validate_only,
        hold_s=change.hold_s,
        commit_ms=-1,
        converge_ms=-1,
        message=change.note if unchanged or renews else "",
        effect=pb.Effect(
            routes=[encode_route(route) for route in view.routes],
            regions=[
                pb.RegionEffect(
                    region=name,
                    load_before_bp=before,
                    load_after_bp=after,
                    utilisation_after_bp=used,
                )
                for name, before, after, used in view.regions
            ],
            refusals=[
                pb.RuleRefusal(rule=r.rule, message=r.message, remedy=r.remedy)
                for r in view.refusals
            ],
            unchanged=unchanged or change.after == now,
        ),
    )
    if change.puts and ttl_s:
        operation.expires_at.CopyFrom(timestamp(wall_ms + ttl_s * 1000))
    return operation


def obey(
    operation: pb.Operation,
    mutation: pb.Mutation,
    roles: frozenset[str],
    *,
    absolute: frozenset[str] = frozenset(),
) -> None:
    """Refuse what a safety rule forbids, unless it is overridden by somebody who may.

    Nobody may override an `absolute` rule; whoever asks for that is refused in a dry run too.
    """
    if operation.effect.unchanged:
        return
    if mutation.override_rules and "breakglass" not in roles:
        raise RefusedError("breakglass", "overriding a safety rule needs the role breakglass")
    for refusal in operation.effect.refusals:
        tried = not mutation.validate_only or refusal.rule in mutation.override_rules
        if refusal.rule in absolute and tried:
            remedy = f" {refusal.remedy}" if refusal.remedy else ""
            raise RefusedError(
                refusal.rule, f"{refusal.message}.{remedy} Nobody can override this rule here"
            )
    standing = [r for r in operation.effect.refusals if r.rule not in mutation.override_rules]
    if standing and not mutation.validate_only:
        first = standing[0]
        remedy = f" {first.remedy}" if first.remedy else ""
        raise RefusedError(
            first.rule,
            f"{first.message}.{remedy} To override: --override-rule {first.rule}"
            " (role breakglass); the change then expires",
        )
