"""Local reaction chooses among regions; the last one that a plan leaves is not its to take away."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import aiohttp

from agents.xds_files import XdsFiles
from controlplane.adapters.xds_bootstrap import envoy_files_bootstrap
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.model.dataplane import DataPlane, Endpoint, RegionEndpoints
from controlplane.model.ids import RegionName
from tests.xds.lab import Envoy, Lab, eventually, plan

ALONE = {"east": 0, "north": 10_000, "south": 0}
MOSTLY = {"east": 1, "north": 9999, "south": 0}
BOTH = {"east": 5000, "north": 5000, "south": 0}
HEALTHY = "cluster.payments.alipay.membership_healthy"
DEAF = {"check_interval_ms": 50, "check_timeout_ms": 50}
"""Checks of a gateway that answers none are missed soon, and those of one that does in time: it is
in the same process as the test, so nothing is proved by one that is late."""
NO_CHECKS = {"check_interval_ms": 3_600_000, "check_timeout_ms": 30_000}


async def start(
    lab: Lab, http: aiohttp.ClientSession, weights: dict[str, int], config: DataPlane
) -> Envoy:
    """Publish epoch 1 and return an Envoy that has applied it."""
    lab.ads.publish(Snapshot.build(plan(1, weights), config))
    envoy = await lab.envoy()
    await envoy.ready(http)
    await applied(lab, 1)
    return envoy


async def applied(lab: Lab, epoch: int) -> None:
    """Wait until the Envoy has applied an epoch, and owes no answer about anything."""

    def done() -> bool:
        sessions = list(lab.ads._sessions)
        return bool(sessions) and all(
            s.machine.applied_epoch == epoch
            and not any(sub.unanswered for sub in s.machine.types.values())  # type: ignore[attr-defined]
            for s in sessions
        )

    await eventually(done, f"epoch {epoch} applied")


async def healthy(envoy: Envoy, http: aiohttp.ClientSession, count: int) -> None:
    """Wait until so many regions pass Envoy's own judgement."""

    async def reached() -> bool:
        return (await envoy.stats(http, HEALTHY)).get(HEALTHY) == count

    await eventually(reached, f"{count} healthy")


async def paid(envoy: Envoy, http: aiohttp.ClientSession, count: int = 30) -> Counter[str]:
    """Pay; count what became of it: the region, or status and outcome of a refusal."""
    found: Counter[str] = Counter()
    for _ in range(count):
        status, region, headers = await envoy.pay(http)
        found[region or f"{status} {headers.get('x-weir-outcome')}"] += 1
    return found


