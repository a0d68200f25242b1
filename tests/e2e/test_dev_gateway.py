"""The demo's own parts: a gateway that charges once, ledgers that tell, a payer that is honest."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.dev.content import load_content
from controlplane.dev.desk import KEY_CHARS_MAX, Gateway, parse_payment
from controlplane.dev.gateway import fault_app, payment_app
from controlplane.dev.layout import PortTakenError, plan_layout, port_keys
from controlplane.dev.ledger import Charge, Ledger, Tally, double_charges
from controlplane.dev.payer import classify
from controlplane.dev.provider import Faults, Outcome, Provider
from controlplane.dev.settings import agent_config, replica_config, write_configs
from controlplane.model.errors import InvalidInputError

PAY = "/v1/channels/alipay/payments"
GOOD = {"amount": 100, "currency": "CNY"}


@pytest.fixture
async def east(tmp_path: Path) -> AsyncIterator[tuple[TestClient, TestClient, Path]]:
    """Run East's gateway: payments, faults, ledger."""
    path = tmp_path / "east.jsonl"
    ledger = Ledger(path)
    gateway = Gateway("east", ledger, seed=1)
    async with (
        TestClient(TestServer(payment_app(gateway))) as payments,
        TestClient(TestServer(fault_app(gateway))) as faults,
    ):
        yield payments, faults, path
    ledger.close()


