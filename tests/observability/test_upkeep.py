"""Overrides, drills and gates become points in time that alerts can look at."""

from __future__ import annotations

import uuid

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.adapters.prometheus import Metrics
from controlplane.adapters.upkeep import Upkeep, last_drills, override_expiries
from controlplane.clock import SystemClock
from controlplane.model.ids import RegionName
from controlplane.model.plan import FailoverRecord
from controlplane.ports import KeyValue
from tests.observability.samples import topology
from tests.observability.test_metrics import value, values


async def test_an_override_and_a_gate_in_etcd_are_shown(kv: EtcdClient, cluster_name: str) -> None:
    """What an operator writes is shown with its end; once cleared it leaves no series."""
    clock, metrics = SystemClock(), Metrics(topology(1), version="0")
    store = EtcdPlanStore(kv, cluster_name, clock)
    intents = EtcdIntents(kv, store.keys, clock)
    upkeep = Upkeep(store, intents, metrics, clock)
    override = await intents.intent_put(
        "override", "channel-000", reason="test", by="me", ttl_s=600,
        weights={"east": 5000, "north": 5000},
    )  # fmt: skip
    gate = await intents.intent_put("gate", "reconciliation", reason="x", by="me", ttl_s=600)
    await intents.apply(str(uuid.uuid4()), [override, gate], b"")
    await upkeep.look()
    name = "weir_override_expiry_timestamp_seconds"
    left_s = value(metrics, name, channel="channel-000") - clock.wall_ms() / 1000
    assert 0 < left_s <= 600
    assert value(metrics, "weir_reconciliation_gate_closed") == 1
    await intents.apply(
        str(uuid.uuid4()),
        [
            intents.intent_delete("override", "channel-000"),
            intents.intent_delete("gate", "reconciliation"),
        ],
        b"",
    )
    await upkeep.look()
    assert not [key for key in values(metrics) if key[0] == name]
    assert value(metrics, "weir_reconciliation_gate_closed") == 0


def test_an_unreadable_override_is_left_out() -> None:
    """One intent that makes no sense hides no other."""
    keys = Keys("weir")
    stored = [
        KeyValue(key=keys.intent("override", name), value=body, mod_revision=1, create_revision=1, version=1)
        for name, body in (
            ("a", b"not json"), ("b", b"{}"), ("c", b"[]"),
            ("d", b'{"expires_at": "2026-01-01T00:00:00.000Z"}'),
        )
    ]  # fmt: skip
    assert override_expiries(keys, stored) == {"d": 1_767_225_600.0}


def test_only_completed_drills_count() -> None:
    """A drill that was reverted, and a real failover, are no practice."""

    def record(kind: str, outcome: str, ended_s: int | None) -> FailoverRecord:
        return FailoverRecord(
            id="f", region=RegionName("east"), kind=kind, cause="", symptom_ms=1, outcome=outcome,
            converged_ms=None if ended_s is None else ended_s * 1000,
        )  # fmt: skip

    records = [
        record("drill", "completed", 100), record("drill", "completed", 200),
        record("drill", "reverted", 300), record("dead", "completed", 400),
        record("drill", "running", None),
    ]  # fmt: skip
    assert last_drills(records) == {"east": 200.0}
