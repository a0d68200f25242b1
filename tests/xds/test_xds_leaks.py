"""Try hard to make a real Envoy send a payment to a region at weight 0; then remove each protection.

The mutations prove that the tests can see a leak at all: without DRAINING, without panic threshold
0, the same attacks succeed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from google.protobuf import any_pb2

from controlplane.adapters.xds_resources import CDS, EDS
from controlplane.adapters.xds_snapshot import Snapshot, TypeSet
from tests.xds.lab import Envoy, Lab, eventually, plan

FENCED = {"east": 0, "north": 9000, "south": 1000}
PAYMENTS = 60
QUICK = {"check_interval_ms": 50, "return_after_ms": 200}


async def _apply(lab: Lab, snapshot: Snapshot) -> None:
    lab.ads.publish(snapshot)
    await eventually(
        lambda: (
            bool(lab.ads.subscribers())
            and all(s.applied_epoch == snapshot.epoch for s in lab.ads.subscribers())
        ),
        f"epoch {snapshot.epoch} applied",
    )


async def _start(lab: Lab, http: aiohttp.ClientSession, snapshot: Snapshot) -> Envoy:
    lab.ads.publish(snapshot)
    envoy = await lab.envoy()
    await envoy.ready(http)
    await _apply(lab, snapshot)
    return envoy


async def _healthy(envoy: Envoy, http: aiohttp.ClientSession, count: int) -> None:
    name = "cluster.payments.alipay.membership_healthy"

    async def reached() -> bool:
        return (await envoy.stats(http, name)).get(name) == count

    await eventually(reached, f"{count} hosts healthy")


async def _leaked(lab: Lab, envoy: Envoy, http: aiohttp.ClientSession) -> int:
    """Send payments; return how many reached the fenced region."""
    before = lab.gateways["east"].arrivals["alipay"]
    for _ in range(PAYMENTS):
        await envoy.pay(http)
    return lab.gateways["east"].arrivals["alipay"] - before


def mutated(snapshot: Snapshot, type_url: str, change: Callable[[Any], None]) -> Snapshot:
    """Return the snapshot with every resource of a type changed: a protection removed."""
    kinds: dict[str, Any] = {
        EDS: endpoint_pb2.ClusterLoadAssignment,
        CDS: cluster_pb2.Cluster,
    }
    old = snapshot.envoy.types[type_url]
    messages = {}
    for name, packed in old.packed.items():
        message = kinds[type_url].FromString(any_pb2.Any.FromString(packed).value)
        change(message)
        messages[name] = message
    changed = TypeSet.of(type_url, old.epoch, messages, old.version + ".mutant")
    shape = replace(snapshot.envoy, types={**snapshot.envoy.types, type_url: changed})
    return replace(snapshot, envoy=shape)


def _all_healthy(cla: Any) -> None:
    for locality in cla.endpoints:
        for endpoint in locality.lb_endpoints:
            endpoint.health_status = 1


def _default_panic(cluster: Any) -> None:
    cluster.common_lb_config.ClearField("healthy_panic_threshold")


def explicit_zero(cla: Any) -> None:
    """Say 0 where nothing is said: Envoy refuses that."""
    for locality in cla.endpoints:
        if not locality.HasField("load_balancing_weight"):
            locality.load_balancing_weight.value = 0


async def test_weights_are_exact(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Envoy spreads payments by the plan's basis points, and nothing goes to weight 0.

    Its scheduler starts at a random place of its cycle of ten, and where both regions are due at
    once the rounding of its deadlines decides who comes first: a hundred payments are exact to one.
    It starts anew when a host's health changes, so the first health checks are waited for.
    """
    snapshot = Snapshot.build(plan(1, FENCED), lab.dataplane())
    envoy = await _start(lab, http, snapshot)
    await _healthy(envoy, http, 2)
    for _ in range(100):
        status, region, _ = await envoy.pay(http)
        assert status == 200
        assert region != "east"
    arrivals = lab.arrivals()
    assert arrivals["east"] == 0
    assert sum(arrivals.values()) == 100
    assert abs(arrivals["south"] - 10) <= 1


@pytest.mark.parametrize("how", ["unhealthy", "dead"])
async def test_all_live_regions_lost(lab: Lab, http: aiohttp.ClientSession, how: str) -> None:
    """With every live region unhealthy or dead, payments are refused as not sent; none leaks."""
    snapshot = Snapshot.build(plan(1, FENCED), lab.dataplane(**QUICK))
    envoy = await _start(lab, http, snapshot)
    await _healthy(envoy, http, 2)
    for region in ("north", "south"):
        lab.gateways[region].healthy = False
        if how == "dead":
            await lab.gateways[region].stop()
    await _healthy(envoy, http, 0)
    assert await _leaked(lab, envoy, http) == 0
    status, _, headers = await envoy.pay(http)
    assert (status, headers["x-weir-outcome"]) == (503, "not_sent")


