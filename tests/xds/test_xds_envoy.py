"""A real Envoy obeys the plan, reacts by itself within its rules, and outlives the control plane."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agents.xds_files import XdsFiles, eds_file
from controlplane.adapters.xds_bootstrap import envoy_bootstrap, envoy_files_bootstrap
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import SystemClock
from controlplane.dev.process import Child, free_ports
from controlplane.dev.servers import tcp_answers
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Retry
from controlplane.model.evidence import Digest, Subscriber
from controlplane.model.ids import ChannelName, Epoch, RegionName, ReplicaId
from controlplane.runtime.book import DigestBook, live_subscribers, silent_subscribers
from tests.xds.lab import REGIONS, UNHURRIED, Envoy, Lab, eventually, plan, plan_of

EAST = {"east": 10_000, "north": 0, "south": 0}
NORTH = {"east": 0, "north": 10_000, "south": 0}
BOTH = {"east": 5000, "north": 5000, "south": 0}
SLOW_CHECKS = {"check_interval_ms": 3_600_000}
QUICK = {"check_interval_ms": 50, "check_timeout_ms": 100}
CLUSTERS = 3
"""Clusters of one channel; `xds_clusters` says why."""
BOUND_MS = 1500
"""Staleness bound of single-writer channels in these tests."""


def channel(name: str = "alipay", **fields: Any) -> ChannelTraffic:
    """Return one channel."""
    return ChannelTraffic(name=ChannelName(name), **{**UNHURRIED, **fields})


async def start(
    lab: Lab, http: aiohttp.ClientSession, weights: dict[str, int], config: DataPlane | None = None
) -> Envoy:
    """Publish epoch 1 and start an Envoy that has applied it."""
    config = config or lab.dataplane()
    routes = {c.name: weights for c in config.channels}
    lab.ads.publish(Snapshot.build(plan_of(1, routes), config))
    envoy = await lab.envoy()
    await envoy.ready(http)
    await applied(lab, 1)
    return envoy


async def applied(lab: Lab, epoch: int) -> None:
    """Wait until every subscriber has applied an epoch."""
    await eventually(
        lambda: (
            bool(lab.ads.subscribers())
            and all(s.applied_epoch == epoch for s in lab.ads.subscribers())
        ),
        f"epoch {epoch} applied",
    )


async def region_becomes(envoy: Envoy, http: aiohttp.ClientSession, region: str) -> None:
    """Wait until payments go to a region (empty: nowhere)."""

    async def reached() -> bool:
        return (await envoy.pay(http))[1] == region

    await eventually(reached, f"payments go to {region or 'nobody'}")


async def stat(envoy: Envoy, http: aiohttp.ClientSession, name: str) -> int:
    """Read one counter or gauge."""
    return (await envoy.stats(http, f"^{name}$")).get(name, 0)


async def test_plan_is_obeyed_and_refused_by_nobody(lab: Lab, http: aiohttp.ClientSession) -> None:
    """A plan moves payments, is acknowledged with its epoch, and no resource is refused."""
    envoy = await start(lab, http, EAST)
    assert (await envoy.pay(http))[:2] == (200, "east")
    lab.ads.publish(Snapshot.build(plan(2, NORTH), lab.dataplane()))
    await applied(lab, 2)
    await region_becomes(envoy, http, "north")
    refused = await envoy.stats(http, "update_rejected")
    assert refused
    assert sum(refused.values()) == 0
    assert lab.ads.laggards() == ()


async def test_second_change_within_a_second_is_not_delayed(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """Envoy holds a second update within 1 s back from its workers by default, and counts those it
    holds back. Here every one of ten epochs reaches them at once: none is counted."""
    envoy = await start(lab, http, EAST)
    for epoch in range(2, 12):
        weights = NORTH if epoch % 2 else EAST
        lab.ads.publish(Snapshot.build(plan(epoch, weights), lab.dataplane()))
        await applied(lab, epoch)
    await region_becomes(envoy, http, "north")
    held_back = await envoy.stats(http, "^cluster_manager.update_(merge|out_of_merge)")
    assert held_back
    assert sum(held_back.values()) == 0


async def test_changed_cluster_does_not_wait_for_its_endpoints(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """After a change of configuration the endpoints are sent again: the cluster does not warm for
    15 s, and not one payment fails meanwhile."""
    envoy = await start(lab, http, EAST)
    changed = lab.dataplane(channel(connect_timeout_ms=400))
    lab.ads.publish(Snapshot.build(plan(1, EAST), changed))

    async def swapped() -> bool:
        assert (await envoy.pay(http))[0] == 200
        modified = await stat(envoy, http, "cluster_manager.cluster_modified")
        return modified == CLUSTERS and not await stat(
            envoy, http, "cluster_manager.warming_clusters"
        )

    await eventually(swapped, "changed cluster in service", deadline_s=10)


async def test_control_plane_gone_changes_nothing(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Without any control plane Envoy goes on with its last plan, and takes the newer one when the
    control plane is back at the same address."""
    envoy = await start(lab, http, BOTH)
    await lab.stop_serving()
    assert {(await envoy.pay(http))[:2] for _ in range(20)} == {(200, "east"), (200, "north")}
    lab.ads.publish(Snapshot.build(plan(2, NORTH), lab.dataplane()))
    await lab.serve()
    await applied(lab, 2)
    await region_becomes(envoy, http, "north")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_lost_replica_is_left_for_another(
    lab: Lab, http: aiohttp.ClientSession, scratch: Path, how: signal.Signals
) -> None:
    """Killed or hung: Envoy leaves its replica and obeys the next epoch from another one."""
    ports = free_ports(2)
    gateways = [str(lab.gateways[region].port) for region in ("east", "north")]
    replicas = [
        Child(
            f"replica-{port}",
            [sys.executable, "-m", "tests.xds.replica", str(port), *gateways],
            scratch / f"replica-{port}.log",
        ).start()
        for port in ports
    ]
    try:
        for port, replica in zip(ports, replicas, strict=True):
            await eventually(lambda port=port: tcp_answers(port), f"replica: {replica.tail()}")
        envoy = Envoy("envoy-lost", scratch)
        bootstrap = envoy_bootstrap(
            servers=[f"127.0.0.1:{port}" for port in ports],
            listener_port=envoy.port,
            admin_port=envoy.admin,
            node_id="envoy-lost",
        )
        envoy.start("", bootstrap)
        lab.envoys.append(envoy)
        await envoy.ready(http)
        await region_becomes(envoy, http, "east")
        used = await _connected(envoy, http)
        lost, other = replicas if used == ports[0] else reversed(replicas)
        lost.signal(how)
        other.signal(signal.SIGUSR1)
        await region_becomes(envoy, http, "north")
    finally:
        for replica in replicas:
            replica.kill()


