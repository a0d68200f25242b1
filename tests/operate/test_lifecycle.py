"""A replica's life as its operator meets it: start, reload, skew, stop. Real processes where signals matter."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import yaml
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from controlplane import config
from controlplane.adapters.etcd import EtcdClient, EtcdOptions
from controlplane.adapters.xds_resources import EDS
from controlplane.app import Replica
from controlplane.clock import SystemClock
from controlplane.dev.process import Child, free_ports
from controlplane.dev.servers import http_get, wait_until
from controlplane.model.plan import LocalOverride
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import agent_pb2
from tests.operate.lab import READY_S, REGIONS, Lab, report, settings
from tests.xds.lab import plan

USAGE, FAILED, UNREACHABLE = 2, 1, 4


def config_file(endpoints: list[str], directory: Path, cluster: str) -> tuple[Path, int, int]:
    """Write a configuration for one replica; return it with its gRPC and HTTP ports."""
    found = free_ports(6)
    ports = {name: (found[2 * i], found[2 * i + 1]) for i, name in enumerate(REGIONS)}
    data = settings(endpoints, directory / "state", ports, cluster)
    data["cluster"] |= {"id": "east-0", "region": "east"}
    rpc, http = ports["east"]
    data["server"] |= {"grpc_listen": f"127.0.0.1:{rpc}", "http_listen": f"127.0.0.1:{http}"}
    path = directory / "weir.yaml"
    path.write_text(yaml.safe_dump(data))
    return path, rpc, http


def replica(path: Path, directory: Path, **env: str) -> Child:
    """A replica as a process of its own."""
    argv = [sys.executable, "-m", "controlplane.cli.main", "controlplane", "--config", str(path)]
    return Child("replica", argv, directory / "replica.log", env=env)


def metric(port: int, line: str) -> bool:
    """Whether /metrics has this line."""
    answer = http_get(port, "/metrics", 5)
    return bool(answer) and line in answer[1].decode()


def audit(endpoints: list[str], cluster: str) -> str:
    """What the operations of a cluster say in etcd."""

    async def read() -> str:
        kv = await EtcdClient.connect(endpoints, options=EtcdOptions(), clock=SystemClock())
        try:
            kvs, _ = await kv.get_prefix(f"/weir/{cluster}/operations/".encode())
        finally:
            await kv.aclose()
        found = [pb.Operation.FromString(entry.value) for entry in kvs]
        return "\n".join(f"{op.kind} {op.target} {op.by} {op.reason} {op.message}" for op in found)

    return asyncio.run(read())


def ready(port: int) -> bool:
    """Whether /readyz says yes."""
    answer = http_get(port, "/readyz", 5)
    return answer is not None and answer[0] == 200


def served(port: int) -> dict[str, tuple[int, int]]:
    """Ask the ADS server; return regions and staleness bound in ms by assignment."""
    request = discovery_pb2.DiscoveryRequest(
        node=base_pb2.Node(id="asker", user_agent_name="envoy"),
        type_url=EDS,
        resource_names=["payments.alipay", "payments.unionpay"],
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as link:
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(link)
        (answer,) = itertools.islice(stub.StreamAggregatedResources(iter([request])), 1)
    found = [endpoint_pb2.ClusterLoadAssignment.FromString(r.value) for r in answer.resources]
    return {
        cla.cluster_name: (len(cla.endpoints), cla.policy.endpoint_stale_after.ToMilliseconds())
        for cla in found
    }


def test_sigterm_ends_a_replica_in_order_and_systemd_is_told(
    operate_etcd: list[str], tmp_path: Path
) -> None:
    """READY=1 once it serves, STOPPING=1 and exit code 0 after SIGTERM; the leader key is given back."""
    path, _, http = config_file(operate_etcd, tmp_path, "life1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(READY_S)
        child = replica(path, tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify")).start()
        assert sock.recv(100) == b"READY=1"
        wait_until(lambda: metric(http, "weir_leader 1.0"), "leads", READY_S)
        wait_until(lambda: ready(http), "ready", READY_S)
        child.signal(signal.SIGTERM)
        assert sock.recv(100) == b"STOPPING=1"
        assert child.process
        assert child.process.wait(READY_S) == 0
    assert "leadership_lost" in child.log.read_text()


def test_a_reload_takes_a_good_file_and_refuses_a_bad_one(
    operate_etcd: list[str], tmp_path: Path
) -> None:
    """SIGHUP: a changed policy is taken, a broken file or one that needs a restart changes nothing."""
    path, _, http = config_file(operate_etcd, tmp_path, "life2")
    child = replica(path, tmp_path).start()
    wait_until(lambda: metric(http, "weir_leader 1.0"), "leads", READY_S)
    good = yaml.safe_load(path.read_text())

    def reload(data: object, result: str, count: int) -> None:
        path.write_text(yaml.safe_dump(data))
        child.signal(signal.SIGHUP)
        line = f'weir_config_reloads_total{{result="{result}"}} {count}.0'
        wait_until(lambda: metric(http, line), line, READY_S)

    reload(good | {"policy": {**good["policy"], "dead_band_bp": 75}}, "ok", 1)
    assert "dead_band_bp: None -> 75" in child.log.read_text()
    wait_until(
        lambda: "dead_band_bp: None -> 75" in audit(operate_etcd, "life2"), "audited", READY_S
    )
    reload(good | {"polcy": {}}, "refused", 1)
    assert "did you mean policy?" in child.log.read_text()
    reload(good | {"cluster": {**good["cluster"], "name": "other"}}, "refused", 2)
    assert "cluster.name needs a restart" in child.log.read_text()
    child.stop()


BAD = {
    "cluster.id: is required": {"cluster": {"name": "x", "region": "east"}},
    "allow_plaintext": {"server": {"grpc_listen": "0.0.0.0:1"}},
    "regions": {"regions": {}},
}
"""Words of the one line, and the sections that earn it."""


def test_a_bad_configuration_ends_the_start_with_one_line(
    operate_etcd: list[str], tmp_path: Path
) -> None:
    """One line that says what to do, the contract's exit code, and nothing is left running."""
    path, _, _ = config_file(operate_etcd, tmp_path, "life3")
    good, started = yaml.safe_load(path.read_text()), {}
    for i, (words, change) in enumerate(BAD.items()):
        directory = tmp_path / str(i)
        directory.mkdir()
        (directory / "weir.yaml").write_text(yaml.safe_dump(good | change))
        started[words] = replica(directory / "weir.yaml", directory).start()
    for words, child in started.items():
        assert child.process
        assert child.process.wait(READY_S) == USAGE
        assert words in child.log.read_text()
        assert "Traceback" not in child.log.read_text()


