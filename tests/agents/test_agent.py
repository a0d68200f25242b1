"""The whole agent: against real targets and a real replica."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from agents.agent import Agent
from agents.store import PlanFile, Saved
from controlplane.dev.process import free_port
from controlplane.model.errors import WeirError
from controlplane.v1 import routing_pb2, routing_pb2_grpc
from tests.agents.plans import plan
from tests.agents.replica import Replica
from tests.agents.servers import answering, serving
from tests.agents.timing import eventually
from tests.agents.whole import config, get, running, settings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def application(**answers: Any) -> AsyncIterator[str]:
    """Serve JSON (or what a function returns) at /name for every keyword; yields the base URL."""

    async def handle(request: web.Request) -> web.Response:
        answer = answers[request.path.strip("/")]
        return web.json_response(answer() if callable(answer) else answer)

    app = web.Application()
    app.router.add_get("/{name}", handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_everything_at_once(tmp_path: Path, replica: Replica) -> None:
    """Probes, ingress, traffic, queues and the applied plan arrive at the replica in one report,
    and are visible at /metrics and /api/plan."""
    await replica.publish(plan(3))
    polls = itertools.count()

    def outcomes() -> dict[str, Any]:
        return {"boot": 1, "channels": {"alipay": {"ok": min(next(polls), 7)}}}

    async with (
        serving(answering(OK)) as channel_port,
        serving(answering(b"HTTP/1.1 503 X\r\n\r\n")) as ingress_port,
        application(outcomes=outcomes, queues={"callbacks": 1.5}) as base,
    ):
        values = settings(
            tmp_path, replica.address, outcomes_url=f"{base}/outcomes", queues_url=f"{base}/queues"
        )
        values["channels"]["alipay"]["probe"] = {
            "targets": {"east": f"localhost:{channel_port}"},
            "timeout_ms": 60_000,
        }
        values["regions"]["north"]["ingress"] = {
            "target": f"127.0.0.1:{ingress_port}",
            "timeout_ms": 60_000,
        }
        async with running(Agent(config(values), boot=42)) as addresses:
            await eventually(
                lambda: any(
                    r.cells[0].probe.ok > 1
                    and r.cells[0].traffic.ok == 7
                    and r.ingress[0].failures_since_success > 1
                    and r.queue_lag_s == {"callbacks": 1.5}
                    and r.applied_epoch == 3
                    for r in replica.reports
                ),
                "one report with everything",
            )
            status, ready = await get(addresses, "/readyz")
            _, metrics = await get(addresses, "/metrics")
            _, shown = await get(addresses, "/api/plan")
            live, _ = await get(addresses, "/livez")
    assert (status, live) == (200, 200)
    assert "plan 3" in ready
    report = replica.reports[-1]
    assert (report.boot, report.agent, report.region) == (42, "a-0", "east")
    assert {p.phase for p in report.phases} >= {"tcp", "first_byte"}
    for line in (
        'weir_agent_probes_total{channel="alipay",outcome="ok",region="east"}',
        'weir_agent_ingress_probes_total{outcome="error",region="east",target="north"}',
        'weir_agent_probe_failures_total{reason="status",region="east"}',
        'weir_agent_queue_lag_seconds{queue="callbacks",region="east"} 1.5',
        "weir_agent_plan_epoch 3.0",
        "weir_agent_link_up 1.0",
        "weir_agent_disk_ok 1.0",
        "weir_build_info{",
        'weir_probe_phase_seconds_bucket{channel="alipay",le="',
    ):
        assert line in metrics, line
    view = json.loads(shown)
    assert view["epoch"] == 3
    assert view["committed_at"] == "2023-11-14T22:13:20.123Z"
    assert view["routes"][0]["weights"][0] == {"region": "east", "weight_bp": 7000}
    assert view["breakers"] == []


async def test_cold_start_in_an_outage(tmp_path: Path) -> None:
    """No replica, no etcd, no Redis: the agent is ready with the plan from its disk, and serves it
    to local sidecars."""
    values = settings(tmp_path, f"127.0.0.1:{free_port()}", grpc_listen="127.0.0.1:0")
    file = PlanFile(tmp_path / "state")
    file.prepare()
    file.save(Saved(plan=plan(12), highest_epoch=12))
    file.close()
    async with running(Agent(config(values))) as addresses:
        assert (await get(addresses, "/readyz"))[0] == 200
        assert json.loads((await get(addresses, "/api/plan"))[1])["epoch"] == 12
        async with grpc.aio.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as channel:
            stub = routing_pb2_grpc.RoutingServiceStub(channel)
            assert await stub.GetPlan(routing_pb2.GetPlanRequest(), timeout=60) == plan(12)


async def test_relay_follows_the_agent(tmp_path: Path, replica: Replica) -> None:
    """A sidecar at the relay gets every newer plan, byte for byte what the replica sent."""
    values = settings(tmp_path, replica.address, grpc_listen="localhost:0")
    async with (
        running(Agent(config(values))) as addresses,
        grpc.aio.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as channel,
    ):
        stub = routing_pb2_grpc.RoutingServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPlan(routing_pb2.GetPlanRequest(), timeout=60)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        watch = stub.WatchPlan(routing_pb2.WatchPlanRequest(subscriber="sidecar"), timeout=60)
        for epoch in (1, 2):
            await replica.publish(plan(epoch))
            assert await watch.read() == plan(epoch)
        watch.cancel()


async def test_not_ready_without_a_plan(tmp_path: Path) -> None:
    """Alive but not ready until there is something to follow."""
    agent = Agent(config(settings(tmp_path, f"127.0.0.1:{free_port()}")))
    async with running(agent) as addresses:
        assert (await get(addresses, "/livez"))[0] == 200
        assert (await get(addresses, "/readyz"))[0] == 503
        assert (await get(addresses, "/api/plan"))[0] == 503
        assert (await get(addresses, "/metrics"))[0] == 200


async def test_an_unwritable_state_folder_is_said_and_survived(
    tmp_path: Path, replica: Replica
) -> None:
    """A disk that cannot be used costs the cold start, not the agent."""
    (tmp_path / "file").write_text("")
    await replica.publish(plan(2))
    values = settings(tmp_path, replica.address, state_dir=str(tmp_path / "file" / "state"))
    with capture_logs() as logs:
        async with running(Agent(config(values))) as addresses:
            await eventually(lambda: ("east/a-0", 2, "") in replica.acks, "applied without a disk")
            _, metrics = await get(addresses, "/metrics")
    assert "weir_agent_disk_ok 0.0" in metrics
    assert "state_dir_unwritable" in [log["event"] for log in logs]


async def test_envoy_files_follow_the_plan(tmp_path: Path, replica: Replica) -> None:
    """With `agent.xds_dir` the files of a local Envoy have the plan before it is acknowledged."""
    await replica.publish(plan(2))
    values = settings(tmp_path, replica.address, xds_dir=str(tmp_path / "xds"))
    for port, region in enumerate(values["regions"].values(), 8080):
        region["endpoints"] = [f"127.0.0.1:{port}"]
    async with running(Agent(config(values))):
        await eventually(lambda: ("east/a-0", 2, "") in replica.acks, "applied")
        assert json.loads((tmp_path / "xds" / "eds-alipay.json").read_text())


async def test_two_agents_cannot_share_a_folder(tmp_path: Path) -> None:
    """The second agent ends with a clear error; the first is not disturbed."""
    values = config(settings(tmp_path, f"127.0.0.1:{free_port()}"))
    async with running(Agent(values)) as addresses:
        with pytest.raises(WeirError, match="in use by another agent"):
            await Agent(values).run()
        assert (await get(addresses, "/livez"))[0] == 200


async def test_page_status_and_events(
    tmp_path: Path, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People and machines see the epochs, a stream tells each newer plan, and is bounded."""
    monkeypatch.setattr("agents.http.STREAMS_MAX", 1)
    values = settings(tmp_path, replica.address)
    async with running(Agent(config(values))) as addresses:
        assert "No plan yet" in (await get(addresses, "/"))[1]
        url = "http://{}:{}/api/events".format(*addresses.http)
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            told: list[int] = []

            async def until(epoch: int) -> None:
                while not told or told[-1] < epoch:
                    line = (await answer.content.readline()).decode()
                    if line.startswith("data: "):
                        told.append(json.loads(line[6:])["applied_epoch"])

            await until(0)
            assert (await get(addresses, "/api/events"))[0] == 503
            for epoch in (3, 4):
                await replica.publish(plan(epoch))
                await until(epoch)
        assert told == sorted(told)
        assert set(told) == {0, 3, 4}
        status = json.loads((await get(addresses, "/api/status"))[1])
        _, html = await get(addresses, "/")
    assert status == {
        "agent": "a-0", "region": "east", "plan_epoch": 4, "applied_epoch": 4, "highest_epoch": 4,
        "disk_well": True, "stopping": False,
    }  # fmt: skip
    assert "Weir agent east/a-0" in html
    assert "<td>alipay</td>" in html