async def _connected(envoy: Envoy, http: aiohttp.ClientSession) -> int:
    """Return the port of the replica that Envoy's stream goes to."""
    async with http.get(f"http://127.0.0.1:{envoy.admin}/clusters?format=json") as answer:
        found = await answer.json(content_type=None)
    for cluster in found["cluster_statuses"]:
        if cluster["name"] != "weir_xds":
            continue
        for host in cluster["host_statuses"]:
            stats = {entry["name"]: int(entry.get("value", 0)) for entry in host["stats"]}
            if stats["rq_active"]:
                port: int = host["address"]["socket_address"]["port_value"]
                return port
    raise AssertionError("no active ADS stream")


async def test_dead_region_costs_no_payment(lab: Lab, http: aiohttp.ClientSession) -> None:
    """A refused connection is known unsent: the payment goes to another region, none fails."""
    skewed = {"east": 9700, "north": 300, "south": 0}
    envoy = await start(lab, http, skewed, lab.dataplane(**SLOW_CHECKS))
    await lab.gateways["east"].stop()
    for _ in range(40):
        assert (await envoy.pay(http))[:2] == (200, "north")


async def test_hung_region_is_left_and_does_not_return_at_once(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """Health checks take a hung region out; one good answer does not bring it back, unbroken health
    does: that is what keeps a flapping region from switching payments with every flap."""
    config = lab.dataplane(**QUICK, return_after_ms=1000)
    assert config.reaction.check_rise == 20
    envoy = await start(lab, http, BOTH, config)
    healthy = "cluster.payments.alipay.membership_healthy"
    good = "cluster.payments.alipay.health_check.success"
    lab.gateways["east"].resume.clear()

    async def hosts(count: int) -> bool:
        return await stat(envoy, http, healthy) == count

    await eventually(lambda: hosts(1), "hung region out")
    lab.gateways["east"].resume.set()
    before = await stat(envoy, http, good)
    await eventually(lambda: hosts(2), "region back")
    assert await stat(envoy, http, good) - before >= 20


@pytest.mark.parametrize("asked", ["", "5xx,reset,gateway-error,connect-failure"])
async def test_no_payment_is_replayed(lab: Lab, http: aiohttp.ClientSession, asked: str) -> None:
    """A payment that may have left is never sent again, whatever header a client sends, and the
    client is told that its outcome is unknown."""
    envoy = await start(lab, http, BOTH, lab.dataplane(**SLOW_CHECKS))
    for gateway in lab.gateways.values():
        gateway.status = -1
    headers = {"x_envoy_retry_on": asked, "x_envoy_max_retries": "3"} if asked else {}
    status, _, answer = await envoy.pay(http, Idempotency_Key="k1", **headers)
    assert (status, answer["x-weir-outcome"]) == (503, "unknown")
    assert sum(lab.arrivals().values()) == 1


async def test_idempotent_channel_is_replayed_elsewhere_with_a_key(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """Where the channel allows it, a payment with an idempotency key that got no answer goes to
    another region; without a key it does not."""
    config = lab.dataplane(channel(retry=Retry.IDEMPOTENT), **SLOW_CHECKS)
    envoy = await start(lab, http, {"east": 9700, "north": 300, "south": 0}, config)
    lab.gateways["east"].status = -1
    for number in range(10):
        assert (await envoy.pay(http, Idempotency_Key=f"k{number}"))[:2] == (200, "north")
    keys = lab.gateways["east"].keys
    assert keys
    assert set(keys.values()) == {1}

    async def unanswered() -> bool:
        status, _, answer = await envoy.pay(http)
        return status == 503 and answer["x-weir-outcome"] == "unknown"

    await eventually(unanswered, "a payment without key that is not repeated")


async def test_provider_failing_everywhere_does_not_empty_the_cluster(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """5xx answers are evidence about the provider: they reach the client, and no region is ejected
    (the other way, a sick provider becomes an outage of everything)."""
    envoy = await start(lab, http, BOTH)
    for gateway in lab.gateways.values():
        gateway.status = 502
    answers = [(await envoy.pay(http))[:2] for _ in range(40)]
    assert set(answers) == {(502, "east"), (502, "north")}
    assert await stat(envoy, http, "cluster.payments.alipay.membership_healthy") == 2


async def test_shed_load_is_refused_as_not_sent(lab: Lab, http: aiohttp.ClientSession) -> None:
    """What no region can carry is refused at the edge, before anything is sent."""
    envoy = await start(lab, http, EAST)
    lab.ads.publish(Snapshot.build(plan(2, EAST, shed_bp=10_000), lab.dataplane()))
    await region_becomes(envoy, http, "")
    status, _, headers = await envoy.pay(http)
    assert (status, headers["x-weir-outcome"], headers["retry-after"]) == (503, "not_sent", "1")


async def test_fail_closed_channel_stops_by_itself(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Cut off, a single-writer channel stops after its bound while another goes on; renewed
    confirmations keep it open for longer than the bound; the control plane's return opens it."""
    config = DataPlane(
        regions=lab.dataplane().regions,
        channels=(channel(), channel("ledger", fail_closed=True)),
        stale_after_ms=BOUND_MS,
    )
    envoy = await start(lab, http, EAST, config)
    expired = "cluster.payments.ledger.assignment_stale"
    assert await _renewed(lab, envoy, http) == 0
    await lab.stop_serving()
    before = await stat(envoy, http, expired)

    async def closed() -> bool:
        return (await envoy.pay(http, "ledger"))[2].get("x-weir-outcome") == "not_sent"

    await eventually(closed, "single-writer channel stopped")
    assert await stat(envoy, http, expired) == before + 1
    assert (await envoy.pay(http))[:2] == (200, "east")
    await lab.serve()
    lab.ads.confirm()

    async def opened() -> bool:
        lab.ads.confirm()
        return (await envoy.pay(http, "ledger"))[0] == 200

    await eventually(opened, "single-writer channel open again")


async def _renewed(lab: Lab, envoy: Envoy, http: aiohttp.ClientSession) -> int:
    """Confirm for longer than the bound; return how often the channel was closed meanwhile.

    A stretch in which this machine itself came late to a confirmation proves nothing: it begins
    again.
    """
    clock = SystemClock()
    began_ms, last_ms, closed = clock.monotonic_ms(), clock.monotonic_ms(), 0
    while last_ms - began_ms < 1.5 * BOUND_MS:
        lab.ads.confirm()
        await asyncio.sleep(0.05)
        closed += (await envoy.pay(http, "ledger"))[:2] != (200, "east")
        now_ms = clock.monotonic_ms()
        if now_ms - last_ms > BOUND_MS / 3:
            began_ms, closed = now_ms, 0
        last_ms = now_ms
    return closed


async def test_cold_start_from_files(lab: Lab, http: aiohttp.ClientSession, scratch: Path) -> None:
    """With no control plane at all Envoy starts from an agent's files, follows their renames, and
    an older plan does not replace a newer one. A single-writer channel needs a confirmed plan."""
    await lab.stop_serving()
    config = lab.dataplane(channel(), channel("ledger", fail_closed=True))
    envoy = Envoy("envoy-files", scratch)
    directory = scratch / "xds"
    files = XdsFiles(directory, config, listener=("127.0.0.1", envoy.port))
    assert files.write(plan_of(3, {"alipay": EAST, "ledger": EAST}), confirmed=False)
    bootstrap = envoy_files_bootstrap(
        directory=str(directory), admin_port=envoy.admin, node_id="envoy-files"
    )
    envoy.start("", bootstrap)
    lab.envoys.append(envoy)
    await envoy.ready(http)
    await region_becomes(envoy, http, "east")
    assert (await envoy.pay(http, "ledger"))[0] == 503

    assert files.write(plan_of(4, {"alipay": NORTH, "ledger": NORTH}), confirmed=True)
    await region_becomes(envoy, http, "north")
    assert not files.write(plan(3, EAST), confirmed=True)

    reborn = XdsFiles(directory, config, listener=("127.0.0.1", envoy.port))
    assert reborn.epoch == 4
    assert not reborn.write(plan(3, EAST), confirmed=True)
    assert reborn.write(plan(5, EAST), confirmed=True)
    await region_becomes(envoy, http, "east")
    assert not (directory / eds_file("ledger")).exists()
    assert not list(directory.glob(".*"))


async def test_files_of_a_fail_closed_channel_expire_and_are_renewed(
    lab: Lab, http: aiohttp.ClientSession, scratch: Path
) -> None:
    """The agent's files carry the same bound: written again they stay valid, left alone they
    expire."""
    config = DataPlane(
        regions=lab.dataplane().regions,
        channels=(channel(fail_closed=True),),
        stale_after_ms=500,
    )
    envoy = Envoy("envoy-files", scratch)
    files = XdsFiles(scratch / "xds", config, listener=("127.0.0.1", envoy.port))
    files.write(plan(1, EAST), confirmed=True)
    bootstrap = envoy_files_bootstrap(
        directory=str(scratch / "xds"), admin_port=envoy.admin, node_id="envoy-files"
    )
    envoy.start("", bootstrap)
    lab.envoys.append(envoy)
    await envoy.ready(http)

    async def open_again() -> bool:
        files.write(plan(1, EAST), confirmed=True)
        return (await envoy.pay(http))[:2] == (200, "east")

    await eventually(open_again, "open while renewed")
    await region_becomes(envoy, http, "")
    await eventually(open_again, "open again when renewed")


async def test_delta_stream_serves_envoy_too(lab: Lab, http: aiohttp.ClientSession) -> None:
    """The incremental protocol brings the same plan, and its epochs are known as well."""
    lab.ads.publish(Snapshot.build(plan(1, EAST), lab.dataplane()))
    envoy = Envoy("envoy-delta", lab.directory)
    bootstrap = envoy_bootstrap(
        servers=[lab.address], listener_port=envoy.port, admin_port=envoy.admin, node_id="delta"
    )
    bootstrap["dynamic_resources"]["ads_config"]["api_type"] = "DELTA_GRPC"
    envoy.start("", bootstrap)
    lab.envoys.append(envoy)
    await envoy.ready(http)
    await region_becomes(envoy, http, "east")
    lab.ads.publish(Snapshot.build(plan(2, NORTH), lab.dataplane()))
    await region_becomes(envoy, http, "north")
    await applied(lab, 2)
    # an epoch that changes nothing for this Envoy is applied without a message
    lab.ads.publish(Snapshot.build(plan(3, NORTH), lab.dataplane()))
    await applied(lab, 3)
    lab.ads.publish(Snapshot.build(plan(3, NORTH), lab.dataplane(channel(connect_timeout_ms=300))))

    async def swapped() -> bool:
        assert (await envoy.pay(http))[0] == 200
        modified = await stat(envoy, http, "cluster_manager.cluster_modified")
        return modified == CLUSTERS and not await stat(
            envoy, http, "cluster_manager.warming_clusters"
        )

    await eventually(swapped, "changed cluster in service", deadline_s=10)
    refused = await envoy.stats(http, "update_rejected")
    assert sum(refused.values()) == 0


async def test_readiness_does_not_lie(lab: Lab, http: aiohttp.ClientSession) -> None:
    """Without a control plane a fresh Envoy's own /ready may say LIVE, but the listener's readiness
    path does not answer before there is a listener with routes."""
    envoy = await lab.envoy()

    async def admin_answers() -> bool:
        try:
            async with http.get(f"http://127.0.0.1:{envoy.admin}/ready") as answer:
                return answer.status in {200, 503}
        except aiohttp.ClientError:
            return False

    await eventually(admin_answers, "Envoy's admin interface answers")
    assert not tcp_answers(envoy.port)
    lab.ads.publish(Snapshot.build(plan(1, EAST), lab.dataplane()))
    await envoy.ready(http)
    assert set(REGIONS) == set(lab.gateways)


async def test_a_hung_envoy_is_never_taken_for_one_that_has_applied(
    lab: Lab, http: aiohttp.ClientSession
) -> None:
    """SIGSTOP: first a laggard with its age, then, no longer waited for, named as silent with the
    epoch it had, also after the server has given its connection up; awake, it applies the plan."""
    envoy = await start(lab, http, EAST)
    book = DigestBook()

    def told(of: Callable[[list[tuple[Digest, int]]], list[Subscriber]]) -> dict[str, int]:
        digest = Digest(
            replica=ReplicaId("east-0"), region=RegionName("east"), boot=1, seq=next(numbers),
            subscribers=lab.ads.subscribers(),
        )  # fmt: skip
        book.put(digest, 0)
        return {s.name: int(s.applied_epoch) for s in of(book.entries(0))}

    def silent() -> dict[str, int]:
        return told(lambda entries: silent_subscribers(entries, Epoch(2)))

    numbers = itertools.count(1)
    envoy.child.pause()
    lab.ads.publish(Snapshot.build(plan(2, NORTH), lab.dataplane()))
    assert (told(live_subscribers), silent()) == ({envoy.name: 1}, {})
    await eventually(lambda: silent() == {envoy.name: 1}, "named as silent")
    assert told(live_subscribers) == {}
    await eventually(lambda: not lab.ads._sessions, "its connection is given up")
    assert silent() == {envoy.name: 1}
    envoy.child.resume()
    await applied(lab, 2)
    assert (told(live_subscribers), silent()) == ({envoy.name: 2}, {})
    await region_becomes(envoy, http, "north")
