"""The whole way on real processes: a region dies in `weir dev`, a person is told, and sees why.

One story for the module, and another one for a test that is run again (it takes about two minutes,
most of it production intervals): Prometheus and Alertmanager run on the files of deploy/prometheus
with nothing changed but addresses. Nothing here asserts a speed; the time from the region's death
to the pager is printed.
"""

from __future__ import annotations

import contextlib
import re
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability.grafana import ANYTHING, queries, substituted
from tests.observability.stack import Delivery, Monitoring, monitoring, now_s, time_server
from tests.support.dev_run import QUICK_RETURN, DevRun, eventually, running, weir
from tests.support.kept import Kept, kept

pytestmark = pytest.mark.timeout(400)
PATIENCE_S = 120.0
LOST = "east"
LEADERLESS_S = 10.0
"""What NoLeader allows."""


@dataclass(slots=True)
class Story:
    """What was seen, in order."""

    fired: Delivery | None = None
    fired_after_s: float = 0.0
    resolved: Delivery | None = None
    empty_panels: list[tuple[str, str, str]] = field(default_factory=list)
    causes: list[dict[str, Any]] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)
    leaderless_s: float = 0.0
    at_the_pager: list[str] = field(default_factory=list)
    at_tickets: list[tuple[str, str]] = field(default_factory=list)


def give_clock(dev: DevRun, address: str) -> None:
    """Let the agent of the region measure its clock from its next start on: the local topology has
    no time server of its own."""
    file = dev.state_dir / "config" / f"{LOST}-agent-0.yaml"
    config = yaml.safe_load(file.read_text())
    config["agent"]["clock_reference"] = address
    file.write_text(yaml.safe_dump(config))


def use_locks(dev: DevRun) -> None:
    """Take a lock at whichever replica answers, so that there is something to see. Asked until it
    is given: an attempt may be too slow on a busy machine."""
    order = ("lock", "acquire", "demo", "--owner", "test", "--ttl", "2s")
    where = {"WEIR_STATE_DIR": str(dev.state_dir)}
    eventually(lambda: weir(*order, env=where).returncode == 0, "a lock is granted", PATIENCE_S)


def watched(seen: Monitoring, dev: DevRun) -> bool:
    """Whether Prometheus scrapes everybody and all is well."""
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        everybody = len(dev.topology["replicas"]) + len(dev.topology["agents"])
        return (
            seen.value("count(up == 1)") == everybody
            and (seen.value("sum(rate(weir_payments_total[20s]))") or 0) > 0
            and seen.value("sum(weir:region_failed)") == 0
        )
    return False


def closed(seen: Monitoring) -> bool:
    """Whether the failover is closed and counted."""
    return bool(seen.query(f'weir_failovers_total{{from="{LOST}", outcome="completed"}} > 0'))


def bare(expr: str) -> str:
    """Return an expression without what it shows when there is nothing to show."""
    return re.sub(r" or vector\([^)]*\)", "", expr)


def by_stage(seen: Monitoring, what: str) -> dict[str, float]:
    """Return the sum or count of the stages' histogram."""
    rows = seen.query(f"sum by (stage) (weir_failover_duration_seconds_{what})")
    return {row["metric"]["stage"]: float(row["value"][1]) for row in rows}


def look(seen: Monitoring, story: Story, killed_s: float) -> list[tuple[str, str, str]]:
    """Look again at the panels that were empty so far, from before the death until now."""
    choices = ANYTHING | {"__rate_interval": "20s"}
    story.empty_panels = [
        panel
        for panel in story.empty_panels
        if not seen.has_data(bare(substituted(panel[2], choices)), killed_s - 30, now_s())
    ]
    return story.empty_panels


