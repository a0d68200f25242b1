"""Fault episodes for properties: worlds drawn by Hypothesis, and what must hold at every tick.

Independent noise per tick never fails a region; episodes (something is wrong, for a while) do.
"""

from dataclasses import dataclass, replace

from hypothesis import strategies as st

from controlplane.decision.state import State
from controlplane.model.audit import check
from controlplane.model.intents import NO_INTENTS, Drain, Freeze, Intents, Override
from controlplane.model.plan import Breaker, Phase
from controlplane.simulation.demo import demo_topology
from controlplane.simulation.faults import Fault, Noise
from controlplane.simulation.run import Asked, Simulation
from tests.sim.worlds import called_back

REGIONS = ("east", "north", "south")
TOPOLOGY = demo_topology()
# a short policy reaches every phase within a short episode
QUICK = demo_topology(
    replace(TOPOLOGY.policy, hold_down_ms=4000, ramp_step_ms=1500, breaker_open_ms=2000)
)
END_MS = 60_000
GATE = Intents(closed_gates=("reconciliation",))
WEATHER = Noise(between_ms=20_000, burst_ms=4000, pause_between_ms=40_000)


@dataclass(frozen=True)
class Episode:
    """One world: faults, operators' wishes, weather, seed and first leader."""

    faults: tuple[Fault, ...]
    intents: tuple[tuple[int, Asked], ...]
    noise: Noise
    seed: int
    leader: str

    def simulation(self, **changes):
        """Return the world, ready to run."""
        values = {
            "noise": self.noise,
            "seed": self.seed,
            "duration_ms": END_MS,
            "leader": self.leader,
            "intents": self.intents,
        }
        return Simulation(QUICK, self.faults, **(values | changes))


def _fault(kind, region, peer, channel, start, length, rate):
    if kind in ("errors", "slow"):
        region = region if rate < 0.6 else ""
        rate = rate if kind == "errors" else 8.0
    return Fault(
        kind=kind,
        region=region,
        peer=peer,
        channel=channel,
        start_ms=start,
        end_ms=start + length,
        rate=rate,
    )


faults = st.builds(
    _fault,
    st.sampled_from(
        ["crash", "crash", "ingress", "agents", "isolate", "cut", "loss", "errors", "slow", "pause"]
    ),
    st.sampled_from(REGIONS),
    st.sampled_from(REGIONS),
    st.sampled_from(["alipay", "unionpay", "wechatpay"]),
    st.integers(5000, 25_000),
    st.integers(1000, 25_000),
    st.sampled_from([0.3, 0.5, 0.9]),
)
wishes = st.sampled_from(
    [
        NO_INTENTS,
        Intents(drains=(Drain(region="east", reason="patch"),)),
        Intents(drains=(Drain(region="north", reason="drill", immediate=True),)),
        Intents(drains=tuple(Drain(region=r, reason="all") for r in REGIONS)),
        Intents(freeze=Freeze(reason="audit")),
        Intents(
            overrides=(
                Override(channel="alipay", weights=(("east", 0), ("north", 10_000)), reason="test"),
            )
        ),
        GATE,
        called_back("east"),
        called_back("east", intents=GATE),
        called_back("east", gates=GATE.closed_gates, intents=GATE),
    ]
)
episodes = st.builds(
    Episode,
    st.lists(faults, min_size=1, max_size=3).map(tuple),
    st.lists(st.tuples(st.integers(8000, 50_000), wishes), max_size=2).map(
        lambda items: tuple(sorted(items, key=lambda item: item[0]))
    ),
    st.sampled_from([Noise(), WEATHER]),
    st.integers(0, 10_000),
    st.sampled_from(REGIONS),
)


class Invariants:
    """Checks one run tick by tick; remembers which phases and breaker states it met."""

    def __init__(self, topology=QUICK):
        self.topology = topology
        self.before = None
        self.memory = None
        self.phases = set()
        self.breakers = set()

    def tick(self, tick):
        """Check one tick."""
        plan = tick.step.plan
        newer = self.before is not None and plan.epoch != self.before.epoch
        assert check(plan, self.topology, self.before if newer else None) == ()
        self.phases |= {status.phase for status in plan.regions}
        self.breakers |= {status.state for status in plan.breakers}
        if self.before is not None:
            assert newer == (content(plan) != content(self.before))
            self._steps(plan, self.before)
            self._returns(tick, self.before)
        self.before, self.memory = plan, tick.step.state.memory

    def _returns(self, tick, before):
        """Nobody returns through a gate or before its time unless called back from this outage; a
        drained region returns by ramp."""
        policy, now_ms = self.topology.policy, tick.step.state.memory.now_ms
        for new, old in zip(tick.step.plan.regions, before.regions, strict=True):
            held = self.memory.regions[old.name]
            assert not (old.drained and not new.drained and new.phase is Phase.HEALTHY)
            if old.phase is Phase.FAILED and new.phase is Phase.RECOVERING:
                recall = tick.intents.recall(old.name, held.since_ms)
                passed = recall.gates if recall else ()
                assert set(tick.intents.closed_gates) <= set(passed)
                assert recall or now_ms - held.clear_ms >= policy.hold_down_ms

    def _steps(self, plan, before):
        """Weights move by steps unless a region or cell may carry nothing, or somebody asked."""
        if plan.panic or before.panic or plan.frozen or before.frozen:
            return
        away = {
            s.name
            for p in (plan, before)
            for s in p.regions
            if s.drained or s.phase in (Phase.FAILED, Phase.SUSPECT)
        }
        for new, old in zip(plan.routes, before.routes, strict=True):
            words = " ".join((*new.reasons, *old.reasons))
            if away or any(
                w in words for w in ("breaker_", "override", "outage", "shed", "no_reg")
            ):
                continue
            for (_, a), (_, b) in zip(new.weights, old.weights, strict=True):
                assert abs(a - b) <= self.topology.policy.step_limit_bp


def content(plan):
    """What of a plan is its content: no numbers or times of the decision itself."""
    return (plan.routes, plan.regions, plan.breakers, plan.frozen, plan.panic)


def taken_over(state):
    """A state as another leader finds it."""
    return State.from_bytes(state.to_bytes())


ALL_BREAKERS = set(Breaker)
