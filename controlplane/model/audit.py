"""The plan checker: refuses a plan that breaks an invariant, by its own reading of the rules.

It shares no code with the decision that makes plans, so that one mistake cannot hide in both. The
leader checks before it commits, the store before it writes, an agent before it applies.

Rules (the names that `Violation.rule` carries)
- epoch: at least 1, and above the previous plan's.
- empty: a plan has routes, and every route has weights.
- order: routes, weights, regions and breakers are sorted and unique.
- range: a weight or shed share is an integer from 0 to 10,000.
- sum: the weights of a route are 10,000 together.
- unknown: regions and channels are configured, and a route names only regions that serve it.
- missing: every configured channel and region has its entry.
- out: a failed or drained region has weight 0 while another region could serve the channel.
- last_region: never are all regions drained.

Without a topology (an agent that has none yet) the rules that need one are left out; the regions
are then those of the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from operator import ge

from controlplane.model.ids import FULL_BP, RegionName
from controlplane.model.plan import Phase, Plan, Route
from controlplane.model.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken invariant: the rule, where in the plan, and what is wrong in plain words."""

    rule: str
    field: str
    message: str


def check(
    plan: Plan, topology: Topology | None, previous: Plan | None = None
) -> tuple[Violation, ...]:
    """Return every invariant that `plan` breaks; empty when it may be committed and applied."""
    return tuple(_violations(plan, topology, previous))


def _violations(
    plan: Plan, topology: Topology | None, previous: Plan | None
) -> Iterator[Violation]:
    yield from _epoch(plan, previous)
    if not plan.routes:
        yield Violation(rule="empty", field="routes", message="a plan without routes serves nobody")
    yield from _sorted("routes", [route.channel for route in plan.routes])
    yield from _sorted("regions", [status.name for status in plan.regions])
    yield from _sorted("breakers", [(b.region, b.channel) for b in plan.breakers])
    if plan.regions and all(status.drained for status in plan.regions):
        yield Violation(
            rule="last_region", field="regions", message="every region is drained; undrain one"
        )
    yield from _routes(plan, topology)
    if topology is not None:
        yield from _names(plan, topology)


def _epoch(plan: Plan, previous: Plan | None) -> Iterator[Violation]:
    if plan.epoch < 1:
        yield Violation(rule="epoch", field="epoch", message=f"{plan.epoch} is below 1")
    if previous is not None and plan.epoch <= previous.epoch:
        yield Violation(
            rule="epoch",
            field="epoch",
            message=f"{plan.epoch} is not above {previous.epoch}, the plan in force",
        )


def _sorted(field: str, keys: Sequence[object]) -> Iterator[Violation]:
    if any(starmap(ge, pairwise(keys))):
        yield Violation(rule="order", field=field, message="not sorted, or one entry twice")


def _routes(plan: Plan, topology: Topology | None) -> Iterator[Violation]:
    """Judge every route. Weights that are one object are judged once for all channels of the same
    regions: equal ones are not enough, since 1.0 and True equal 1 and are no weights."""
    out = {s.name for s in plan.regions if s.drained or s.phase is Phase.FAILED}
    serving = {} if topology is None else {c.name: c.regions for c in topology.channels}
    everyone = tuple(status.name for status in plan.regions)
    sound = set()
    for route in plan.routes:
        served_from = serving.get(route.channel)
        same = (id(route.weights), type(route.shed_bp), route.shed_bp, served_from)
        if same in sound:
            continue
        found = list(_weights(route))
        names = [name for name, _ in route.weights]
        if served_from is not None:
            found += [_unknown(_at(route, name)) for name in names if name not in served_from]
        elif topology is not None:
            found.append(_unknown(_at(route)))
            served_from = everyone
        else:
            served_from = tuple(name for name in everyone if name in names)
        found += _out(route, out, sorted(set(served_from) - out))
        yield from found
        if not found:
            sound.add(same)


def _at(route: Route, region: str = "") -> str:
    return f"routes[{route.channel}].{region}" if region else f"routes[{route.channel}]"


def _weights(route: Route) -> Iterator[Violation]:
    field = _at(route)
    if not route.weights:
        yield Violation(rule="empty", field=field, message="no region has a weight")
        return
    yield from _sorted(f"{field}.weights", [name for name, _ in route.weights])
    shares: Iterable[tuple[str, int]] = (*route.weights, ("shed_bp", route.shed_bp))
    whole = True
    for name, weight_bp in shares:
        integer = isinstance(weight_bp, int) and not isinstance(weight_bp, bool)
        if not integer or not 0 <= weight_bp <= FULL_BP:
            whole = False
            yield Violation(
                rule="range",
                field=f"{field}.{name}",
                message=f"{weight_bp!r} is no integer from 0 to {FULL_BP}",
            )
    if whole and (total := sum(weight_bp for _, weight_bp in route.weights)) != FULL_BP:
        yield Violation(
            rule="sum", field=field, message=f"weights sum to {total} bp instead of {FULL_BP}"
        )


def _names(plan: Plan, topology: Topology) -> Iterator[Violation]:
    serving = {channel.name: channel.regions for channel in topology.channels}
    regions = {region.name for region in topology.regions}
    for channel in sorted(serving.keys() - {route.channel for route in plan.routes}):
        yield Violation(rule="missing", field=f"routes[{channel}]", message="channel has no route")
    for name in sorted(regions - {status.name for status in plan.regions}):
        yield Violation(rule="missing", field=f"regions[{name}]", message="region has no entry")
    for status in plan.regions:
        if status.name not in regions:
            yield _unknown(f"regions[{status.name}]")
    for breaker in plan.breakers:
        if breaker.region not in serving.get(breaker.channel, ()):
            yield _unknown(f"breakers[{breaker.region}/{breaker.channel}]")


def _unknown(field: str) -> Violation:
    return Violation(rule="unknown", field=field, message="is not in the topology")


def _out(route: Route, out: set[RegionName], alive: list[RegionName]) -> Iterator[Violation]:
    for name, weight_bp in route.weights:
        if alive and weight_bp != 0 and name in out:
            yield Violation(
                rule="out",
                field=_at(route, name),
                message=f"failed or drained, yet {weight_bp} bp while {alive[0]} could serve",
            )
