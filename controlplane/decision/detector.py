"""Detector: which of the six kinds of evidence speaks against a region, and how strongly.

    silent, nobody says UP, somebody fails to reach it   dead       suspect after 2 s, failed by
                                                                    timer on >= 1 DOWN
    silent, somebody says UP                             blind      weights held, said after 20 s
    reporting, every eligible vantage says DOWN          ingress    failed after 10 s
    reporting, peers' loss above 50 % (Wilson bound)     brown_out  failed after 10 s
    most channels bad only from here                     egress     failed after 10 s
    everyone silent, no UP anywhere                      the leader is cut off: no verdict at all

Rules
- Two strengths. `suspect` moves weight and is cheap to undo: it asks for 2 s without life and for
  failures that the links' usual loss does not explain. `fail` fences: it asks for DOWN votes and
  for much more surprise.
- A region that reports is not failed on the word of one vantage, unless there is only one.
- A region never seen alive is unknown until the warm-up grace is over.

Failure modes. With two regions there is one witness; then etcd's quorum, not this module, decides
which side may commit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.decision.state import Memory, RegionMemory, State
from controlplane.decision.votes import Opinion, Views
from controlplane.decision.world import World
from controlplane.model.ids import RegionName
from controlplane.model.plan import Breaker, Phase
from controlplane.model.topology import Policy

WITNESSES: Final = 2
"""Vantages that must agree against a region that reports, where there are as many."""
BROWN_OUT_SHARE: Final = 0.5
BROWN_OUT_SAMPLES: Final = 20
"""Probes a vantage must have made recently to have a say on loss."""
LATE_MS: Final = 1500
"""A report older than this is late: two were missed."""
INGRESS_FACTOR: Final = 2
"""A region that reports is alive: its ingress alone takes twice the time and the evidence."""
LATE_LONG_MS: Final = 7000
LOSSY: Final = 0.3
BLIND_MS: Final = 20_000
"""Silence of a region that is reached, from which it is called blind. Nothing waits for the word
(weights are held by the UP alone), and shorter silence is weather: bursts that take its digests."""
WILSON_Z: Final = 2.576
"""99 % two-sided."""
LONGEST_SYMPTOM_MS: Final = 60_000
"""A symptom is dated back at most this far: older silence is no part of this failover."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What speaks against one region now. `kind` is empty when nothing does."""

    kind: str = ""
    suspect: bool = False
    fail: bool = False
    blind: bool = False
    seen: bool = False
    # good evidence: to withdraw a suspicion, and (reports included) to return from a failure
    clear: bool = False
    sound: bool = False
    ups: int = 0
    downs: int = 0
    eligible: int = 0
    life_age_ms: int = 0
    cause: str = ""


def assess(
    world: World, state: State, views: Views, leader: RegionName | None, now_ms: int
) -> dict[RegionName, Assessment]:
    """Judge every region on its own; interplay between regions is the phases' business."""
    egress = _egress(world, state)
    doubt = _self_doubt(state, views, leader)
    return {
        name: _assess(
            name,
            world.topology.policy,
            state,
            views,
            egress.get(name),
            doubt or _alone_against(name, state, views, leader),
            now_ms,
        )
        for name in state.regions
    }


def _alone_against(name: RegionName, state: State, views: Views, leader: RegionName | None) -> bool:
    """Tell whether only the leader's own region accuses, because others fell silent just now too.

    Several that vanish together from one place's sight are more likely that place's trouble.
    """
    if leader is None or any(vantage != leader for vantage in views.opinions[name]):
        return False
    ages = [
        views.links[f"{other}>{other}"].age_ms
        for other in state.regions
        if other not in (leader, name)
    ]
    return any(age_ms is not None and LATE_MS < age_ms < LATE_LONG_MS for age_ms in ages)


