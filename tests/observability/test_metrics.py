"""What /metrics says, that it stays small, and that nobody from outside can make it grow."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Gauge
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from controlplane.adapters import metric_catalogue as catalogue
from controlplane.adapters.agent_metrics import AgentMetrics
from controlplane.adapters.etcd_links import EtcdStats
from controlplane.adapters.metric_catalogue import BY_NAME, CATALOGUE, EXPOSED
from controlplane.adapters.prometheus import Meters, Metrics
from controlplane.model.evidence import Outcomes, RegionEvidence, Subscriber
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.plan import FailoverRecord
from tests.observability.samples import REGIONS, digest, evidence, plan, topology

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Key = tuple[str, tuple[tuple[str, str], ...]]


def values(meters: Meters) -> dict[Key, float]:
    """Parse what is exposed, as Prometheus would."""
    text = meters.exposition()[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def series(meters: Meters) -> set[Key]:
    """Return what is exposed without writing and parsing it: for tests that look often."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in meters.registry.collect()
        for sample in family.samples
    }


def value(meters: Meters, name: str, **labels: str) -> float:
    """One sample."""
    return values(meters)[(name, tuple(sorted(labels.items())))]


def filled(channels: int) -> Metrics:
    """Return a replica's metrics with everything set."""
    world = topology(channels)
    metrics = Metrics(world, version="0.1.0")
    metrics.set_plan(plan(world))
    metrics.set_digest(digest(world))
    metrics.set_evidence(evidence(world))
    metrics.set_subscribers([Subscriber(name="e", kind="envoy")], 7)
    metrics.follow_etcd(EtcdStats(calls=Counter(txn=5), failures=Counter(unavailable=1)))
    metrics.set_override_expiries({c.name: 1.7e9 for c in world.channels})
    metrics.set_certificate_expiry("server", 1.7e9)
    metrics.xds.streams("envoy", 1)
    metrics.set_lock_state("open")
    return metrics


def agent(channels: int) -> AgentMetrics:
    """Return an agent's metrics with everything set."""
    names = [f"channel-{i:03d}" for i in range(channels)]
    metrics = AgentMetrics(region="east", regions=REGIONS, channels=names, version="0.1.0")
    for name in names:
        metrics.probe(name, ok=True)
        metrics.probe(name, ok=False)
        for phase in catalogue.PROBE_PHASES:
            metrics.probe_phase(name, phase, 0.1)
    for region in REGIONS:
        metrics.ingress_probe(region, ok=True)
    metrics.probe_failure("timeout")
    metrics.set_clock_offset(0.1)
    metrics.set_queue_lags({"callbacks": 0.5})
    metrics.set_certificate_expiry("server", 1.7e9)
    return metrics


CONTRACT = """weir_leader weir_term weir_plan_epoch weir_route_weight_bp{channel,region}
weir_region_phase{region,phase} weir_breaker_state{region,channel,state}
weir_failovers_total{from,kind,outcome} weir_failover_duration_seconds{stage}
weir_tick_duration_seconds weir_reports_total{region,result} weir_report_age_seconds{region}
weir_agents_expected{region} weir_agents_live{region} weir_subscriber_epoch_lag{kind}
weir_xds_nacks_total{type} weir_fenced_writes_rejected_total weir_lock_grants_total{result}
weir_lock_epoch weir_lock_tokens_rejected_total weir_clock_offset_seconds{region}
weir_probe_phase_seconds{region,channel,phase} weir_queue_lag_seconds{region,queue}
weir_budget_remaining_seconds weir_frozen weir_build_info"""


@pytest.mark.parametrize("promised", CONTRACT.split())
def test_promised_names_and_labels(promised: str) -> None:
    """Every metric of the public contract exists under its name with exactly its labels."""
    name, _, labels = promised.rstrip("}").partition("{")
    spec = BY_NAME[re.sub("_(total|info)$", "", name)]
    if name != "weir_build_info":
        assert set(spec.labels) == set(filter(None, labels.split(",")))
    assert {name, f"{name}_bucket"} & EXPOSED


def test_everything_exposed_is_in_the_catalogue() -> None:
    """No series appears that the reference does not describe, and every described one appears."""
    names = {key[0] for key in values(filled(2))} | {key[0] for key in values(agent(2))}
    own = {name for name in names if not name.startswith("process_")}
    assert own == EXPOSED


