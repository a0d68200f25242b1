"""Counters: cumulative, never back, exact, whatever the application does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.counters import Application, Counters
from agents.probes.observation import Observation, Reason
from agents.targets import Subject
from controlplane.model.evidence import Outcomes
from controlplane.model.latency import bucket_of
from tests.agents.servers import target

CHANNEL = target(1, name="alipay")
INGRESS = target(2, name="north", subject=Subject.INGRESS)


def test_probe_outcomes_and_latency() -> None:
    """Answers and timeouts have a latency, a refused connection has none; phases all count."""
    counters = Counters(["alipay"], [CHANNEL])
    counters.observed(CHANNEL, Observation(total_ms=48.0, phases={"tcp": 1.5}), 0)
    timeout = Observation(total_ms=400.0, reason=Reason.TIMEOUT, phases={"tcp": 400.0})
    counters.observed(CHANNEL, timeout, 1)
    counters.observed(CHANNEL, Observation(total_ms=0.1, reason=Reason.REFUSED), 2)
    (cell,) = counters.cells()
    assert (cell.probe.ok, cell.probe.error) == (1, 2)
    assert cell.probe.latency == {bucket_of(48.0): 1, bucket_of(400.0): 1}
    (phase,) = counters.phases()
    assert (phase.phase, sum(phase.latency.values())) == ("tcp", 2)


def test_ingress_view() -> None:
    """Age of the last success and failures since are relative to the moment of the report."""
    counters = Counters([], [INGRESS])
    assert counters.ingress(5)[0].last_success_age_ms is None
    counters.observed(INGRESS, Observation(total_ms=1.0), 100)
    for at in (600, 1100):
        counters.observed(INGRESS, Observation(total_ms=1.0, reason=Reason.RESET), at)
    (view,) = counters.ingress(1200)
    assert (view.ok, view.failed) == (1, 2)
    assert (view.last_success_age_ms, view.failures_since_success) == (1100, 2)
    counters.observed(INGRESS, Observation(total_ms=1.0), 1300)
    assert counters.ingress(1300)[0].failures_since_success == 0
    assert counters.cells() == ()


def test_history_before_the_agent_does_not_count() -> None:
    """A restarted agent does not report a million old payments as news."""
    application = Application()
    application.update(9, Outcomes(ok=1_000_000, latency={5: 1_000_000}))
    assert application.total == Outcomes()
    application.update(9, Outcomes(ok=1_000_002, latency={5: 1_000_001, 6: 1}))
    assert application.total == Outcomes(ok=2, latency={5: 1, 6: 1})


def test_a_new_boot_of_the_application_adds() -> None:
    """The application restarts and counts from 0: ours goes on upwards."""
    application = Application()
    application.update(1, Outcomes(ok=10))
    application.update(1, Outcomes(ok=15, declined=1))
    application.update(2, Outcomes(ok=3, error=2))
    assert application.total == Outcomes(ok=8, error=2, declined=1)
    application.update(2, Outcomes(ok=1, error=4))  # a fault: it goes back within one life
    assert application.total == Outcomes(ok=8, error=4, declined=1)


counts = st.integers(0, 1000)
outcomes = st.builds(
    Outcomes,
    ok=counts,
    error=counts,
    declined=counts,
    latency=st.dictionaries(st.integers(0, 65), counts, max_size=4),
)


@given(steps=st.lists(st.tuples(st.integers(1, 3), outcomes), max_size=30))
def test_totals_never_go_back(steps: list[tuple[int, Outcomes]]) -> None:
    """Property: for every sequence of boots and counters, honest or not, nothing goes back."""
    application = Application()
    before = application.total
    for boot, counted in steps:
        application.update(boot, counted)
        after = application.total
        assert after.ok >= before.ok >= 0
        assert after.error >= before.error
        assert after.declined >= before.declined
        for bucket, count in before.latency.items():
            assert after.latency.get(bucket, 0) >= count
        before = after


class HonestApplication(RuleBasedStateMachine):
    """An application that counts honestly and restarts at times, polled at arbitrary moments."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = Application()
        self.boot, self.ok = 1, 0
        self.ours.update(self.boot, Outcomes())
        self.paid = self.unpolled = 0

    @rule(payments=st.integers(1, 50))
    def pay(self, payments: int) -> None:
        """Count some payments."""
        self.ok += payments
        self.unpolled += payments

    @rule()
    def poll(self) -> None:
        """Ask for the counters."""
        self.ours.update(self.boot, Outcomes(ok=self.ok))
        self.paid += self.unpolled
        self.unpolled = 0

    @rule()
    def restart(self) -> None:
        """Start the application anew; what nobody polled is lost."""
        self.boot, self.ok, self.unpolled = self.boot + 1, 0, 0

    @invariant()
    def exact(self) -> None:
        """Lose nothing and count nothing twice."""
        assert self.ours.total.ok == self.paid


TestHonestApplication = HonestApplication.TestCase