def _self_doubt(state: State, views: Views, leader: RegionName | None) -> bool:
    """Tell whether all other regions became late together: then the leader is the likelier cause.

    A region that has been silent for long is no sign of it: it is away on its own account.
    """
    if leader is None or len(state.regions) < 3:  # noqa: PLR2004 - of two, one other is all
        return False
    links = [views.links[f"{name}>{name}"] for name in state.regions if name != leader]
    ages = [link.age_ms for link in links if link.age_ms is not None]
    if any(age_ms <= LATE_MS for age_ms in ages):
        return False
    # a link that loses much anyway is late by itself
    recent = [k for k in links if k.age_ms is not None and k.age_ms < LATE_LONG_MS]
    return sum(link.loss < LOSSY for link in recent) > 1


def leader_cut_off(views: Views, state: State, leader: RegionName | None) -> bool:
    """Tell whether the leader hears nobody: every other region silent and no UP anywhere.

    Needs three regions: of two, a silent one is simply the other.
    """
    others = [name for name in state.regions if name != leader]
    if len(state.regions) < 3 or not any(state.memory.regions[name].seen for name in others):  # noqa: PLR2004 - see docstring
        return False
    if any(name not in views.silent for name in others):
        return False
    return not any(
        opinion is Opinion.UP for name in others for opinion in views.opinions[name].values()
    )


def _assess(
    name: RegionName,
    policy: Policy,
    state: State,
    views: Views,
    egress: str | None,
    doubt: bool,
    now_ms: int,
) -> Assessment:
    opinions = views.opinions[name]
    ups = sum(opinion is Opinion.UP for opinion in opinions.values())
    downs = sum(opinion is Opinion.DOWN for opinion in opinions.values())
    own = views.links[f"{name}>{name}"]
    memory = state.memory.regions[name]
    reporting = own.age_ms is not None and own.age_ms < policy.suspect_after_ms
    seen = memory.seen or own.age_ms is not None or ups > 0
    life_ms = views.life_age_ms[name]
    kind, suspect, fail, cause = "", False, False, ""
    if not seen and now_ms < policy.warmup_ms:
        return Assessment(eligible=len(opinions), life_age_ms=0)
    witnesses = min(WITNESSES, len(state.regions) - 1)
    surprise = views.surprise[name]
    if not reporting and not ups:
        silence = report_silence(state.memory, name, own.age_ms)
        kind = "dead"
        cause = f"{silence}, no answered probe, {downs} of {len(opinions)} vantages say DOWN"
        failing = any(views.links[f"{v}>{name}"].failures for v in opinions)
        suspect = (
            failing
            and not doubt
            and life_ms >= policy.suspect_after_ms
            and surprise >= policy.suspect_evidence_nats
        )
        # any sign of life since the suspicion began starts the wait again
        quiet = life_ms >= policy.suspicion_min_ms
        fail = downs >= 1 and quiet and surprise >= policy.fail_evidence_nats
    elif reporting and downs and downs == len(opinions) and downs >= witnesses:
        kind = "ingress"
        cause = f"reports, but {downs} of {downs} vantages cannot reach it"
        unreached, life_ms = views.unreached[name]
        suspect = (
            life_ms >= INGRESS_FACTOR * policy.suspect_after_ms
            and unreached >= policy.suspect_evidence_nats
        )
        fail = unreached >= policy.fail_evidence_nats
    elif reporting and (lost := _brown_out(name, views, witnesses)) is not None:
        kind, suspect, fail = "brown_out", True, True
        cause = f"loses at least {lost:.0%} of the probes of {len(opinions)} vantages"
    elif reporting and egress is not None:
        kind, suspect, fail, cause = "egress", True, True, egress
    good = not suspect and ups >= max(1, downs)
    return Assessment(
        kind=kind if suspect else "",
        suspect=suspect,
        fail=suspect and fail,
        blind=_blind(state.memory, name, own.age_ms, ups, policy),
        seen=seen,
        clear=good,
        sound=good and reporting,
        ups=ups,
        downs=downs,
        eligible=len(opinions),
        life_age_ms=min(life_ms, LONGEST_SYMPTOM_MS),
        cause=cause if suspect else "",
    )


