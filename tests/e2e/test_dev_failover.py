"""The main job on real processes: a region dies, payments go on.

One `weir dev` for the module, another one for a test that is run again; every test puts the topology
back before it ends, so the order does not matter. Nothing here asserts a speed: `bench/failover.py` measures it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from controlplane.clock import SystemClock
from controlplane.dev.ledger import double_charges
from controlplane.dev.measure import ENVOY, Recorder, violations
from controlplane.dev.remote import ask
from controlplane.model.errors import InvalidInputError
from tests.support import dev_run
from tests.support.dev_run import END_S, QUICK_RETURN, DevRun, eventually, get_json, weir
from tests.support.kept import Kept, kept

CLOCK = SystemClock()
PATIENT = {
    "DATA_PLANE__CHECK_TIMEOUT_MS": "5000",
    "DATA_PLANE__CHECK_FALL": "5",
    "DATA_PLANE__EJECT_AFTER_FAILURES": "1000",
}


@contextlib.contextmanager
def topology(folder: Path) -> Iterator[DevRun]:
    """Run the local topology, whose regions come back quickly. Envoy's own checks are patient: on a
    starved machine they would take a pause of a second for the loss of every region at once."""
    policy = [word for pair in QUICK_RETURN for word in ("--policy", pair)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in PATIENT.items():
            patch.setenv(f"WEIR_{name}", value)
        run = DevRun(folder / "state", "--load", "40", *policy)
    try:
        yield run.until_ready()
    finally:
        run.stop()


@pytest.fixture(scope="module")
def devs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept[DevRun]]:
    """Keep one topology for all tests."""
    with kept(lambda: topology(tmp_path_factory.mktemp("dev"))) as found:
        yield found


@pytest.fixture
def whole(devs: Kept[DevRun], request: pytest.FixtureRequest) -> Iterator[DevRun]:
    """Give the topology with everything running, before and after the test."""
    with dev_run.whole(devs, request.node) as dev:
        yield dev


@contextlib.contextmanager
def recording(dev: DevRun) -> Iterator[Recorder]:
    """Record what replicas and Envoy say while the block runs, in a thread with a loop of its
    own: the test may wait as it likes and misses nothing."""
    recorder = Recorder(dev.topology, CLOCK)

    async def record(stop: threading.Event) -> None:
        async with recorder.recording():
            while not stop.is_set():
                await CLOCK.sleep_ms(20)

    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        recorded = pool.submit(lambda: asyncio.run(record(stop)))
        try:
            eventually(lambda: all(map(recorder.latest, sources(dev))), "every source seen")
            yield recorder
        finally:
            stop.set()
            recorded.result(END_S)


def sources(dev: DevRun, *, without: str = "") -> list[str]:
    """Everybody who obeys plans, except the replicas of one region."""
    replicas = [r["id"] for r in dev.topology["replicas"] if r["region"] != without]
    return [*replicas, ENVOY]


def ledgers(dev: DevRun) -> list[Path]:
    """Every region's ledger."""
    return [Path(path) for path in dev.topology["ledgers"].values()]


def ticks(dev: DevRun) -> list[dict[str, Any]]:
    """What it said every second, oldest first."""
    return [line for line in dev.lines if line.get("type") == "tick"]


