"""Safety rules: what forbids a change of an operator, with the numbers and the way around.

- min_regions: fewer regions in service than the policy's least.
- channel_served: a channel without a region in service.
- capacity: a region above 100 % of its capacity, or payments shed, that were not before.
- target_ready: a region that would get more is not fit for it: unhealthy now (a failback), its
  replication lags, too little headroom would be left, or its last drill is too long ago. The policy
  sets the bounds, a region may have its own; a bound of 0 is not asked for. Of the lag that its
  agents read and the one that was told of it the larger counts: telling a lag never makes a region
  look better than it was seen.
- gate: a failback while a gate is closed.
- override_out: an override that sends payments to a failed or drained region.

What holds already is not judged again: an override that stands from before its region failed must
not make every other button fail in the very outage that they are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.decision.planning import honoured_drains
from controlplane.decision.state import ORDERED, State
from controlplane.decision.world import compiled
from controlplane.model.evidence import Evidence, RegionEvidence
from controlplane.model.ids import FULL_BP, RegionName
from controlplane.model.intents import NO_INTENTS, Intents
from controlplane.model.load import load_bp, utilisation_bp
from controlplane.model.plan import Phase, Plan, Verdict
from controlplane.model.topology import Topology

HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A safety rule that says no."""

    rule: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the rules look at: the intents asked for and those that hold already, where the former
    lead, and what is known of the regions."""

    topology: Topology
    state: State
    evidence: Evidence
    intents: Intents
    before: Plan | None
    after: Plan
    drill_age_ms: Mapping[RegionName, int]
    held: Intents = NO_INTENTS

    @property
    def drains(self) -> set[RegionName]:
        """Regions that the change drains anew."""
        return {d.region for d in self.intents.drains} - {d.region for d in self.held.drains}

    @property
    def returns(self) -> list[RegionName]:
        """Regions that the change lets return anew."""
        return [back.region for back in self.intents.failback if back not in self.held.failback]


def refusals(case: Judged) -> list[Refusal]:
    """Return every rule that says no."""
    failed = {s.name for s in case.after.regions if s.phase is Phase.FAILED}
    return [
        *(_in_service(case, failed) if case.drains else ()),
        *overloads(case.topology, case.before, case.after),
        *_returns(case),
        *_targets(case),
        *_overrides(case, failed),
    ]


def _in_service(case: Judged, failed: set[RegionName]) -> Iterator[Refusal]:
    topology = case.topology
    # drained by the plan: what a replica alone is asked comes on top of it
    asked = {d.region for d in case.intents.drains} | {
        s.name for s in case.after.regions if s.drained
    }
    left = [r.name for r in topology.regions if r.name not in failed | asked]
    if len(left) < topology.policy.min_regions:
        yield Refusal(
            rule="min_regions",
            message=f"{len(left)} region(s) would be left in service "
            f"({', '.join(left) or 'none'}), the policy asks for {topology.policy.min_regions}",
            remedy="Bring another region back first.",
        )
    for channel in topology.channels:
        if all(name in failed | asked for name in channel.regions):
            yield Refusal(
                rule="channel_served",
                message=f"{channel.name} is served by {', '.join(channel.regions)} only, "
                "and all of them would be out",
                remedy="Leave one of them in service.",
            )


def _returns(case: Judged) -> Iterator[Refusal]:
    for name in case.returns:
        now = case.state.memory.regions.get(name)
        # a region that went by order counts as unhealthy too: the order may be taken back at once
        unfit = now is not None and now.verdict is Verdict.UNHEALTHY and now.clear_ms is None
        if now is not None and unfit and now.kind not in ORDERED:
            yield Refusal(
                rule="target_ready",
                message=f"{name} is unhealthy now: {now.cause}",
                remedy="Wait until its evidence is good.",
            )
        if case.intents.closed_gates:
            yield Refusal(
                rule="gate",
                message=f"closed: {', '.join(case.intents.closed_gates)}",
                remedy="Whoever closed it opens it: docs/operate.md, section Gates.",
            )


def _targets(case: Judged) -> Iterator[Refusal]:
    """Judge the regions that the change sends more to."""
    intents, held = case.intents, case.held
    moves = (intents.drains, intents.overrides) != (held.drains, held.overrides)
    heard = {region.region: region for region in case.evidence.regions}
    for region in case.topology.regions:
        name = region.name
        was_bp = load_bp(case.topology, case.before, name) if case.before else 0
        gains = moves and load_bp(case.topology, case.after, name) > was_bp
        if not gains and name not in case.returns:
            continue
        bounds = case.topology.ready(region)
        yield from _lag(
            name, lag_ms(bounds.queue, heard.get(name), intents, name), bounds.lag_max_ms
        )
        used_bp = utilisation_bp(case.topology, case.after, name)
        if bounds.headroom_bp and FULL_BP - used_bp < bounds.headroom_bp:
            yield Refusal(
                rule="target_ready",
                message=f"{name} would have {(FULL_BP - used_bp) / 100:g} % of headroom left, "
                f"the policy asks for {bounds.headroom_bp / 100:g} %",
                remedy="Add capacity there, or move less.",
            )
        yield from _drilled(name, case.drill_age_ms.get(name), bounds.drill_max_age_h)


def lag_ms(
    queue: str, seen: RegionEvidence | None, intents: Intents, name: RegionName
) -> float | None:
    """Return a region's replication lag in ms: the larger of what its agents read and what was
    told; None when it is not known."""
    read_s = seen.queue_lag_s.get(queue) if seen else None
    told_ms = intents.told_lag_ms(name)
    known = [ms for ms in (None if read_s is None else read_s * 1000, told_ms) if ms is not None]
    return max(known, default=None)


def _lag(name: RegionName, lag_ms: float | None, most_ms: int) -> Iterator[Refusal]:
    if not most_ms:
        return
    if lag_ms is None:
        yield Refusal(
            rule="target_ready",
            message=f"the replication lag of {name} is not known, "
            f"the policy allows {most_ms / 1000:g} s",
            remedy="See that its agents report it (agent.queues_url), or tell it: "
            f"weir readiness {name} --lag …",
        )
    elif lag_ms > most_ms:
        yield Refusal(
            rule="target_ready",
            message=f"{name} lags {lag_ms / 1000:g} s behind, "
            f"the policy allows {most_ms / 1000:g} s",
            remedy="Wait until it has caught up.",
        )


def _drilled(name: RegionName, age_ms: int | None, most_h: int) -> Iterator[Refusal]:
    if not most_h or (age_ms is not None and age_ms <= most_h * HOUR_MS):
        return
    ago = "never been drilled" if age_ms is None else f"last been drilled {age_ms // HOUR_MS} h ago"
    yield Refusal(
        rule="target_ready",
        message=f"{name} has {ago}, the policy allows {most_h} h",
        remedy=f"Drill it: weir drill {name}.",
    )


def _overrides(case: Judged, failed: set[RegionName]) -> Iterator[Refusal]:
    drained = {s.name for s in case.after.regions if s.drained}
    out = failed | drained | honoured_drains(compiled(case.topology), case.intents)
    for override in case.intents.overrides:
        if override in case.held.overrides and not case.drains:
            continue
        sent = [name for name, weight_bp in override.weights if weight_bp and name in out]
        if sent:
            yield Refusal(
                rule="override_out",
                message=f"{override.channel} would be sent to {', '.join(sent)}, "
                "which is failed or drained",
                remedy="Give it 0.",
            )


def overloads(topology: Topology, before: Plan | None, after: Plan) -> list[Refusal]:
    """Return where a plan puts more on a region than it carries, or sheds, and the one before did
    not (rule `capacity`)."""
    found = []
    for region in topology.regions:
        used = utilisation_bp(topology, after, region.name)
        was = utilisation_bp(topology, before, region.name) if before else 0
        if used > FULL_BP and used > was:
            found.append(
                Refusal(
                    rule="capacity",
                    message=f"{region.name} would be at {used / 100:g} % of "
                    f"{region.capacity_tps}/s",
                    remedy="Shed load or add capacity first.",
                )
            )
    for route in after.routes:
        old = before.route(route.channel) if before else None
        if route.shed_bp > (old.shed_bp if old else 0):
            found.append(
                Refusal(
                    rule="capacity",
                    message=f"{route.shed_bp / 100:g} % of {route.channel} would have to be shed",
                    remedy="Shed load or add capacity first.",
                )
            )
    return found