def suspicion_ms(policy: Policy, downs: int, others: int) -> int:
    """Time from suspect to failed: from T_max with one witness to T_min when all confirm.

    Lifeguard's rule: every independent confirmation shortens the wait, the first ones most.
    """
    confirmations, expected = max(0, downs - 1), others - 1
    if expected < 1:
        return policy.suspicion_min_ms
    share = math.log(confirmations + 1) / math.log(expected + 1)
    span = policy.suspicion_max_ms - policy.suspicion_min_ms
    return max(policy.suspicion_min_ms, round(policy.suspicion_max_ms - span * share))


def wilson_low(bad: float, total: float) -> float:
    """Lower end of the Wilson interval (99 %) of a share; 0 without samples."""
    if total <= 0:
        return 0.0
    share, z2 = bad / total, WILSON_Z**2
    centre = share + z2 / (2 * total)
    spread = WILSON_Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, (centre - spread) / (1 + z2 / total))


def _brown_out(name: RegionName, views: Views, witnesses: int) -> float | None:
    """Lower bound of the loss that enough vantages agree on, or None.

    Each vantage must itself see a loss above the bound: pooling alone would let one that probes
    ten times as often speak for all.
    """
    bad = total = 0.0
    speaking = 0
    for vantage in views.opinions[name]:
        link = views.links[f"{vantage}>{name}"]
        samples = link.recent_ok + link.recent_failed
        if samples < BROWN_OUT_SAMPLES:
            continue
        if link.recent_failed <= BROWN_OUT_SHARE * samples:
            return None
        speaking += 1
        bad, total = bad + link.recent_failed, total + samples
    low = wilson_low(bad, total)
    return low if speaking >= witnesses and low > BROWN_OUT_SHARE else None


def _blind(memory: Memory, name: RegionName, age_ms: int | None, ups: int, policy: Policy) -> bool:
    """Tell whether a region says nothing though it is reached; once so, until it reports again.

    A vantage that loses sight of it meanwhile does not make it see.
    """
    silence_ms = memory.now_ms - memory.term_ms if age_ms is None else age_ms
    if memory.regions[name].blind:
        return age_ms is None or age_ms >= policy.silent_after_ms
    return ups > 0 and silence_ms >= BLIND_MS


def report_silence(memory: Memory, name: RegionName, age_ms: int | None) -> str:
    """Say since when a region does not report; a new leader does not know of earlier reports."""
    if age_ms is not None:
        return f"no report for {age_ms / 1000:.1f} s"
    if not memory.regions[name].seen:
        # a state that could not be read was begun anew: nothing is known of the time before
        return f"never reported in the {memory.now_ms / 1000:.0f} s on record"
    began_s = (memory.now_ms - memory.term_ms) / 1000
    return f"no report since this leader's term began, {began_s:.1f} s ago"


def _egress(world: World, state: State) -> dict[RegionName, str]:
    """Regions from which most channels are bad while they are good from elsewhere."""
    breakers = state.memory.breakers
    bad = {key: b for key, b in breakers.items() if b.state is not Breaker.CLOSED}
    if not bad:
        return {}
    regions = state.memory.regions
    only_here: Counter[RegionName] = Counter()
    for breaker in bad.values():
        others = world.serving[world.channel_index[breaker.channel]]
        if any(
            f"{other}/{breaker.channel}" not in bad and _alive(regions, other)
            for other in others
            if other != breaker.region
        ):
            only_here[breaker.region] += 1
    served = world.served_by
    return {
        name: f"{count} of {served[name]} channels fail from here and work from elsewhere"
        for name, count in only_here.items()
        if served[name] >= 2 and 2 * count > served[name]  # noqa: PLR2004 - most of several
    }


def _alive(regions: Mapping[RegionName, RegionMemory], name: RegionName) -> bool:
    return name in regions and regions[name].phase in (Phase.HEALTHY, Phase.RECOVERING)
