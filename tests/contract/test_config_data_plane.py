"""The data_plane section: what an operator writes is what Envoy is told."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controlplane.adapters.xds_clusters import envoy_clusters
from controlplane.config import ConfigError, parse

FILE: dict[str, Any] = {
    "regions": {
        "east": {"role": "primary", "share_bp": 6000, "capacity_tps": 10, "endpoints": ["127.0.0.1:1"]},
        "north": {"role": "standby", "share_bp": 4000, "capacity_tps": 10, "endpoints": ["127.0.0.1:2"]},
    },
    "channels": {"alipay": {"regions": ["east", "north"]}},
    "coordination": {"endpoints": ["127.0.0.1:3"]},
}  # fmt: skip


def test_every_value_reaches_envoy() -> None:
    """Path, times and counts of the file stand in the cluster that Envoy gets."""
    section = {
        "check_path": "/alive", "check_interval_ms": 250, "check_timeout_ms": 900, "check_fall": 4,
        "return_after_ms": 1000, "eject_after_failures": 7, "ejection_ms": 1500,
        "ejection_max_ms": 6000, "stale_after_ms": 4000, "max_requests": 99,
    }  # fmt: skip
    plane = parse(yaml.safe_dump({**FILE, "data_plane": section})).dataplane()
    assert plane is not None
    assert plane.stale_after_ms == 4000
    channel = plane.channels[0]
    cluster = envoy_clusters(channel, plane)[f"payments.{channel.name}"]
    check, outliers = cluster.health_checks[0], cluster.outlier_detection
    assert check.http_health_check.path == "/alive"
    assert check.timeout.ToMilliseconds() == 900
    assert check.interval.ToMilliseconds() == 250
    assert check.no_traffic_interval.ToMilliseconds() == 250
    assert check.unhealthy_threshold.value == 4
    assert check.healthy_threshold.value == 4  # 1000 ms of checks, 250 ms apart
    assert outliers.consecutive_local_origin_failure.value == 7
    assert outliers.base_ejection_time.ToMilliseconds() == 1500
    assert outliers.max_ejection_time.ToMilliseconds() == 6000
    assert cluster.circuit_breakers.thresholds[0].max_requests.value == 99


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"ejection_ms": 2000, "ejection_max_ms": 1000}, "ejection_max_ms"),
        ({"check_path": "alive"}, "check_path"),
        ({"check_fall": 0}, "check_fall"),
        ({"chek_fall": 2}, "check_fall"),
    ],
)
def test_what_makes_no_sense_is_refused(section: dict[str, Any], said: str) -> None:
    """A range, a path without a slash, times that contradict each other, a key nobody knows: each
    is named."""
    with pytest.raises(ConfigError, match=said):
        parse(yaml.safe_dump({**FILE, "data_plane": section}))
