"""The alerts are loaded, fire when they should and stay silent when they should not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from controlplane.adapters.metric_catalogue import EXPOSED
from tests.observability.promtool import (
    PROMETHEUS,
    ROOT,
    RULE_FILES,
    alerts,
    amtool,
    names_in,
    promtool,
    rules,
)

NAMES = sorted({rule["alert"] for rule in alerts()})
CASES = PROMETHEUS / "tests"

WANTED = """SloBurnFast SloBurnMedium SloBurnSlow NoLeader MultipleLeaders LeaderFlapping RegionFailed
FailoverStuck BudgetExceeded BreakerOpen AllRegionsOpen ReportsStale AgentsMissing EpochDivergence
XdsNack XdsDisconnected ClockSkew QueueLag EtcdUnreachable RedisLockErrors FencingTokenRejected
CapacityInsufficientForFailover FrozenTooLong OverrideExpiring DrillOverdue CertExpiring
ConfigReloadFailed Watchdog"""

# Each takes one protective clause away; the alert's quiet case must then become red.
MUTATIONS = {
    "RegionFailed": ("and on (weir_cluster, job, instance) weir:plan_newest:replica", ""),
    "NoLeader": ("min by (weir_cluster) (weir_leader_heartbeat", "max by (weir_cluster) (weir_leader_heartbeat"),
    "MultipleLeaders": ("weir:leaders:sum > 1\n        for: 30s", "weir:leaders:sum > 1\n        for: 0s"),
    "LeaderFlapping": ("changes(weir:term:max[15m]) > 3", "changes(weir:term:max[15m]) > 2"),
    "SloBurnFast": ("and weir:payments_error_ratio:rate5m > 14.4", "or weir:payments_error_ratio:rate5m > 99"),
    "EpochDivergence": ("(weir_plan_epoch offset 1m)", "(weir_plan_epoch)"),
    "ReportsStale": ("min by (weir_cluster, region) (weir_report_age", "max by (weir_cluster, region) (weir_report_age"),
    "XdsDisconnected": ("sum by (weir_cluster, kind) (weir_subscribers)", "min by (weir_cluster, kind) (weir_subscribers)"),
    "AllRegionsOpen": ("max by (weir_cluster, channel) (weir:breaker_closed)", "min by (weir_cluster, channel) (weir:breaker_closed)"),
    "BudgetExceeded": ('{stage="total", le="30.0"}', '{stage="total", le="15.0"}'),
    "ReplicaDown": ("up == 0 and on (job, instance) last_over_time(weir_build_info[1h])", "up == 0"),
    "CapacityInsufficientForFailover": ("weir:region_capacity_tps * on (weir_cluster, region) weir:region_in_service", "weir:region_capacity_tps * 0.5"),
}  # fmt: skip


def test_every_alert_that_was_asked_for_is_there() -> None:
    """The list of the issue, by name."""
    assert set(WANTED.split()) <= set(NAMES)


def test_rules_are_valid() -> None:
    """The real promtool takes rules and the example configuration, without a duplicate."""
    done = promtool("check", "rules", *RULE_FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "duplicate" not in done.stdout + done.stderr
    done = promtool("check", "config", PROMETHEUS / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_asks_for_metrics_that_exist() -> None:
    """A renamed metric makes an alert silent for ever; here it makes a test red."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = EXPOSED | recorded | {"up"}
    for rule in rules():
        unknown = names_in(rule["expr"]) - known
        assert not unknown, (rule.get("alert") or rule.get("record"), unknown)


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_tells_a_person_what_to_do(rule: dict) -> None:
    """Severity, summary, description, and a runbook page that is there."""
    assert rule["labels"]["severity"] in {"critical", "warning", "info", "none"}
    assert rule["labels"]["component"] == "weir"
    notes = rule["annotations"]
    assert notes["summary"]
    assert notes["description"]
    assert (ROOT / notes["runbook_url"]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_alert_fires_and_stays_silent(name: str) -> None:
    """The real promtool runs a case in which the alert fires, with the words a person reads, and one
    in which it does not."""
    case = yaml.safe_load((CASES / f"{name}.yaml").read_text())
    checks = [check for test in case["tests"] for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks} == {name}
    assert any(check["exp_alerts"] for check in checks)
    assert name == "Watchdog" or any(not check["exp_alerts"] for check in checks)
    done = promtool("test", "rules", CASES / f"{name}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_severity_of_an_alert_is_exercised() -> None:
    """An alert with a mild and a grave form has a case for both."""
    for rule in alerts():
        text = (CASES / f"{rule['alert']}.yaml").read_text()
        assert f"severity: {rule['labels']['severity']}" in text, rule["alert"]


@pytest.mark.parametrize("name", MUTATIONS)
def test_protective_clauses_are_needed(name: str, tmp_path: Path) -> None:
    """Without its protective clause (newest plan, minimum, wait, offset …) an alert fires when it must not:
    its quiet case sees it."""
    before, after = MUTATIONS[name]
    changed = 0
    for path in RULE_FILES:
        text = re.sub(r"\n +(?=(and|\)|or|<|weir_region_phase)\b)", " ", path.read_text())
        changed += text.count(before)
        (tmp_path / path.name).write_text(text.replace(before, after))
    assert changed >= 1
    (tmp_path / "tests").mkdir()
    shutil.copy(CASES / f"{name}.yaml", tmp_path / "tests")
    assert promtool("check", "rules", *(tmp_path / p.name for p in RULE_FILES)).returncode == 0
    assert promtool("test", "rules", tmp_path / "tests" / f"{name}.yaml").returncode != 0


def test_alertmanager_example_is_valid_and_routes() -> None:
    """The real amtool takes the example; critical goes to the pager, warning to tickets, the Watchdog to
    the dead man's switch."""
    example = PROMETHEUS / "alertmanager.yaml"
    done = amtool("check-config", example)
    assert done.returncode == 0, done.stdout + done.stderr
    for labels, receiver in (
        (("alertname=RegionFailed", "severity=critical", "component=weir"), "pager"),
        (("alertname=BreakerOpen", "severity=warning", "component=weir"), "tickets"),
        (("alertname=DrillOverdue", "severity=info", "component=weir"), "record"),
        (("alertname=Watchdog", "severity=none", "component=weir"), "deadmansswitch"),
    ):
        done = amtool("config", "routes", "test", f"--config.file={example}", *labels)
        assert done.stdout.strip() == receiver, labels


def test_one_burning_budget_makes_one_noise() -> None:
    """Each speed of burning silences every slower one of the same channel."""
    rules = yaml.safe_load((PROMETHEUS / "alertmanager.yaml").read_text())["inhibit_rules"]
    speeds = ("SloBurnFast", "SloBurnMedium", "SloBurnSlow")
    for place, source in enumerate(speeds[:-1]):
        (rule,) = (r for r in rules if r["source_matchers"] == [f'alertname = "{source}"'])
        assert re.findall(r"SloBurn\w+", str(rule["target_matchers"])) == [*speeds[place + 1 :]]
        assert "channel" in rule["equal"]


def test_every_value_named_in_the_rules_is_one_of_the_chart() -> None:
    """A comment that sends the reader to a Helm value names one that exists."""
    text = (PROMETHEUS / "weir-alerts.rules.yaml").read_text()
    values = yaml.safe_load((PROMETHEUS.parent / "helm/weir/values.yaml").read_text())
    (path,) = re.findall(r"Helm chart does so with `([\w.]+)`", text)
    for key in path.split("."):
        values = values[key]


def test_inhibition_names_alerts_that_exist() -> None:
    """A misspelt name in an inhibition silences nothing."""
    config = yaml.safe_load((PROMETHEUS / "alertmanager.yaml").read_text())
    for rule in config["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            label, _, wanted = matcher.replace("=~", "=").partition("=")
            if label.strip() == "alertname":
                assert set(wanted.strip().strip('"').split("|")) <= set(NAMES), matcher
