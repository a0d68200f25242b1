"""Damping: a region that comes and goes is worse than one that is away.

Theory. BGP's: a move on suspicion costs 500 points, a failure 1000, halved every 300 s. At 2000 the
region stays out until the penalty is below 750, at most 30 min. So a region that keeps being
suspected is moved a few times and then kept away; it never flaps for ever.
"""

from __future__ import annotations

import math
from dataclasses import replace

from controlplane.decision.state import RegionMemory
from controlplane.model.ids import RegionName
from controlplane.model.plan import Event, Severity
from controlplane.model.topology import Policy


def penalty_now(memory: RegionMemory, policy: Policy, now_ms: int) -> float:
    """Flap penalty after its decay up to now."""
    if memory.penalty == 0.0:
        return 0.0
    passed_ms = now_ms - memory.penalty_ms
    return float(memory.penalty * 0.5 ** (passed_ms / policy.flap_half_life_ms))


def reuse_in_ms(memory: RegionMemory, policy: Policy, now_ms: int) -> int:
    """Ms until damping lets a region return if nothing else happens; 0 when it does already."""
    if not damped(memory, policy, now_ms) or memory.damped_ms is None:
        return 0
    halvings = math.log2(penalty_now(memory, policy, now_ms) / policy.flap_reuse)
    longest = memory.damped_ms + policy.flap_max_ms - now_ms
    return min(longest, math.ceil(halvings * policy.flap_half_life_ms))


def damped(memory: RegionMemory, policy: Policy, now_ms: int) -> bool:
    """Tell whether flap damping keeps the region from returning."""
    if memory.damped_ms is None or now_ms - memory.damped_ms >= policy.flap_max_ms:
        return False
    return penalty_now(memory, policy, now_ms) >= policy.flap_reuse


def punished(
    memory: RegionMemory,
    points: int,
    name: RegionName,
    policy: Policy,
    now_ms: int,
    events: list[Event],
) -> RegionMemory:
    """Add `points` to the penalty; at `flap_suppress` the region is kept out from now on."""
    penalty = penalty_now(memory, policy, now_ms) + points
    damped_ms = memory.damped_ms
    if penalty >= policy.flap_suppress and damped_ms is None:
        damped_ms = now_ms
        text = (
            f"{name} flaps: penalty {penalty:.0f} reached {policy.flap_suppress}; "
            f"it stays out until below {policy.flap_reuse}"
        )
        events.append(
            Event(kind="region_damped", message=text, region=name, severity=Severity.WARNING)
        )
    return replace(memory, penalty=penalty, penalty_ms=now_ms, damped_ms=damped_ms)
