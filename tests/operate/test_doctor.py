"""`weir doctor` against real replicas, etcd and Redis: it finds what it needs, and says what is amiss."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from controlplane import __version__
from controlplane.cli import doctor, doctor_reach
from controlplane.cli.client import Credentials
from controlplane.cli.exits import OK
from controlplane.cli.where import Place
from controlplane.clock import SystemClock
from controlplane.dev.ca import DevelopmentCa
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import agent_pb2, agent_pb2_grpc, routing_pb2, routing_pb2_grpc
from tests.operate.lab import Lab, report, settings
from tests.operate.test_cli_where import weir


def described(lab: Lab, directory: Path, etcd: list[str], redis: int) -> Path:
    """Write what `weir dev --tls` writes of itself, for the lab."""
    assert lab.ca is not None
    who = lab.ca.issue("breakglass", "local")
    data = settings(etcd, directory, lab.ports, "any") | {
        "locks": {"primary": f"127.0.0.1:{redis}"}
    }
    (directory / "weir.yaml").write_text(yaml.safe_dump(data))
    topology = {
        "replicas": [{"id": f"{name}-0", "grpc": lab.address(name)} for name in lab.ports],
        "tls": {"ca_file": str(who.ca), "cert_file": str(who.cert), "key_file": str(who.key)},
        "config": str(directory / "weir.yaml"),
    }
    (directory / "topology.json").write_text(json.dumps(topology))
    return who.cert


async def checks(directory: Path, *args: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the doctor as a process; return its exit code and its rows."""
    done = await weir(directory, *args, "-o", "json", "doctor")
    return done.returncode, {row["check"]: row for row in json.loads(done.stdout)["checks"]}


async def test_everything_of_the_local_topology_is_found_without_an_option(
    tls_lab: Lab, tmp_path: Path, operate_etcd: list[str], operate_redis: int
) -> None:
    """etcd, Redis and certificates as much as the replicas; also when only its address is given. Elsewhere a
    configuration says where they are."""
    described(tls_lab, tmp_path, operate_etcd, operate_redis)
    for args in ((), ("--server", tls_lab.address())):
        code, rows = await checks(tmp_path, *args)
        assert code == OK, rows
        assert rows["etcd members"]["seen"].startswith("1 of 1 answer, version ")
        assert rows["redis"]["seen"] == f"primary at 127.0.0.1:{operate_redis}"
        shown = "1 of 1" if args else "3 of 3"
        assert rows["certificates"]["seen"].startswith(f"{shown} replicas show theirs")
        for check in (
            "config",
            "--cert-file",
            "--ca-file",
            "certificates",
            "etcd members",
            "redis",
        ):
            assert rows[check]["result"] == "ok", rows[check]
    (tmp_path / "away").mkdir()
    code, rows = await checks(tmp_path / "away", "--config", str(tmp_path / "weir.yaml"))
    assert rows["etcd members"]["result"] == "ok"  # the file names no certificates: nobody answers
    assert rows["replicas"]["result"] == "failed"


async def test_what_does_not_hold_is_named(
    lab: Lab, tmp_path: Path, operate_etcd: list[str], dead: int
) -> None:
    """A member of etcd and a Redis that take connections and never answer, and a certificate that is over."""
    ca = DevelopmentCa(tmp_path / "ca", SystemClock())
    old = ca.issue("replica", "east", "east-0", expired=True)
    tls = {"ca_file": str(old.ca), "cert_file": str(old.cert), "key_file": str(old.key)}
    hung = f"127.0.0.1:{dead}"
    data = settings([*operate_etcd, hung], tmp_path, lab.ports, "any", tls=tls)
    file = tmp_path / "weir.yaml"
    file.write_text(yaml.safe_dump(data | {"locks": {"primary": hung}}))
    found = {f.check: f for f in await asyncio.to_thread(doctor_reach.tried, Place(), file)}
    assert found["tls.cert_file"].result == "failed"
    assert "expired" in found["tls.cert_file"].seen
    assert found["etcd members"].result == "failed"
    assert f"not {hung}" in found["etcd members"].seen
    assert found["redis"].result == "failed"
    assert hung in found["redis"].seen