async def test_one_of_two_live_regions_lost(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Panic (most hosts out) is where Envoy's defaults spread over all: none leaks, none fails."""
    snapshot = Snapshot.build(plan(1, FENCED), lab.dataplane(**QUICK))
    envoy = await _start(lab, http, snapshot)
    lab.gateways["north"].healthy = False
    await _healthy(envoy, http, 1)
    assert await _leaked(lab, envoy, http) == 0
    assert (await envoy.pay(http))[:2] == (200, "south")


async def test_all_but_one_fenced(lab: Lab, http: aiohttp.ClientSession) -> None:
    """A plan may leave one region only; if that fails, the fenced ones still get nothing."""
    snapshot = Snapshot.build(
        plan(1, {"east": 0, "north": 0, "south": 10_000}), lab.dataplane(**QUICK)
    )
    envoy = await _start(lab, http, snapshot)
    assert (await envoy.pay(http))[:2] == (200, "south")
    lab.gateways["south"].healthy = False
    await _healthy(envoy, http, 0)
    assert await _leaked(lab, envoy, http) == 0
    assert lab.arrivals()["north"] == 0


async def test_ejection_does_not_leak(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Outlier detection ejects every live region of three hosts, and nothing spills to the
    fenced one. Health checks are far apart here, so that ejection alone acts."""
    dataplane = lab.dataplane(
        check_interval_ms=3_600_000, eject_after_failures=3, ejection_ms=3_600_000,
        ejection_max_ms=3_600_000,
    )  # fmt: skip
    envoy = await _start(lab, http, Snapshot.build(plan(1, FENCED), dataplane))
    await _healthy(envoy, http, 2)
    for region in ("north", "south"):
        await lab.gateways[region].stop()

    async def ejected() -> bool:
        await envoy.pay(http)
        name = "cluster.payments.alipay.outlier_detection.ejections_active"
        return (await envoy.stats(http, name))[name] == 2

    await eventually(ejected, "both live regions ejected")
    assert await _leaked(lab, envoy, http) == 0


async def test_missing_weights_leak_nothing(lab: Lab, http: aiohttp.ClientSession) -> None:
    """A region that a route does not mention at all receives nothing."""
    snapshot = Snapshot.build(plan(1, {"north": 10_000}), lab.dataplane())
    envoy = await _start(lab, http, snapshot)
    assert await _leaked(lab, envoy, http) == 0
    assert lab.arrivals() == {"east": 0, "north": PAYMENTS, "south": 0}


async def test_mutant_without_draining_leaks(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Mutation: without DRAINING, payments reach the fenced region once the live ones are out."""
    snapshot = Snapshot.build(plan(1, FENCED), lab.dataplane(**QUICK))
    envoy = await _start(lab, http, mutated(snapshot, EDS, _all_healthy))
    lab.gateways["north"].healthy = lab.gateways["south"].healthy = False
    await _healthy(envoy, http, 1)
    assert await _leaked(lab, envoy, http) > 0


async def test_mutant_with_default_panic_leaks(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Mutation: with Envoy's default panic threshold, payments reach regions that are out."""
    snapshot = Snapshot.build(plan(1, FENCED), lab.dataplane(**QUICK))
    mutant = mutated(mutated(snapshot, EDS, _all_healthy), CDS, _default_panic)
    envoy = await _start(lab, http, mutant)
    for gateway in lab.gateways.values():
        gateway.healthy = False
    await _healthy(envoy, http, 0)
    assert await _leaked(lab, envoy, http) > 0


async def test_mutant_withexplicit_zero_is_refused(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Mutation: an explicit weight of 0 is refused by Envoy; the fence would never land, and the
    subscriber is named as a laggard."""
    dataplane = lab.dataplane()
    envoy = await _start(
        lab, http, Snapshot.build(plan(1, {"east": 5000, "north": 5000}), dataplane)
    )
    fenced = Snapshot.build(plan(2, {"east": 0, "north": 10_000}), dataplane)
    lab.ads.publish(mutated(fenced, EDS, explicit_zero))
    name = "cluster.payments.alipay.update_rejected"

    async def refused() -> bool:
        return (await envoy.stats(http, name))[name] == 1

    await eventually(refused, "explicit 0 refused")
    assert [s.applied_epoch for s in lab.ads.laggards()] == [1]
    assert await _leaked(lab, envoy, http) > 0