def test_a_replica_and_an_agent_expose_only_their_own() -> None:
    """An agent that exported weir_leader 0 or a heartbeat age would lie to the alerts."""
    for meters, server in ((filled(1), "replica"), (agent(1), "agent")):
        allowed = {n for s in CATALOGUE if s.server in (server, "both") for n in s.exposed}
        own = {key[0] for key in values(meters) if not key[0].startswith("process_")}
        assert own == allowed


@pytest.mark.parametrize("make", [filled, agent])
def test_size_at_a_hundred_channels(make: Callable[[int], Meters]) -> None:
    """At 3 regions x 100 channels, the worst case of one replica, a scrape stays below 300 kB."""
    body, content_type = make(100).exposition()
    assert len(body) <= 300_000
    assert sum(not line.startswith(b"#") for line in body.splitlines()) < 4000
    assert content_type.startswith("text/plain")


def test_openmetrics_when_asked() -> None:
    """Prometheus asks for OpenMetrics first and gets it, with its end marker."""
    body, content_type = filled(1).exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize("make", [filled, agent])
@pytest.mark.parametrize(
    "accept", ["", "text/plain; version=0.0.4", OPENMETRICS, f"{OPENMETRICS}; escaping=allow-utf-8"]
)
def test_page_is_what_the_library_would_write(make: Callable[[int], Meters], accept: str) -> None:
    """Byte for byte, in both formats: counters, gauges, histograms, infinite values, and a label
    that needs escaping."""
    meters = make(3)
    odd = Gauge("weir_test", 'says "\\" and\nmore', ["word"], registry=meters.registry)
    for value_ in (float("inf"), float("-inf"), 1e21, 1234567.5, 0, 3):
        odd.labels(f'a "b" \\ \n {value_}').set(value_)

    def lasting(page: bytes) -> list[bytes]:
        """Return the page without what each scrape reads anew of the process."""
        return [line for line in page.split(b"\n") if not line.startswith(b"process_")]

    body, content_type = meters.exposition(accept)
    encode, wanted_type = choose_encoder(accept)
    assert content_type == wanted_type
    assert lasting(body) == lasting(encode(meters.registry))


def hostile(metrics: Metrics, rng: random.Random) -> None:
    """Send what a broken or hostile neighbour could: names nobody configured."""
    junk = f"x{rng.randrange(10**9)}"
    metrics.report(junk, junk)
    metrics.xds.nacked(junk)
    metrics.xds.pushed(junk, 10)
    metrics.xds.streams(junk, 1)
    metrics.xds.refused(junk)
    metrics.lock_grant(junk, 0.1)
    metrics.set_lock_state(junk)
    metrics.alarm(junk)
    metrics.config_reload(junk)
    metrics.set_certificate_expiry(junk, 1.0)
    metrics.set_override_expiries({junk: 1.0})
    metrics.set_drills({junk: 1.0})
    metrics.failover_closed(
        FailoverRecord(
            id=junk, region=RegionName(junk), kind=junk, cause=junk, symptom_ms=0, outcome=junk
        )
    )
    metrics.set_subscribers([Subscriber(name=junk, kind=junk)], 5)
    strange = topology(3, (RegionName(junk),))
    metrics.set_digest(digest(strange))
    metrics.set_evidence(
        [
            *evidence(strange),
            RegionEvidence(region=REGIONS[0], queue_lag_s={f"{junk}-{i}": 1.0 for i in range(50)}),
        ]
    )


def test_cardinality_is_bounded_over_a_long_run() -> None:
    """Two weeks of strangers at every door, one every five minutes: no series beyond regions x channels and the
    closed lists, and the number of series stands still after the first hour."""
    metrics, world, rng = filled(4), topology(4), random.Random(8)
    seen: set[Key] = set()
    after_an_hour = 0
    for tick in range(14 * 24 * 12):
        hostile(metrics, rng)
        metrics.set_plan(plan(world, epoch=tick))
        if tick % 12 == 0:
            seen |= series(metrics)
        if tick == 12:
            after_an_hour = len(seen)
    assert len(seen) == after_an_hour
    junk = [key for key in seen if re.search(r"x\d{3,}", str(key[1])) and "queue" not in str(key)]
    assert junk == []
    queues = {dict(labels)["queue"] for name, labels in seen if name == "weir_queue_lag_seconds"}
    assert len(queues) <= catalogue.MAX_QUEUES + 2  # the configured one before, and `other`