def test_a_taken_port_ends_the_start_with_one_line(operate_etcd: list[str], tmp_path: Path) -> None:
    """A port somebody else holds is named, with what to do."""
    path, rpc, _ = config_file(operate_etcd, tmp_path, "life4")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", rpc))
        taken.listen()
        child = replica(path, tmp_path).start()
        assert child.process
        assert child.process.wait(READY_S) == UNREACHABLE
    assert f"127.0.0.1:{rpc} cannot be used" in child.log.read_text()
    assert "Traceback" not in child.log.read_text()


def test_a_replica_without_etcd_starts_serves_its_last_good_plan_and_says_so(
    operate_etcd: list[str], tmp_path: Path
) -> None:
    """With etcd gone a restarted replica is ready with the plan from its disk, raises the alarm, and
    serves data planes that plan, without the channel that fails closed."""
    path, rpc, http = config_file(operate_etcd, tmp_path, "life5")
    data = yaml.safe_load(path.read_text())
    for number, region in enumerate(data["regions"].values(), 1):
        region["endpoints"] = [f"127.0.0.1:{number}"]
    data["channels"]["unionpay"] |= {"on_isolation": "fail_closed", "endpoint_stale_after_ms": 9000}
    path.write_text(yaml.safe_dump(data))
    child = replica(path, tmp_path).start()
    wait_until(lambda: ready(http), "ready", READY_S)
    wait_until((tmp_path / "state" / "plan").exists, "plan on disk", READY_S)
    assert served(rpc) == {"payments.alipay": (3, 0), "payments.unionpay": (2, 9000)}
    child.stop()
    data["coordination"]["endpoints"] = [f"127.0.0.1:{free_ports(1)[0]}"]
    path.write_text(yaml.safe_dump(data))
    child = replica(path, tmp_path).start()
    wait_until(lambda: ready(http), "ready", READY_S)
    answer = http_get(http, "/api/status", 60)
    assert answer
    assert b'"coordinated": false' in answer[1]
    assert b"last known good plan stays in force" in answer[1]
    assert served(rpc) == {"payments.alipay": (3, 0), "payments.unionpay": (0, 0)}
    child.stop()


