"""Votes: what each vantage says of each region.

Theory. A vantage is a region, not an agent: agents in one place fail together. Each holds one
`Link` to every other region (probes of its ingress) and one to itself (its own reports). A vote is

    UP       last success younger than 3 intervals + 0.5 s
    DOWN     at least 3 failures since the last success, and not UP
    ABSTAIN  neither
    VOID     the vantage is silent, locally unwell, or blames everyone while others disagree

Surprise. A run of failures is weighed against the link's usual loss, which is learned from samples
*before* the run: 10 failures on a clean link are damning, on a link that loses 80 % they are
weather. The surprise of a region is the sum over its links of failures x -ln(loss), in nats; it
starts at nothing with every success.

Attentive ages. An age may not grow faster than attentive time: after a pause of the leader every
age looks old, and only its own clock is to blame.

Failure modes. One vantage that lies can suspect nobody alone while another says UP. A link that
never had a success counts failures only once the target has been seen, or after the warm-up grace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from controlplane.decision.state import Link, State
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.ids import RegionName
from controlplane.model.topology import Policy

LOSS_MEMORY: Final = 1.0 / 4.0
"""Weight of one sample in a link's usual loss: short, because losses come in bursts."""
UNKNOWN: Final = Link()
NEVER_MS: Final = 1 << 40
"""Age of a sign of life that there never was."""
WEATHER_NATS: Final = -math.log(0.8)
"""What a failure means on a link in the middle of a burst."""
LOSS_LEAST: Final = 0.05
LOSS_MOST: Final = 0.95
RECENT_MS: Final = 30_000
"""Time constant of the counts for the brown-out test."""
RUN_MOST: Final = 16
"""Failures of one run that count for it: an outage that is over is no brown-out."""


class Opinion(StrEnum):
    """What a vantage says of a region."""

    UP = "up"
    DOWN = "down"
    ABSTAIN = "abstain"
    VOID = "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One vantage's vote on one region, with the numbers it rests on."""

    vantage: RegionName
    opinion: Opinion
    last_success_age_ms: int | None
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """All links after this tick, who reports, and the votes by target (without voids: eligible)."""

    links: Mapping[str, Link]
    silent: frozenset[RegionName]
    void: frozenset[RegionName]
    unwell: frozenset[RegionName]
    opinions: Mapping[RegionName, Mapping[RegionName, Opinion]]
    surprise: Mapping[RegionName, float]
    life_age_ms: Mapping[RegionName, int]
    # the same two by the vantages alone, without the region's own reports
    unreached: Mapping[RegionName, tuple[float, int]]


def observe(state: State, evidence: Evidence, policy: Policy, passed_ms: int) -> Views:
    """Advance every link by one tick and take the votes.

    `passed_ms` is the attentive time since the last step.
    """
    names = state.regions
    by_name = {region.region: region for region in evidence.regions}
    links: dict[str, Link] = {}
    decay = math.exp(-passed_ms / RECENT_MS)
    memory = state.memory
    silent: set[RegionName] = set()
    unwell: set[RegionName] = set()
    for name in names:
        region = by_name.get(name)
        own = f"{name}>{name}"
        links[own] = link = _own_link(_link(memory.links, own), region, policy, passed_ms)
        if link.age_ms is None or link.age_ms > policy.silent_after_ms:
            silent.add(name)
        elif region is not None and region.loop_lag_ms > policy.local_unwell_lag_ms:
            unwell.add(name)
        views = {} if region is None else {view.target: view for view in region.ingress}
        for target in names:
            if target == name:
                continue
            key = f"{name}>{target}"
            view = views.get(target)
            held = _link(memory.links, key)
            if view is None:
                links[key] = _aged(held, passed_ms, decay)
                continue
            links[key] = _next_link(
                held,
                view.last_success_age_ms,
                view.failures_since_success,
                view.ok,
                view.failed,
                passed_ms,
                decay,
            )
    opinions, void = _opinions(names, links, frozenset(silent | unwell), policy)
    surprise: dict[RegionName, float] = {}
    life: dict[RegionName, int] = {}
    unreached: dict[RegionName, tuple[float, int]] = {}
    for target in names:
        outside = [links[f"{vantage}>{target}"] for vantage in opinions[target]]
        reports = links[f"{target}>{target}"]
        inside = [reports] if reports.age_ms is not None else []
        surprise[target], life[target] = _surprise(inside, outside, policy)
        unreached[target] = _surprise([], outside, policy)
    return Views(
        links=links,
        silent=frozenset(silent),
        void=void,
        unwell=frozenset(unwell),
        opinions=opinions,
        surprise=surprise,
        life_age_ms=life,
        unreached=unreached,
    )


def votes(state: State, region: RegionName, policy: Policy | None = None) -> tuple[Vote, ...]:
    """Return the votes on a region as the last step saw them, sorted by vantage, voids included."""
    policy = policy or Policy()
    links = {**dict.fromkeys(_keys(state.regions), UNKNOWN), **state.memory.links}
    silent: set[RegionName] = set(state.memory.unwell)
    for name in state.regions:
        age_ms = links.get(f"{name}>{name}", Link()).age_ms
        if age_ms is None or age_ms > policy.silent_after_ms:
            silent.add(name)
    opinions, _ = _opinions(state.regions, links, frozenset(silent), policy)
    out = []
    for vantage in sorted(state.regions):
        if vantage == region:
            continue
        link = links.get(f"{vantage}>{region}", Link())
        opinion = opinions.get(region, {}).get(vantage, Opinion.VOID)
        out.append(
            Vote(
                vantage=vantage,
                opinion=opinion,
                last_success_age_ms=link.age_ms,
                failures=link.failures,
            )
        )
    return tuple(out)