def test_strangers_of_an_agent_are_one_series() -> None:
    """Whatever an agent is asked to count, unknown names share one series."""
    metrics = agent(1)
    for i in range(1000):
        metrics.probe(f"x{i}", ok=True)
        metrics.probe_phase(f"x{i}", f"y{i}", 0.1)
        metrics.ingress_probe(f"x{i}", ok=False)
        metrics.report(f"x{i}")
    others = [key for key in values(metrics) if "x999" in str(key) or "y999" in str(key)]
    assert others == []
    assert value(metrics, "weir_agent_reports_total", result="other") == 1000


def test_what_leaves_the_configuration_leaves_no_series() -> None:
    """After a reload without a region its capacity, phase and counters are gone, not frozen."""
    metrics = filled(2)
    smaller = topology(2, REGIONS[:2])
    metrics.reconfigure(smaller)
    metrics.set_plan(plan(smaller))
    rendered = {
        name
        for name, labels in values(metrics)
        if ("region", "south") in labels and name != "weir_reports_total"
    }
    assert rendered == set()


def test_payments_count_once_over_all_replicas() -> None:
    """Each replica exports its own digest only, so that the sum is what agents have counted."""
    world = topology(1)
    replicas = [Metrics(world, version="0") for _ in range(2)]
    for metrics, ok in zip(replicas, (70, 30), strict=True):
        metrics.set_digest(digest(world, Outcomes(ok=ok, error=1, declined=2)))
    labels = {"region": "east", "channel": "channel-000"}
    total = sum(value(m, "weir_payments_total", outcome="ok", **labels) for m in replicas)
    assert total == 100
    assert value(replicas[0], "weir_payments_total", outcome="declined", **labels) == 2


def test_stages_of_a_failover_add_up() -> None:
    """The stages are consecutive: suspect + decide + commit + converge = total; kind and cause
    region are counted."""
    metrics = filled(1)
    metrics.failover_closed(
        FailoverRecord(
            id="f-1", region=REGIONS[0], kind="dead", cause="silent", symptom_ms=1000,
            suspected_ms=3000, decided_ms=8000, committed_ms=8020, converged_ms=8100,
            epoch=Epoch(9), outcome="completed",
        )
    )  # fmt: skip
    name = "weir_failover_duration_seconds_sum"
    stages = [value(metrics, name, stage=s) for s in catalogue.STAGES]
    assert stages == pytest.approx([2.0, 5.0, 0.02, 0.08, 7.1])
    labels: dict[str, Any] = {"from": "east", "kind": "dead", "outcome": "completed"}
    assert value(metrics, "weir_failovers_total", **labels) == 1


def test_a_reverted_failover_counts_only_the_stages_it_reached() -> None:
    """A suspicion that passed has no commit and no total."""
    metrics = filled(1)
    metrics.failover_closed(
        FailoverRecord(
            id="f-1", region=REGIONS[0], kind="dead", cause="", symptom_ms=0, suspected_ms=2000,
            outcome="reverted",
        )
    )  # fmt: skip
    name = "weir_failover_duration_seconds_count"
    assert [value(metrics, name, stage=s) for s in catalogue.STAGES] == [1, 0, 0, 0, 0]


def test_a_running_failover_names_region_kind_and_budget() -> None:
    """While it runs one series is 1, and the budget falls; afterwards none is."""
    metrics = filled(1)
    record = FailoverRecord(id="f", region=REGIONS[1], kind="dead", cause="", symptom_ms=0)
    metrics.set_failover_running(record, 12_500)
    name = "weir_failover_running"
    assert value(metrics, name, region="north", kind="dead") == 1
    assert value(metrics, "weir_budget_remaining_seconds") == 12.5
    metrics.set_failover_running(None, 30_000)
    assert sum(v for key, v in values(metrics).items() if key[0] == name) == 0