@pytest.fixture
def dead() -> Iterator[int]:
    """A port that takes connections into its backlog, as a stopped process does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
async def expired(tmp_path: Path) -> AsyncIterator[tuple[str, Credentials]]:
    """A server whose certificate is over, and what a client needs to meet it."""
    ca = DevelopmentCa(tmp_path / "ca", SystemClock())
    old, who = ca.issue("replica", "east", "old", expired=True), ca.issue("viewer", "test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=old.ca)
    context.load_cert_chain(old.cert, old.key)
    server = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0, ssl=context)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield address, Credentials(ca_file=who.ca, cert_file=who.cert, key_file=who.key)
    server.close()


async def test_a_replica_that_shows_an_expired_certificate_is_named(
    expired: tuple[str, Credentials],
) -> None:
    """What it shows counts, not what lies in a file: a reload may have been refused."""
    address, credentials = expired
    place = Place(addresses=(address, "127.0.0.1:9"), credentials=credentials)
    found = await doctor_reach._served(place)
    assert found.result == "failed"
    assert f"{address}: certificate has expired" in found.seen
    assert "0 of 2 replicas" in found.seen


def test_a_certificate_is_renewed_late_in_its_life_not_always() -> None:
    """One that lives for a day is well for 16 hours; one of a year has to last two weeks."""
    now = SystemClock().wall_ms() / 1000
    hour, day = 3_600, 86_400
    for begin, end, result in (
        (-1 * hour, 23 * hour, "ok"), (-17 * hour, 7 * hour, "warning"),
        (-350 * day, 15 * day, "ok"), (-352 * day, 13 * day, "warning"), (-2 * day, -1, "failed"),
    ):  # fmt: skip
        assert doctor_reach._judged(now + begin, now + end)[0] == result, (begin, end)


# --- versions ------------------------------------------------------------------------------------


async def test_an_agents_version_reaches_every_replica(lab: Lab) -> None:
    """From its report, through the digest of the replica it reports to, into ListAgents of another."""
    talker = lab.talkers[0]
    talker.cancel()
    async with lab.channel("east") as channel:
        watch = routing_pb2_grpc.RoutingServiceStub(channel).WatchPlan(
            routing_pb2.WatchPlanRequest(
                subscriber="east/east-agent-0", kind="agent", region="east"
            )
        )
        await watch.read()
        call = agent_pb2_grpc.AgentServiceStub(channel).Report()
        async with lab.admin("north") as north, asyncio.timeout(60):
            for seq in range(1, 10_000):
                said = agent_pb2.ReportRequest()
                said.CopyFrom(report("east", ["north", "south"], 7, seq))
                said.version = "0.0.9"
                await call.write(said)
                assert await call.read() is not grpc.aio.EOF
                agents = (await north.ListAgents(pb.ListAgentsRequest())).agents
                if any(agent.version for agent in agents):
                    break
    assert [(a.id, a.version) for a in agents] == [("east-agent-0", "0.0.9")]


@pytest.mark.parametrize(
    ("agents", "result", "seen"),
    [
        ({("east", __version__): 2, ("north", __version__): 1}, "ok", f"3 agents {__version__}"),
        ({("east", __version__): 1, ("north", "0.3.0"): 2}, "failed", "2 agents 0.3.0 (north 2)"),
        ({("east", __version__): 1, ("south", "0.0.9"): 1}, "ok", "1 agent 0.0.9 (south 1)"),
        ({("east", ""): 1}, "warning", "1 agent of an unknown version"),
    ],
)
def test_agents_count_for_the_skew(
    agents: dict[tuple[str, str], int], result: str, seen: str
) -> None:
    """One minor version apart is well, two are not, and what nobody told is said."""
    status = pb.GetStatusResponse(replica="east-0", version=__version__)
    (finding,) = doctor._versions(status, Counter(agents))
    assert finding.result == result, finding
    assert seen in finding.seen
