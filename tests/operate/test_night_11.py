"""Night 11: a blank field of the policy reached every region in seconds, and the herd that restarted made
it last. Here a file with a blank is refused as a whole where it is read, and a herd is let in by rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane import config
from controlplane.adapters.xds_admission import Admission, AdsLimits
from controlplane.app import Replica
from controlplane.model.topology import Policy
from tests.operate.lab import settings
from tests.support.stepclock import StepClock


def read(directory: Path) -> dict[str, Any]:
    """What the replica's file says."""
    ports = {"east": (1, 2), "north": (3, 4), "south": (5, 6)}
    data = settings(["127.0.0.1:2379"], directory, ports, "night")
    data["cluster"] |= {"id": "east-0", "region": "east"}
    return data


@pytest.mark.parametrize("field", ["", *sorted(Policy.__dataclass_fields__)])
def test_night_11_a_blank_in_the_policy_is_refused_as_a_whole(field: str, tmp_path: Path) -> None:
    """Any one field left blank (or the whole section): the reload is refused and counted, what else the
    file changes is not taken over either, and the last good policy stays in force."""
    good = read(tmp_path)
    replica = Replica(config.parse(yaml.safe_dump(good)), StepClock())
    before = replica.topology
    blank = good | {"policy": {**good["policy"], field: None} if field else None}
    blank["channels"] = {"alipay": {**good["channels"]["alipay"], "demand_tps": 1}}
    path = tmp_path / "weir.yaml"
    path.write_text(yaml.safe_dump(blank))
    replica.reload(path)
    assert replica.topology is before
    refused = 'weir_config_reloads_total{result="refused"} 1.0'
    assert refused in replica.metrics.exposition()[0].decode()


@pytest.mark.parametrize(
    "fault",
    [{"fail_evidence_nats": float("nan")}, {"suspect_evidence_nats": -1}, {"ramp_bp": []},
     {"ramp_bp": [100, None]}, {"ramp_bp": [20_000]}],
)  # fmt: skip
def test_night_11_nor_is_there_a_blank_within_a_value(
    fault: dict[str, Any], tmp_path: Path
) -> None:
    """Numbers that are none, and empty or broken lists, are named and refused like blanks."""
    good = read(tmp_path)
    with pytest.raises(config.ConfigError, match=next(iter(fault))):
        config.parse(yaml.safe_dump(good | {"policy": {**good["policy"], **fault}}))


def test_night_11_a_herd_is_let_in_at_a_bounded_rate() -> None:
    """Ten thousand data planes that come back at once, and again each second: never more than the rate."""
    clock, limits = StepClock(), AdsLimits()
    door = Admission(clock, limits.admit_per_s, limits.admit_burst)
    herd, seconds = 10_000, 0
    herd -= sum(door.admit() for _ in range(herd))
    assert herd == 10_000 - limits.admit_burst
    while herd:
        clock.advance(1_000)
        seconds += 1
        let_in = sum(door.admit() for _ in range(herd))
        assert let_in <= limits.admit_per_s
        herd -= let_in
    assert seconds == (10_000 - limits.admit_burst) / limits.admit_per_s