def test_a_deposed_leader_shows_no_failover() -> None:
    """Its successor runs the failover: a frozen copy would look stuck for ever."""
    metrics = filled(1)
    record = FailoverRecord(id="f", region=REGIONS[1], kind="dead", cause="", symptom_ms=0)
    metrics.set_leader(True, 5)
    metrics.set_failover_running(record, -1_000)
    metrics.set_leader(False, 6)
    assert value(metrics, "weir_failover_running", region="north", kind="dead") == 0
    assert value(metrics, "weir_budget_remaining_seconds") == 30


def test_never_seen_is_infinite_and_not_zero() -> None:
    """A heartbeat or report that was never seen must not look fresh."""
    metrics = Metrics(topology(1), version="0")
    assert value(metrics, "weir_leader_heartbeat_age_seconds") == float("inf")
    assert value(metrics, "weir_report_age_seconds", region="east") == float("inf")
    metrics.set_heartbeat_age(-1)
    assert value(metrics, "weir_leader_heartbeat_age_seconds") == float("inf")


def test_agents_of_a_silent_region_are_missing() -> None:
    """A region that died whole with its replica leaves a last digest that counts its agents; they
    report no longer, and AgentsMissing must see that."""
    metrics = filled(1)
    assert value(metrics, "weir_agents_live", region="east") == 1
    metrics.set_evidence([RegionEvidence(region=REGIONS[0], report_age_ms=9000, agents_live=3)])
    assert value(metrics, "weir_agents_live", region="east") == 0


def test_what_the_ads_server_counts_is_exposed_by_type() -> None:
    """Answers, pushes and their bytes are counters from 0 on, each by type."""
    metrics = filled(1)
    assert value(metrics, "weir_xds_nacks_total", type="rds") == 0
    for size in (600, 40):
        metrics.xds.pushed("eds", size)
        metrics.xds.acked("eds")
    metrics.xds.nacked("cds")
    assert value(metrics, "weir_xds_pushes_total", type="eds") == 2
    assert value(metrics, "weir_xds_pushed_bytes_total", type="eds") == 640
    assert value(metrics, "weir_xds_acks_total", type="eds") == 2
    assert value(metrics, "weir_xds_nacks_total", type="cds") == 1
    assert value(metrics, "weir_xds_acks_total", type="cds") == 0


def test_lag_is_that_of_the_furthest_behind() -> None:
    """One Envoy behind among a thousand must show."""
    metrics = filled(1)
    crowd = [Subscriber(name=str(i), kind="envoy", applied_epoch=Epoch(9)) for i in range(1000)]
    metrics.set_subscribers(
        [*crowd, Subscriber(name="old", kind="envoy", applied_epoch=Epoch(4))], 9
    )
    assert value(metrics, "weir_subscriber_epoch_lag", kind="envoy") == 5
    assert value(metrics, "weir_subscribers", kind="envoy") == 1001


def test_series_that_alerts_watch_exist_from_the_start() -> None:
    """increase() sees no rise from nothing: the first NACK, error or failover must not be lost."""
    fresh = values(Metrics(topology(1), version="0"))
    for name in (
        "weir_xds_nacks_total", "weir_lock_grants_total", "weir_lock_tokens_rejected_total",
        "weir_fenced_writes_rejected_total", "weir_alarms_total",
        "weir_failover_duration_seconds_bucket", "weir_failovers_total",
    ):  # fmt: skip
        assert any(key[0] == name for key in fresh), name


def test_the_budget_is_a_bucket() -> None:
    """Over 30 s is counted, not interpolated."""
    assert 30 in catalogue.BUDGET_BUCKETS_S
    assert sum(bound > 30 for bound in catalogue.BUDGET_BUCKETS_S) >= 2


def test_reference_page_is_generated() -> None:
    """docs/metrics.md is what the code says."""
    root = Path(__file__).parents[2]
    namespace: dict[str, Any] = {
        "__name__": "gen",
        "__file__": str(root / "scripts/gen_metrics_doc.py"),
    }
    exec(compile((root / "scripts/gen_metrics_doc.py").read_text(), "gen", "exec"), namespace)
    assert (root / "docs/metrics.md").read_text() == namespace["page"]()
