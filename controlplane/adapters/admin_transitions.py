"""Changes as functions of the intents that hold now: what to write so that the asked-for holds.

Pure, one function a command. Asking for what already holds gives a change without writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from controlplane.model.errors import RefusedError
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.intents import (
    Drain,
    Failback,
    Freeze,
    Intents,
    Order,
    Override,
    Readiness,
)
from controlplane.model.plan import Phase, Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change worked out: the intents afterwards and the writes that bring them about."""

    kind: str
    target: str
    after: Intents
    puts: tuple[tuple[str, str, dict[str, Any]], ...] = ()
    deletes: tuple[tuple[str, str], ...] = ()
    hold_s: int = 0
    informs: bool = False
    """Tells something and moves nothing: no rule is asked, and it is done at once."""
    note: str = "already so; nothing changed"
    """What is told when there is nothing to write, or only to renew."""
    renewal: tuple[str, str, dict[str, Any]] | None = None
    """What to write when it is so already and only its end or its reason shall be another."""
    renews: Order | None = None
    """The order that it only renews: nothing moves."""


def drain(now: Intents, region: RegionName, kind: str, *, hold_s: int = 0) -> Change:
    """Take a region out: gradually (drain), at once (failover), or as an exercise (drill)."""
    held = next((d for d in now.drains if d.region == region), None)
    immediate, drill = kind != "drain", kind == "drill"
    if drill and held is not None and not held.drill:
        raise RefusedError(
            "drill",
            f"{region} is out already ({held.reason or 'drained'}): the drill would end that",
        )
    if drill and now.freeze is not None:
        raise RefusedError(
            "drill",
            f"automatic change is frozen ({now.freeze.reason}): the region could not return by "
            "itself; unfreeze first",
        )
    # a drill brings its region back: whoever wants it out wants more than that
    if held is not None and held.immediate >= immediate and not drill and not held.drill:
        body = {"immediate": held.immediate, "drill": False, "hold_s": 0}
        return Change(kind=kind, target=region, after=now, renewal=("drain", region, body))
    drain = Drain(region=region, reason="", immediate=immediate, drill=drill)
    others = tuple(d for d in now.drains if d.region != region)
    after = replace(
        now,
        drains=tuple(sorted((*others, drain), key=lambda d: d.region)),
        failback=tuple(back for back in now.failback if back.region != region),
    )
    return Change(
        kind=kind,
        target=region,
        after=after,
        puts=(("drain", region, {"immediate": immediate, "drill": drill, "hold_s": hold_s}),),
        deletes=(("failback", region),) if after.failback != now.failback else (),
        hold_s=hold_s,
    )


def undrain(now: Intents, region: RegionName) -> Change:
    """End a drain, a failover or a drill."""
    if all(d.region != region for d in now.drains):
        return Change(kind="undrain", target=region, after=now)
    after = replace(now, drains=tuple(d for d in now.drains if d.region != region))
    return Change(kind="undrain", target=region, after=after, deletes=(("drain", region),))


def failback(now: Intents, region: RegionName, stands: Standing, *, past_gates: bool) -> Change:
    """Let a region return now from the outage it is in; a later one is none of its business.

    `past_gates`: the operator overrides the gates that are closed now. Raises RefusedError for a
    region that is suspect only: its weight returns by itself, or it fails first.
    """
    drained = any(d.region == region for d in now.drains)
    back = Failback(
        region=region, since_ms=stands.since_ms, gates=now.closed_gates if past_gates else ()
    )
    if not drained and stands.phase is Phase.SUSPECT:
        raise RefusedError(
            "failback",
            f"{region} is suspect, not failed or drained. Its weight returns by itself when the "
            "suspicion is withdrawn",
        )
    if not drained and stands.phase is not Phase.FAILED:
        returns = stands.phase is Phase.RECOVERING
        note = "returns by ramp already" if returns else "is neither failed nor drained"
        return Change(
            kind="failback", target=region, after=now, note=f"{region} {note}; nothing changed"
        )
    if not drained and back in now.failback:
        return Change(kind="failback", target=region, after=now)
    others = (one for one in now.failback if one.region != region)
    after = replace(
        now,
        drains=tuple(d for d in now.drains if d.region != region),
        failback=tuple(sorted((*others, back), key=lambda one: one.region)),
    )
    return Change(
        kind="failback",
        target=region,
        after=after,
        puts=(("failback", region, {"since_ms": back.since_ms, "gates": list(back.gates)}),),
        deletes=(("drain", region),) if drained else (),
    )


def abort(now: Intents, region: RegionName, *, over: bool) -> Change:
    """Take a failback back: the region leaves again and is drained, so that nothing but an operator
    or the drain's end brings it back. One that is over is left alone."""
    if over:
        return Change(
            kind="drain",
            target=region,
            after=now,
            note=f"the failback of {region} is over; nothing changed",
        )
    return drain(now, region, "drain")


def freeze(now: Intents, reason: str) -> Change:
    """Forbid automatic change."""
    if now.freeze is not None:
        return Change(kind="freeze", target="", after=now, renewal=("freeze", "all", {}))
    after = replace(now, freeze=Freeze(reason=reason))
    return Change(kind="freeze", target="", after=after, puts=(("freeze", "all", {}),))


def unfreeze(now: Intents) -> Change:
    """Allow automatic change again."""
    if now.freeze is None:
        return Change(kind="unfreeze", target="", after=now)
    return Change(
        kind="unfreeze", target="", after=replace(now, freeze=None), deletes=(("freeze", "all"),)
    )


def override(
    now: Intents, channel: ChannelName, weights: tuple[tuple[RegionName, int], ...]
) -> Change:
    """Fix a channel's weights."""
    body = {"weights": {str(region): bp for region, bp in weights}}
    if any(o.channel == channel and o.weights == weights for o in now.overrides):
        renewal = ("override", str(channel), body)
        return Change(kind="override", target=channel, after=now, renewal=renewal)
    others = tuple(o for o in now.overrides if o.channel != channel)
    added = Override(channel=channel, weights=weights, reason="")
    after = replace(now, overrides=tuple(sorted((*others, added), key=lambda o: o.channel)))
    return Change(kind="override", target=channel, after=after, puts=(("override", channel, body),))


def clear(now: Intents, channel: ChannelName) -> Change:
    """End an override."""
    if all(o.channel != channel for o in now.overrides):
        return Change(kind="clear_override", target=channel, after=now)
    after = replace(now, overrides=tuple(o for o in now.overrides if o.channel != channel))
    return Change(
        kind="clear_override", target=channel, after=after, deletes=(("override", channel),)
    )


def readiness(now: Intents, region: RegionName, lag_ms: int | None, until_ms: int) -> Change:
    """Say how far a region lags until `until_ms` (wall ms); None takes back what was said."""
    others = tuple(told for told in now.readiness if told.region != region)
    if lag_ms is None:
        held = len(others) != len(now.readiness)
        return Change(
            kind="readiness",
            target=region,
            after=replace(now, readiness=others),
            deletes=(("readiness", region),) if held else (),
            informs=True,
        )
    told = Readiness(region=region, lag_ms=lag_ms, until_ms=until_ms)
    return Change(
        kind="readiness",
        target=region,
        after=replace(now, readiness=tuple(sorted((*others, told), key=lambda r: r.region))),
        puts=(("readiness", region, {"lag_ms": lag_ms}),),
        informs=True,
    )