def pay(dev: DevRun, key: str) -> dict[str, Any]:
    """One payment through Envoy."""
    request = urllib.request.Request(
        f"http://{dev.topology['envoy']['listener']}/v1/channels/alipay/payments",
        data=json.dumps({"amount": 100, "currency": "CNY"}).encode(),
        headers={"Idempotency-Key": key},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_dev_is_really_ready(whole: DevRun) -> None:
    """topology.json is complete, every process in it lives, every replica serves a plan whose
    routes sum to 10,000, and a payment through Envoy is charged by a region of the plan."""
    topology = whole.topology
    assert topology["ready"] is True
    assert set(topology["versions"]) == {"etcd", "redis", "envoy"}
    assert len(topology["etcd"]) == 5
    assert {r["region"] for r in topology["replicas"]} == {"east", "north", "south"}
    pids = [pid for region in topology["regions"].values() for pid in region["pids"]]
    pids += [topology["envoy"]["pid"], *(r["pid"] for r in topology["replicas"])]
    for pid in pids:
        os.kill(pid, 0)
    for plan in whole.plans().values():
        assert plan["epoch"] >= 1
        for route in plan["routes"]:
            assert sum(weight["weight_bp"] for weight in route["weights"]) == 10_000
    answer = pay(whole, "test-ready")
    assert answer["status"] == "succeeded"
    assert answer["channel"] == "alipay"
    assert answer["region"] in topology["regions"]
    assert answer["payment_id"]


@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_region_lost_and_traffic_moves(whole: DevRun, loss: signal.Signals) -> None:
    """East killed or hung with its replica, etcd members and Redis: every surviving replica and
    Envoy give it nothing, payments flow elsewhere and none is charged twice; sums stay 10,000 and
    epochs rise; restored, it carries payments again."""
    with recording(whole) as recorder:
        lost_ms = CLOCK.monotonic_ms()
        for pid in whole.topology["regions"]["east"]["pids"]:
            os.kill(pid, loss)
        for source in sources(whole, without="east"):
            eventually(
                lambda source=source: recorder.zero_since(source, "east", lost_ms),
                f"{source} gives east nothing",
            )
        before = whole.payments()
        eventually(lambda: whole.payments()["sent"] >= before["sent"] + 40, "forty payments later")
        assert pay(whole, f"test-{loss.name}")["region"] != "east"
        after = whole.payments()
        assert after["regions"]["east"] == before["regions"]["east"]
        assert after["totals"]["succeeded"] > before["totals"]["succeeded"]

        whole.chaos("restore-region", region="east")
        eventually(
            lambda: all(latest(recorder, s).share_bp("east") for s in sources(whole)),
            "everybody gives east something again",
        )
        moved = whole.payments()["regions"]["east"]
        eventually(lambda: whole.payments()["regions"]["east"] > moved, "east is paid again")
    assert violations(recorder.seen) == []
    assert double_charges(ledgers(whole)) == {}


def latest(recorder: Recorder, source: str) -> Any:
    """Return what a source said last."""
    found = recorder.latest(source)
    assert found is not None
    return found


def test_every_replica_killed_and_payments_go_on(whole: DevRun) -> None:
    """Without any replica Envoy goes on with the last plan: no payment fails that was sent
    meanwhile. Started again, the replicas serve no older epoch."""
    with recording(whole) as recorder:
        epoch = max(plan["epoch"] for plan in whole.plans().values())
        for replica in whole.topology["replicas"]:
            os.kill(replica["pid"], signal.SIGKILL)
        eventually(lambda: not whole.plans(), "no replica answers")
        before = whole.payments()
        eventually(
            lambda: whole.payments()["sent"] >= before["sent"] + 100, "a hundred payments later"
        )
        after = whole.payments()
        for kind in ("failed", "unknown"):
            lost = after["totals"].get(kind, 0) - before["totals"].get(kind, 0)
            assert lost == 0, whole.unsuccessful()[-lost:]
        whole.chaos("restore-region")
        eventually(whole.settled, "replicas are back")
        assert min(plan["epoch"] for plan in whole.plans().values()) >= epoch
    assert violations(recorder.seen) == []


def test_leader_killed_and_another_leads(whole: DevRun) -> None:
    """kill-leader kills the replica that leads; another one leads in a higher term, weights of a
    region that only lost its replica are kept."""
    term = max(plan["term"] for plan in whole.plans().values())
    place = {replica["id"]: replica["region"] for replica in whole.topology["replicas"]}
    (before, *_) = whole.plans().values()
    killed = next(iter(whole.chaos("kill-leader")["processes"]))
    seen = len(ticks(whole))

    def next_leader() -> bool:
        statuses = [get_json(r["http"], "/api/status") for r in whole.topology["replicas"]]
        return any(
            s and s.get("leader") not in {"", None, killed} and int(s["term"]) > term
            for s in statuses
        )

    eventually(next_leader, "another replica leads in a higher term")

    def decided() -> list[dict[str, Any]]:
        return [tick for tick in ticks(whole)[seen:] if tick["leader"] not in {"", None, killed}]

    eventually(lambda: len(decided()) >= 3, "the next leader has decided for three seconds")
    region = place[killed]
    served = [
        route["channel"]
        for route in before["routes"]
        if any(w["region"] == region and w["weight_bp"] for w in route["weights"])
    ]
    assert served
    for tick in decided():
        assert all(tick["weights_bp"][channel][region] for channel in served)


def test_degraded_channel_is_seen_by_the_payer_and_healed(whole: DevRun) -> None:
    """degrade-channel makes a provider fail: in one region when told so, else everywhere, which no
    weight can avoid: the payer sees clear failures, nothing is charged for them, heal-channel ends
    it."""
    at = ("--state-dir", str(whole.state_dir))
    fault = ("chaos", "degrade-channel", "--channel", "alipay", "--errors", "1")
    done = weir("-o", "json", *fault, "--region", "east", *at)
    assert json.loads(done.stdout)["regions"] == ["east"]
    assert [fault["region"] for fault in whole.chaos("list")["faults"]] == ["east"]
    done = weir("-o", "json", *fault, *at)
    assert json.loads(done.stdout)["regions"] == ["east", "north", "south"]
    before = whole.payments()["totals"].get("failed", 0)
    eventually(lambda: whole.payments()["totals"].get("failed", 0) > before, "a payment fails")
    assert {fault["errors"] for fault in whole.chaos("list")["faults"]} == {1}
    assert whole.chaos("heal-channel", channel="alipay")["faults"] == {}
    assert whole.chaos("list")["faults"] == []
    assert double_charges(ledgers(whole)) == {}


def test_redis_primary_killed_and_another_promoted(whole: DevRun) -> None:
    """kill-redis kills the primary; Sentinel promotes a replica. After the time of `--for` the old
    one is started again by itself, as a replica and not as a second primary."""
    old = whole.topology["redis"]["primary"]
    (killed,) = whole.chaos("kill-redis")["processes"]

    def primaries() -> list[str]:
        return [a for a in whole.topology["redis"]["all"] if "role:master" in redis_role(a)]

    eventually(lambda: old not in primaries() and len(primaries()) == 1, "another is primary")
    listed = whole.chaos("list")["processes"]
    (region,) = (process["region"] for process in listed if process["name"] == killed)
    whole.chaos("kill-redis", region=region, for_s=1)  # it is dead already; its time begins now
    eventually(lambda: redis_role(old) == "role:slave", "the old one is back, as a replica")
    eventually(lambda: whole.topology["redis"]["primary"] in primaries(), "topology.json says so")
    assert old not in primaries()


def redis_role(address: str) -> str:
    """INFO replication of one Redis; empty when it does not answer."""
    host, port = address.split(":")
    client = redis.Redis(host=host, port=int(port), socket_timeout=1)
    try:
        return f"role:{client.info('replication')['role']}"
    except redis.RedisError:
        return ""
    finally:
        client.close()


def test_refused_actions_change_nothing(whole: DevRun) -> None:
    """Unknown regions, channels and figures are usage errors (exit 2) that name what is known;
    isolate-region is refused (exit 3) and says what to do instead."""
    before = whole.chaos("list")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"action": "kill-region"}, "--region"),
        ({"action": "degrade-channel", "channel": "nopay"}, "alipay"),
        ({"action": "degrade-channel", "channel": "alipay", "faults": {"errors": 1.5}}, "errors"),
        ({"action": "degrade-channel", "channel": "unionpay", "region": "south"}, "south"),
        ({"action": "explode"}, "kill-region"),
        ({"action": "kill-region", "region": "east", "for_s": -1}, "--for"),
    ]
    for request, said in refused:
        with pytest.raises(InvalidInputError, match=said):
            ask(whole.state_dir, request)
    for args, code, said in (
        (("kill-region", "--region", "west"), 2, "east, north, south"),
        (("isolate-region", "--region", "east"), 3, "laboratory"),
    ):
        done = weir("chaos", *args, "--state-dir", str(whole.state_dir))
        assert (done.returncode, said in done.stderr) == (code, True), (args, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert whole.chaos("list") == before
