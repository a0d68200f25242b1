"""What a person is spared while a graver alert says it all, and what not: the real Alertmanager on the
production file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.observability.stack import Alertmanager, alertmanager
from tests.observability.test_rules import NAMES
from tests.support.dev_run import eventually

DECISIONS = {
    "FailoverStuck", "BudgetExceeded", "EpochDivergence", "LeaderFlapping", "BreakerOpen",
    "FrozenTooLong", "CapacityInsufficientForFailover", "OverrideExpiring", "DrillOverdue", "PanicMode",
}  # fmt: skip
"""What follows from decisions: without a leader there are none."""
OF_A_REGION = {
    "ReportsStale", "AgentsMissing", "ReplicaDown", "QueueLag", "ClockSkew", "BreakerOpen",
}  # fmt: skip
"""What a region that has failed takes with it."""
NEXT_LOSS = {"CapacityInsufficientForFailover"}
CASES = {
    "NoLeader": (DECISIONS, DECISIONS),
    "RegionFailed": (OF_A_REGION | NEXT_LOSS, NEXT_LOSS),
    "AllRegionsOpen": ({"SloBurnFast", "SloBurnMedium", "SloBurnSlow", "BreakerOpen"},) * 2,
    "SloBurnFast": ({"SloBurnMedium", "SloBurnSlow"},) * 2,
    "SloBurnMedium": ({"SloBurnSlow"},) * 2,
    "Watchdog": (set(), set()),
}  # fmt: skip
"""The alert that fires -> what it silences in its own region, and in another one of its cluster."""


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alertmanager]:
    """Run Alertmanager."""
    with alertmanager(tmp_path_factory.mktemp("inhibition")) as found:
        yield found


@pytest.mark.parametrize("source", CASES)
def test_an_alert_silences_its_consequences_and_nothing_else(
    manager: Alertmanager, source: str
) -> None:
    """Every other alert fires too, in the same region and in another one, and in another cluster: those
    that follow from the first are inhibited where they follow from it; all others stay loud."""
    own = {"weir_cluster": f"{source}-cluster", "channel": "alipay", "region": "east"}
    other, far = own | {"region": "north"}, own | {"weir_cluster": f"{source}-elsewhere"}
    silent_here, silent_there = CASES[source]
    harmless = set(NAMES) - CASES.keys()  # they silence nobody
    fired = ((own, harmless | silent_here), (other, harmless | silent_there), (far, harmless))
    told = [{**labels, "alertname": name} for labels, names in fired for name in names]
    eventually(
        lambda: manager.fire([*told, {**own, "alertname": source}]), "Alertmanager takes alerts"
    )

    def quiet(labels: dict[str, str]) -> set[str]:
        return {name for name, silenced in manager.silenced(**labels).items() if silenced}

    eventually(lambda: quiet(own) >= silent_here, "what follows is silent")
    assert quiet(own) == silent_here
    assert quiet(other) == silent_there
    assert quiet(far) == set()
    assert manager.silenced(**far).keys() == harmless


def test_no_cause_silences_another(manager: Alertmanager) -> None:
    """All of them at once: a region that has failed, a leader that is missing and a provider that is
    down stay loud, whatever else is wrong; only budgets burn in silence."""
    labels = {"weir_cluster": "everything-wrong", "channel": "alipay", "region": "east"}
    names = [*sorted(CASES.keys() - {"AllRegionsOpen"}), "AllRegionsOpen"]
    told = [{**labels, "alertname": name} for name in names]
    eventually(lambda: manager.fire(told), "Alertmanager takes alerts")
    burning = {"SloBurnFast", "SloBurnMedium"}

    def quiet() -> set[str]:
        return {name for name, silenced in manager.silenced(**labels).items() if silenced}

    # the last one is the cause of this: then all have been looked at
    eventually(lambda: quiet() >= burning, "what follows is silent")
    assert quiet() == burning
