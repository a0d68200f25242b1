"""Named scenarios: what each does and what it shows, short enough to be read as a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from controlplane.model.errors import InvalidInputError
from controlplane.simulation.faults import CALM, MEAN_5_PERCENT, Fault, Noise

START_MS: Final = 30_000
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A world and what happens in it. `leader` names the region that leads first."""

    name: str
    shows: str
    faults: tuple[Fault, ...] = ()
    noise: Noise = CALM
    duration_ms: int = 150_000
    leader: str = "south"
    with_payments: bool = True


def flapping(region: str, up_ms: int, down_ms: int, for_ms: int) -> tuple[Fault, ...]:
    """Return a region that crashes and comes back, again and again."""
    period_ms = up_ms + down_ms
    return tuple(
        Fault(kind="crash", region=region, start_ms=at, end_ms=at + down_ms)
        for at in range(START_MS, START_MS + for_ms, period_ms)
    )


def _one(kind: str, **values: object) -> tuple[Fault, ...]:
    return (Fault(kind=kind, start_ms=START_MS, end_ms=90_000, **values),)  # type: ignore[arg-type]


_ALL: Final = (
    Scenario(
        name="crash",
        shows="East dies for a minute: weight leaves in about 2 s, failed in about 7 s, ramp back",
        faults=_one("crash", region="east"),
    ),
    Scenario(
        name="leader-loss",
        shows="East dies together with the leader in it: another takes over and goes on",
        faults=_one("crash", region="east"),
        leader="east",
    ),
    Scenario(
        name="hang",
        shows="East's ingress hangs while its agents report: a black hole, failed after 10 s",
        faults=_one("ingress", region="east"),
    ),
    Scenario(
        name="gray",
        shows="30 % of East's calls to alipay fail: one breaker opens, nothing else moves",
        faults=_one("errors", region="east", channel="alipay", rate=0.3),
    ),
    Scenario(
        name="slow",
        shows="East's calls to alipay take eight times as long: the test for slow calls trips",
        faults=_one("slow", region="east", channel="alipay", rate=8.0),
    ),
    Scenario(
        name="flap",
        shows="East is up 20 s and down 20 s for an hour: one failover, then it stays out",
        faults=flapping("east", 20_000, 20_000, 3_600_000),
        duration_ms=3_900_000,
        with_payments=False,
    ),
    Scenario(
        name="quick-flap",
        shows="East is up 1.5 s and down 1.5 s for 30 s: weight leaves once, no failure",
        faults=flapping("east", 1500, 1500, 30_000),
    ),
    Scenario(
        name="asymmetric-partition",
        shows="North cannot reach East, South can: North stands alone, nothing moves",
        faults=_one("cut", region="north", peer="east"),
    ),
    Scenario(
        name="blind",
        shows="East's agents die, its ingress is well: weights are held, an alarm is raised",
        faults=_one("agents", region="east"),
    ),
    Scenario(
        name="brown-out",
        shows="80 % of the probes to East are lost for minutes: moved, then failed",
        faults=(Fault(kind="loss", region="east", rate=0.8, start_ms=START_MS, end_ms=180_000),),
        duration_ms=240_000,
    ),
    Scenario(
        name="provider-outage",
        shows="alipay fails from everywhere: said, and nothing is moved",
        faults=_one("errors", channel="alipay", rate=0.6),
    ),
    Scenario(
        name="capacity-loss",
        shows="East loses nine tenths of its capacity: its load spills, nobody drowns alone",
        faults=_one("capacity", region="east", rate=0.1),
    ),
    Scenario(
        name="cut-off",
        shows="the leader's own region is cut off: it holds still and another leads",
        faults=_one("isolate", region="south"),
    ),
    Scenario(
        name="pause",
        shows="the leader stands still for 20 s: nobody is blamed for its absence",
        faults=(Fault(kind="pause", start_ms=START_MS, end_ms=START_MS + 20_000),),
    ),
    Scenario(
        name="noisy",
        shows="noisy but healthy: 5 % mean loss in bursts of 80 %, pauses; nothing should fail",
        noise=MEAN_5_PERCENT,
        duration_ms=DAY_MS,
        with_payments=False,
    ),
)

SCENARIOS: Final[Mapping[str, Scenario]] = {scenario.name: scenario for scenario in _ALL}


def scenario(name: str) -> Scenario:
    """Return a scenario by name; InvalidInputError lists the names."""
    found = SCENARIOS.get(name)
    if found is None:
        raise InvalidInputError("scenario", f"{name!r} is unknown; use {', '.join(SCENARIOS)}")
    return found