def test_a_replica_that_serves_data_planes_nothing_is_not_ready(tmp_path: Path) -> None:
    """A plan that does not fit the configured endpoints reaches no data plane: the replica says so
    instead of taking their streams, and is ready with the first one that fits."""
    path, _, _ = config_file(["127.0.0.1:1"], tmp_path, "life6")
    data = yaml.safe_load(path.read_text())
    for number, region in enumerate(data["regions"].values(), 1):
        region["endpoints"] = [f"127.0.0.1:{number}"]
    made = Replica(config.parse(yaml.safe_dump(data)), SystemClock())
    assert made.not_ready_because() == "no plan yet"
    for epoch, channel, words in ((1, "renamed", "served nothing"), (2, "alipay", "")):
        found = plan(epoch, {"east": 10_000}, channel=channel)
        made.board.adopt(found)
        made.serving.to_data_planes(found, confirmed=True)
        assert words in made.not_ready_because()
    assert made.not_ready_because() == ""


def test_a_reload_keeps_a_local_override_at_the_data_planes(tmp_path: Path) -> None:
    """SIGHUP publishes what is served, a local override included, and confirms nothing by that."""
    path, _, _ = config_file(["127.0.0.1:1"], tmp_path, "life7")
    data = yaml.safe_load(path.read_text())
    for number, region in enumerate(data["regions"].values(), 1):
        region["endpoints"] = [f"127.0.0.1:{number}"]
    path.write_text(yaml.safe_dump(data))
    made = Replica(config.load(path), SystemClock())
    made.loop = SimpleNamespace(reconfigure=lambda _: None)
    made.views = SimpleNamespace(leader=lambda: SimpleNamespace(coordinated=True))
    made.board.adopt(plan(1, {"east": 10_000}))
    local = LocalOverride(
        revision=1, replica="east-0", by="olga", reason="test", expires_at_ms=1, left_ms=60_000
    )
    over = replace(plan(1, {"north": 10_000}), local=local)
    asyncio.run(made.board.lay(over))
    made.reload(path)
    assert made.ads.snapshot is not None
    assert made.ads.snapshot.plan == over
    assert not made.ads.confirmed


async def test_a_newer_agent_is_understood(lab: Lab) -> None:
    """A report with a field this version does not know (one minor version on) is taken."""
    message = report("east", ["north"], os.getpid(), 1)
    message.version = "0.2.0"
    unknown = b"\xfa\x06\x03new"  # field 111, three bytes
    async with lab.channel() as channel:
        call = channel.stream_stream(
            "/controlplane.v1.AgentService/Report",
            response_deserializer=agent_pb2.ReportResponse.FromString,
        )()
        await call.write(message.SerializeToString() + unknown)
        answer = await call.read()
        assert not answer.error.message


async def test_reads_answer_from_one_region_when_the_others_are_dark(lab: Lab) -> None:
    """With two replicas gone the third still tells status, regions and reasons."""
    for name in ("north", "south"):
        for talker, region in zip(lab.talkers, REGIONS, strict=True):
            if region == name:
                talker.cancel()
        await lab.stop(name)
    async with lab.admin("east") as stub, asyncio.timeout(90):
        status = await stub.GetStatus(pb.GetStatusRequest())
        assert status.plan_epoch > 0
        assert {r.name for r in (await stub.ListRegions(pb.ListRegionsRequest())).regions} == set(
            REGIONS
        )
        steps = None
        while steps is None:
            try:
                steps = (await stub.ExplainRoute(pb.ExplainRouteRequest(channel="alipay"))).steps
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # nobody leads yet
                    raise
                await asyncio.sleep(0.1)
        assert steps