def lose_and_restore(dev: DevRun, seen: Monitoring) -> Story:
    """Kill the region, look at everything, bring it back."""
    story, pager = Story(), seen.webhook
    use_locks(dev)
    killed_s = now_s()
    dev.chaos("kill-region", region=LOST)
    story.fired = eventually(
        lambda: pager.got("RegionFailed", "firing", region=LOST), "paged", PATIENCE_S
    )
    story.fired_after_s = story.fired.at_s - killed_s
    use_locks(dev)
    eventually(lambda: closed(seen), "failover closed", PATIENCE_S)
    eventually(lambda: seen.query('ALERTS{alertname="ReplicaDown", alertstate="firing"}'),
               "the region's processes are missed", PATIENCE_S)  # fmt: skip
    story.causes = seen.query("sum by (from, kind, outcome) (weir_failovers_total) > 0")
    story.stages = by_stage(seen, "sum")
    story.reached = by_stage(seen, "count")
    dev.chaos("restore-region", region=LOST)
    story.resolved = eventually(
        lambda: pager.got("RegionFailed", "resolved", region=LOST),
        "told that it is over",
        PATIENCE_S,
    )
    # the agent that came back has a time server (see `story`); its offset still travels
    story.empty_panels = list(queries())
    with contextlib.suppress(AssertionError):  # the test names those that stayed empty
        eventually(
            lambda: not look(seen, story, killed_s), "every panel shows something", PATIENCE_S
        )
    story.at_tickets = [
        (d.labels["alertname"], d.labels.get("region", ""))
        for d in pager.deliveries
        if d.receiver == "tickets" and d.status == "firing" and d.at_s < story.resolved.ended_s
    ]
    story.at_the_pager = [
        d.labels["alertname"]
        for d in pager.deliveries
        if d.receiver == "pager" and d.at_s >= killed_s
    ]
    worst = "max(max_over_time(weir:leader_heartbeat_age_seconds:min[10m]))"
    story.leaderless_s = seen.value(worst) or 0.0
    return story


@contextlib.contextmanager
def told(folder: Path) -> Iterator[Story]:
    """Let it happen once."""
    policy = [word for pair in QUICK_RETURN for word in ("--policy", pair)]
    with time_server() as clock, running(folder / "state", "--load", "40", "--tls", *policy) as dev:
        dev.until_ready()
        give_clock(dev, clock)
        with monitoring(folder, dev.topology) as seen:
            eventually(dev.settled, "everything runs", PATIENCE_S)
            eventually(lambda: watched(seen, dev), "Prometheus sees everybody", PATIENCE_S)
            story = lose_and_restore(dev, seen)
    yield story


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept[Story]]:
    """Keep one story for all tests."""
    with kept(lambda: told(tmp_path_factory.mktemp("observability"))) as found:
        yield found


@pytest.fixture
def story(stories: Kept[Story], request: pytest.FixtureRequest) -> Story:
    """Give what was seen; a test that is run again is told of another time."""
    return stories.get(request.node)


def test_the_pager_is_told(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    """A region dies; the pager receives RegionFailed by the production rules, with the words and the
    runbook that a person needs."""
    assert story.fired is not None
    assert story.fired.receiver == "pager"
    assert LOST in story.fired.annotations["summary"]
    assert story.fired.annotations["runbook_url"].endswith("RegionFailed.md")
    with capsys.disabled():
        sys.stdout.write(f"\nregion lost -> pager: {story.fired_after_s:.1f} s\n")


def test_the_pager_is_told_that_it_is_over(story: Story) -> None:
    """After the region is back, the same alert resolves at the same receiver."""
    assert story.resolved is not None
    assert story.resolved.receiver == "pager"


def test_consequences_are_no_news(story: Story) -> None:
    """Missing agents, stale reports and replicas of the lost region are inhibited; nothing else pages,
    unless the leadership really stood still for longer than its alert allows."""
    assert ("ReplicaDown", LOST) not in story.at_tickets
    assert ("ReportsStale", LOST) not in story.at_tickets
    assert ("AgentsMissing", LOST) not in story.at_tickets
    assert "NoLeader" not in story.at_the_pager or story.leaderless_s > LEADERLESS_S
    assert "MultipleLeaders" not in story.at_the_pager


def test_every_panel_shows_something_during_a_failover(story: Story) -> None:
    """Every expression of every dashboard, variables substituted, returns data; a fallback (`or
    vector(0)`) is taken away first, so that it excuses nothing. The topology runs under mutual TLS,
    or the panel of certificates would be empty."""
    assert not story.empty_panels, "\n".join(map(str, story.empty_panels))


def test_region_cause_and_stages_without_a_log(story: Story) -> None:
    """What the forensics dashboard asks for is there: which region, what cause, how long each stage
    took; the stages add up to the total. A suspicion that passed (a busy machine has some) counts the
    stages it reached and no total."""
    told = [row["metric"] for row in story.causes]
    assert {"from": LOST, "kind": "dead", "outcome": "completed"} in told
    total = story.stages["total"]
    assert total > 0
    added = sum(story.stages.values()) - total
    assert added >= 0.99 * total
    if len(set(story.reached.values())) == 1:
        assert added == pytest.approx(total, rel=0.01)