async def test_the_last_region_keeps_its_payments_when_its_checks_are_missed(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """A plan leaves one region, whose gateway is late with every check: nothing is refused, and
    nothing leaks to the fenced ones."""
    envoy = await start(lab, http, ALONE, lab.dataplane(**DEAF))
    lab.gateways["north"].deaf = True
    await healthy(envoy, http, 0)
    assert await paid(envoy, http) == {"north": 30}


async def test_a_region_that_is_out_becomes_the_last_one(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """With two regions in the plan both are out; the plan that leaves one gives it its payments at
    once. With two again, local reaction is back."""
    config = lab.dataplane(**DEAF, return_after_ms=50)
    envoy = await start(lab, http, BOTH, config)
    for region in ("east", "north"):
        lab.gateways[region].deaf = True
    await healthy(envoy, http, 0)
    assert await paid(envoy, http, 3) == {"503 not_sent": 3}
    lab.ads.publish(Snapshot.build(plan(2, ALONE), config))
    await applied(lab, 2)
    await eventually(lambda: _all_go(envoy, http, "north"), "north has all")
    lab.ads.publish(Snapshot.build(plan(3, BOTH), config))
    await applied(lab, 3)
    lab.gateways["east"].deaf = False
    await eventually(lambda: _all_go(envoy, http, "east"), "east has all")


async def test_a_sick_endpoint_of_the_last_region_is_left(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """Of the last region's three endpoints two are unhealthy: the third has all payments, for local
    reaction still chooses among them. With the third one out, too, all three have some."""
    ports = [gateway.port for gateway in lab.gateways.values()]
    region = RegionEndpoints(
        region=RegionName("north"),
        endpoints=tuple(Endpoint(host="127.0.0.1", port=port) for port in ports),
    )
    config = replace(lab.dataplane(check_interval_ms=50), regions=(region,))
    envoy = await start(lab, http, {"north": 10_000}, config)
    for name in ("east", "north"):
        lab.gateways[name].healthy = False
    await healthy(envoy, http, 1)
    assert await paid(envoy, http) == {"south": 30}
    lab.gateways["south"].healthy = False
    await healthy(envoy, http, 0)
    assert set(await paid(envoy, http)) == {"east", "north", "south"}


async def test_an_ejected_last_region_is_back_with_its_first_answer(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """Outlier detection ejects the last region for an hour; it gets its payments all the same, and
    takes them as soon as it is back."""
    config = lab.dataplane(**NO_CHECKS, ejection_ms=3_600_000, ejection_max_ms=3_600_000)
    envoy = await start(lab, http, ALONE, config)
    await healthy(envoy, http, 1)
    await lab.gateways["north"].stop()

    async def ejected() -> bool:
        assert await paid(envoy, http, 1) == {"503 not_sent": 1}
        return (await envoy.stats(http, HEALTHY))[HEALTHY] == 0

    await eventually(ejected, "ejected")
    await lab.gateways["north"].start()
    assert await paid(envoy, http) == {"north": 30}


async def test_fencing_the_last_region_for_another_leaks_nothing(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """A region that kept its payments against its checks gets none once a plan takes them away,
    even when the region they move to fails its checks, too."""
    config = lab.dataplane(**DEAF)
    envoy = await start(lab, http, ALONE, config)
    for region in ("north", "south"):
        lab.gateways[region].deaf = True
    await healthy(envoy, http, 0)
    assert await paid(envoy, http, 5) == {"north": 5}
    lab.ads.publish(Snapshot.build(plan(2, {"east": 0, "north": 0, "south": 10_000}), config))
    await applied(lab, 2)
    await eventually(lambda: _all_go(envoy, http, "south"), "south has all")
    before = lab.arrivals()
    assert await paid(envoy, http) == {"south": 30}
    assert lab.arrivals() == {**before, "south": before["south"] + 30}


async def test_becoming_the_last_region_disturbs_no_payment(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """One region left, two, one: a payment that is under way is answered, and the following ones go
    through the connection that is there."""
    config = lab.dataplane(**NO_CHECKS)
    envoy = await start(lab, http, MOSTLY, config)
    await healthy(envoy, http, 2)
    lab.gateways["north"].resume.clear()
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(envoy.pay(http))
        await eventually(lambda: lab.arrivals()["north"] == 1, "a payment is under way")
        for epoch in (2, 3, 4):
            lab.ads.publish(Snapshot.build(plan(epoch, MOSTLY if epoch % 2 else ALONE), config))
            await applied(lab, epoch)
        await eventually(lambda: _route_is(envoy, http, "always.alipay"), "the route has changed")
        lab.gateways["north"].resume.set()
    assert slow.result()[:2] == (200, "north")
    assert await paid(envoy, http) == {"north": 30}
    opened = await envoy.stats(http, "^cluster.unchecked.alipay.upstream_cx_total$")
    assert list(opened.values()) == [0]


async def test_a_plan_of_one_region_works_from_files(
    lab: Lab, http: aiohttp.ClientSession, scratch: Path
) -> None:
    """Started from an agent's files, Envoy keeps to the last region in the same way."""
    envoy = Envoy("envoy-files", scratch)
    files = XdsFiles(scratch / "xds", lab.dataplane(**DEAF), listener=("127.0.0.1", envoy.port))
    assert files.write(plan(1, ALONE), confirmed=True)
    envoy.start(
        "",
        envoy_files_bootstrap(
            directory=str(scratch / "xds"), admin_port=envoy.admin, node_id="envoy-files"
        ),
    )
    lab.envoys.append(envoy)
    await envoy.ready(http)
    lab.gateways["north"].deaf = True
    await healthy(envoy, http, 0)
    assert await paid(envoy, http) == {"north": 30}


async def _all_go(envoy: Envoy, http: aiohttp.ClientSession, region: str) -> bool:
    return await paid(envoy, http, 10) == {region: 10}


async def _route_is(envoy: Envoy, http: aiohttp.ClientSession, cluster: str) -> bool:
    return f'"cluster": "{cluster}"' in await envoy.routes(http)