def _link(links: Mapping[str, Link], key: str) -> Link:
    return links.get(key, UNKNOWN)


def _keys(names: tuple[RegionName, ...]) -> list[str]:
    return [f"{vantage}>{target}" for vantage in names for target in names]


def _bounded(told: int | None, held: int | None, passed_ms: int) -> int | None:
    """Return an age as attentive time knows it: never older than before plus the time passed."""
    if told is None or held is None:
        return told
    return min(told, held + passed_ms)


def _aged(held: Link, passed_ms: int, decay: float) -> Link:
    age_ms = None if held.age_ms is None else held.age_ms + passed_ms
    return Link(
        age_ms, held.failures, held.loss, held.recent_ok * decay, held.recent_failed * decay
    )


def _own_link(held: Link, region: RegionEvidence | None, policy: Policy, passed_ms: int) -> Link:
    """Advance a region's link to itself: its reports. Failures are reports that did not come."""
    told = None if region is None else region.report_age_ms
    if told is None:
        return _aged(held, passed_ms, 1.0)
    age_ms = _bounded(told, held.age_ms, passed_ms)
    if age_ms is None:
        return held
    missed = max(0, age_ms // policy.report_interval_ms - 1)
    loss = held.loss
    if held.age_ms is not None and age_ms < held.age_ms + passed_ms:
        # a report came: learn from the reports that should have come before it
        loss = _learn(loss, 1, held.failures)
    return Link(age_ms, missed, loss, 0.0, 0.0)


def _next_link(
    held: Link,
    told_age_ms: int | None,
    failures: int,
    ok: int,
    failed: int,
    passed_ms: int,
    decay: float,
) -> Link:
    age_ms = _bounded(told_age_ms, held.age_ms, passed_ms)
    recent_ok, recent_failed = held.recent_ok * decay, held.recent_failed * decay
    if ok <= 0:
        return Link(age_ms, failures, held.loss, recent_ok, recent_failed)
    # the run is over: what failed before this success belongs to the usual loss; what failed
    # before the very first success is a target that was not there yet
    run = max(0, held.failures + failed - failures) if held.age_ms is not None else 0
    return Link(
        age_ms,
        failures,
        _learn(held.loss, ok, run),
        recent_ok + ok,
        recent_failed + min(run, RUN_MOST),
    )


def _learn(loss: float, ok: int, failed: int) -> float:
    samples = ok + failed
    weight = 1.0 - (1.0 - LOSS_MEMORY) ** samples
    return float(loss + weight * (failed / samples - loss))


def _opinions(
    names: tuple[RegionName, ...],
    links: Mapping[str, Link],
    barred: frozenset[RegionName],
    policy: Policy,
) -> tuple[dict[RegionName, dict[RegionName, Opinion]], frozenset[RegionName]]:
    up_ms = 3 * policy.report_interval_ms + policy.up_margin_ms
    raw: dict[RegionName, dict[RegionName, Opinion]] = {name: {} for name in names}
    for vantage in names:
        if vantage in barred:
            continue
        for target in names:
            if target == vantage:
                continue
            link = links[f"{vantage}>{target}"]
            if link.age_ms is not None and link.age_ms < up_ms:
                raw[target][vantage] = Opinion.UP
            elif link.failures >= policy.down_failures:
                raw[target][vantage] = Opinion.DOWN
            else:
                raw[target][vantage] = Opinion.ABSTAIN
    void = set(barred)
    for vantage in names:
        if vantage not in barred and _blames_everyone(vantage, names, raw):
            void.add(vantage)
    opinions = {
        target: {v: opinion for v, opinion in views.items() if v not in void}
        for target, views in raw.items()
    }
    return opinions, frozenset(void)


def _blames_everyone(
    vantage: RegionName,
    names: tuple[RegionName, ...],
    raw: Mapping[RegionName, Mapping[RegionName, Opinion]],
) -> bool:
    """Tell whether a vantage says DOWN of all others while another says UP of one of them."""
    others = [name for name in names if name != vantage]
    if len(others) < 2 or any(raw[t].get(vantage) is not Opinion.DOWN for t in others):  # noqa: PLR2004 - one other is not everyone
        return False
    return any(
        opinion is Opinion.UP
        for target in others
        for other, opinion in raw[target].items()
        if other != vantage
    )


def _surprise(inside: Sequence[Link], outside: Sequence[Link], policy: Policy) -> tuple[float, int]:
    """Nats of surprise in the present runs of failures, and ms since the last success of any link.

    When a region dies, everything fails at once. Failures from *before* the last sign of life
    (another link's success, a report) are weather, not death, and count against it.
    """
    ages = [link.age_ms for link in (*inside, *outside) if link.age_ms is not None]
    life_ms = min(ages) if ages else NEVER_MS
    total = 0.0
    for links, interval_ms in (
        (inside, policy.report_interval_ms),
        (outside, policy.ingress_interval_ms),
    ):
        since_life = life_ms / interval_ms + 0.5
        for link in links:
            if link.failures:
                nats = _nats(link.loss)
                earlier = max(0.0, link.failures - since_life)
                total += (link.failures - earlier) * nats
                total -= earlier * max(0.0, nats - WEATHER_NATS)
    return total, life_ms


def _nats(loss: float) -> float:
    return -math.log(min(LOSS_MOST, max(LOSS_LEAST, loss)))