async def pay(client: TestClient, key: str, body: Any = GOOD) -> tuple[int, dict[str, Any]]:
    """Send one payment; the body as JSON, or as it is when it is text."""
    text = body if isinstance(body, str) else json.dumps(body)
    headers = {"Idempotency-Key": key} if key else {}
    async with client.post(PAY, data=text, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_key_is_charged_once(east: tuple[TestClient, TestClient, Path]) -> None:
    """The same key again, at once or in flight, gives the first answer and one line in the
    ledger; with another payment it is refused."""
    payments, _, path = east
    answers = await asyncio.gather(*(pay(payments, "k") for _ in range(5)))
    answers.append(await pay(payments, "k"))
    assert {status for status, _ in answers} == {200}
    assert len({body["payment_id"] for _, body in answers}) == 1
    assert (await pay(payments, "k", {"amount": 101, "currency": "CNY"}))[0] == 422
    assert len(path.read_text().splitlines()) == 1


async def test_without_memory_the_ledger_tells(
    east: tuple[TestClient, TestClient, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter of double charges does count: a gateway that forgets its keys charges twice,
    and the ledger shows it."""
    monkeypatch.setattr(Gateway, "_remember", lambda *_: None)
    payments, _, path = east
    await pay(payments, "k")
    await pay(payments, "k")
    assert list(double_charges([path])) == ["k"]


async def test_a_restarted_gateway_remembers(tmp_path: Path) -> None:
    """A gateway that died and came back answers an old key from its ledger and charges nothing."""
    path = tmp_path / "east.jsonl"
    ids = []
    for _ in range(2):
        ledger = Ledger(path)
        gateway = Gateway("east", ledger)
        gateway.recall()
        async with TestClient(TestServer(payment_app(gateway))) as client:
            ids.append((await pay(client, "k"))[1]["payment_id"])
        ledger.close()
    assert ids[0] == ids[1]
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "body", "field"),
    [
        ("k", {"amount": 0, "currency": "CNY"}, "amount"),
        ("k", {"amount": -5, "currency": "CNY"}, "amount"),
        ("k", '{"amount": NaN, "currency": "CNY"}', "amount"),
        ("k", '{"amount": 1e400, "currency": "CNY"}', "amount"),
        ("k", {"amount": "100", "currency": "CNY"}, "amount"),
        ("k", {"amount": 1.5, "currency": "CNY"}, "amount"),
        ("k", {"amount": True, "currency": "CNY"}, "amount"),
        ("k", {"amount": 10**13, "currency": "CNY"}, "amount"),
        ("k", {"currency": "CNY"}, "amount"),
        ("k", {"amount": 1}, "currency"),
        ("k", {"amount": 1, "currency": "yuan"}, "currency"),
        ("k", [1], "body"),
        ("k", "not json", "body"),
        ("k", '{"amount": ' + "9" * 4000 + "}", "amount"),
        ("", GOOD, "Idempotency-Key"),
        ("k" * (KEY_CHARS_MAX + 1), GOOD, "Idempotency-Key"),
    ],
)
async def test_bad_payments_are_refused_and_not_charged(
    east: tuple[TestClient, TestClient, Path], key: str, body: Any, field: str
) -> None:
    """Amounts that are no amounts, missing and oversized keys, bodies that are no payments: 400,
    the field is named, nothing is charged."""
    payments, _, path = east
    status, answer = await pay(payments, key, body)
    assert (status, answer["field"]) == (400, field)
    assert path.read_text() == ""


async def test_unknown_channels_and_huge_bodies_are_refused(
    east: tuple[TestClient, TestClient, Path],
) -> None:
    """A channel that the region does not serve is 404, a body beyond the limit 413, both JSON."""
    payments, _, path = east
    for url, body, status in (
        ("/v1/channels/nopay/payments", "{}", 404),
        ("/v1/channels/nopay/probe", None, 405),
        (PAY, "x" * 10_000, 413),
        ("/nowhere", "{}", 404),
    ):
        async with payments.post(url, data=body, headers={"Idempotency-Key": "k"}) as answer:
            assert answer.status == status
            assert (await answer.json())["error"]
    assert path.read_text() == ""


async def test_faults_reach_payments_and_probes_alike(
    east: tuple[TestClient, TestClient, Path],
) -> None:
    """A degraded provider fails payments (not charged, the key may be used again) and probes; the
    outcome counts tell errors and declines apart; healed, the same key succeeds."""
    payments, faults, path = east
    async with faults.put("/faults/alipay", json={"errors": 1.0}) as answer:
        assert answer.status == 200
    status, body = await pay(payments, "k")
    assert (status, body["status"]) == (502, "failed")
    async with payments.get("/v1/channels/alipay/probe") as answer:
        assert answer.status == 502
    async with faults.put("/faults/alipay", json={"declines": 1.0}) as answer:
        assert answer.status == 200
    assert (await pay(payments, "d"))[1]["status"] == "declined"
    assert path.read_text() == ""
    async with faults.put("/faults/alipay", json={}) as answer:
        assert answer.status == 200
    assert (await pay(payments, "k"))[1]["status"] == "succeeded"
    async with payments.get("/outcomes") as answer:
        told = await answer.json()
    assert told["boot"] > 0
    counts = told["channels"]["alipay"]
    assert (counts["ok"], counts["error"], counts["declined"]) == (1, 1, 1)
    assert sum(counts["latency"].values()) == 2
    async with payments.get("/queues") as answer:
        assert (await answer.json())["callbacks"] >= 0


@pytest.mark.parametrize(
    "bad",
    [
        {"errors": 1.1},
        {"errors": -0.1},
        {"errors": float("nan")},
        {"errors": True},
        {"errors": "0.5"},
        {"latency_ms": 1e9},
        {"errors": 0.6, "declines": 0.6},
    ],
)
def test_senseless_faults_are_refused(bad: dict[str, Any]) -> None:
    """Shares outside 0 to 1, NaN, text and endless latencies never reach a provider."""
    with pytest.raises(InvalidInputError):
        Faults.parse(bad)


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_body_crashes_the_parser(body: Any) -> None:
    """Whatever JSON arrives, it is a payment or an InvalidInputError."""
    with pytest.raises(InvalidInputError):
        parse_payment("alipay", "k", body)
    with pytest.raises(InvalidInputError):
        parse_payment("alipay", "k", {"amount": body, "currency": body})


def test_provider_has_the_latency_of_the_content() -> None:
    """Median and 99th percentile of 20,000 calls are the channel's plus the region's way, within
    the width of a bucket."""
    content = load_content()
    channel, region = content.channel("alipay"), content.region("east")
    provider = Provider(channel, region, random.Random(7))
    calls = [provider.call() for _ in range(20_000)]
    assert {call.outcome for call in calls} == {Outcome.OK}
    ordered = sorted(call.latency_ms for call in calls)
    for q, expected in ((0.5, channel.p50_ms), (0.99, channel.p99_ms)):
        assert ordered[int(q * len(ordered))] == pytest.approx(
            expected + region.latency_ms, rel=0.06
        )
    provider.faults = Faults(latency_ms=float(channel.timeout_ms))
    late = provider.call()
    assert (late.outcome, late.latency_ms) == (Outcome.TIMEOUT, channel.timeout_ms)


def charge(key: str, region: str) -> Charge:
    """Make a charge."""
    return Charge(
        key=key, payment_id="p", region=region, channel="alipay",
        amount=1, currency="CNY", at_ms=0,
    )  # fmt: skip


def test_double_charges_are_counted_over_all_ledgers(tmp_path: Path) -> None:
    """One key in two regions' ledgers is a double charge, for the exact count and for the running
    one; a torn last line counts for neither until it is whole."""
    paths = [tmp_path / f"{region}.jsonl" for region in ("east", "north")]
    tally = Tally(tmp_path)
    for path in paths:
        ledger = Ledger(path)
        ledger.append(charge("same", path.stem))
        ledger.append(charge(f"only-{path.stem}", path.stem))
        ledger.close()
    with paths[0].open("a") as torn:
        torn.write('{"key": "only-n')
    assert list(double_charges(paths)) == ["same"]
    assert (tally.update().doubles, tally.charges) == (1, 4)
    with paths[0].open("a") as torn:
        line = json.dumps({"key": "only-north"})
        torn.write(line.removeprefix('{"key": "only-n') + "\n")
    assert tally.update().doubles == 2
    assert tally.update().doubles == 2


@pytest.mark.parametrize(
    ("status", "headers", "body", "outcome"),
    [
        (200, {}, '{"region": "east", "status": "succeeded"}', "succeeded"),
        (200, {}, '{"region": "east", "status": "declined"}', "declined"),
        (502, {}, '{"region": "east", "status": "failed"}', "failed"),
        (504, {}, '{"region": "east", "status": "unknown"}', "unknown"),
        (503, {"x-weir-outcome": "not_sent"}, "no healthy upstream", "failed"),
        (503, {"x-weir-outcome": "unknown"}, "reset", "unknown"),
        (503, {}, "whatever a proxy says", "unknown"),
        (200, {}, "[]", "unknown"),
    ],
)
def test_payer_calls_failed_only_what_was_not_charged(
    status: int, headers: dict[str, str], body: str, outcome: str
) -> None:
    """An answer is what the gateway says; Envoy's own answers are failed only where it says that
    nothing was sent; everything else is unknown."""
    assert classify(status, headers, body.encode())[0] == outcome


def test_layout_has_a_port_for_everything(tmp_path: Path) -> None:
    """Every use has its own port, outside the range of outgoing connections; five etcd members are
    placed 2-2-1; a fixed base is used as it is and refused where it does not fit."""
    content = load_content()
    layout = plan_layout(tmp_path, content, None)
    assert set(layout.ports) == set(port_keys(content))
    assert len(set(layout.ports.values())) == len(layout.ports)
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(layout.ports.values()) < low
    assert Counter(layout.etcd_members.values()) == {"east": 2, "north": 2, "south": 1}
    base = min(layout.ports.values())
    assert plan_layout(tmp_path, content, base).ports == layout.ports
    with pytest.raises(PortTakenError, match=re.escape("port 65536")):
        plan_layout(tmp_path, content, 65_530)


def test_configuration_is_the_one_of_the_daemons(tmp_path: Path) -> None:
    """The files pass the daemons' own check, say where everything is, and give every channel a
    probe in every region that serves it."""
    layout = plan_layout(tmp_path, load_content(), None)
    write_configs(layout, {"hold_down_ms": 1500})
    replica, agent = replica_config(layout, "east"), agent_config(layout, "east")
    assert replica["cluster"]["id"] == "east-0"
    assert agent["agent"]["outcomes_url"].endswith("/outcomes")
    for channel in replica["channels"].values():
        assert sorted(channel["probe"]["targets"]) == sorted(channel["regions"])
    assert sum(region["share_bp"] for region in replica["regions"].values()) == 10_000
