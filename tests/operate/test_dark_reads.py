"""Night 5: etcd is ill, and whoever looks is answered: every read command, of every replica, from what
it read last, and said to be old.

No read of etcd gives up in these tests: an answer that waited for one would never come. So what is
measured elsewhere, in ms, is shown here without a clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from controlplane import app as replica_app
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.wire import unix_ms
from controlplane.cli.app import __name__ as commands_module
from controlplane.cli.app import app as commands
from controlplane.clock import SystemClock
from controlplane.dev.servers import EtcdCluster
from controlplane.model.errors import UnavailableError
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc
from tests.operate.lab import REGIONS, Lab, mutation, running
from tests.support.etcd import *  # noqa: F403 - fixtures

PATIENCE_S = 200
"""Only a hung answer needs that long."""
READS = {
    "status": (0, "NO ETCD QUORUM: last known good, read "),
    "regions": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "channels": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "routes": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "breakers": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "events": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "failovers": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "explain alipay": (0, "ETCD DOES NOT ANSWER: last known good, read "),
    "agents": (0, "REPLICA"),
    "doctor": (1, "all else is last known good, read "),
    "version": (0, "weir"),
}
"""Exit code and words of each; agents come from the peers' digests, which need no etcd (the lab's follow no plan)."""
AGELESS = ("agents", "doctor", "version")
ILLNESSES: dict[str, Callable[[EtcdCluster], None]] = {
    "killed": lambda etcd: [m.child.kill() for m in etcd.members[1:]].clear(),
    "hung": lambda etcd: [m.child.pause() for m in etcd.members].clear(),
}


@dataclass(frozen=True)
class Night:
    """Three replicas, and the etcd members that can be made ill."""

    etcd: EtcdCluster
    lab: Lab

    def heal(self) -> None:
        """Let every member run again."""
        for member in self.etcd.members:
            if member.child.alive:
                member.child.resume()
            else:
                member.child.start()


@pytest.fixture
async def night(
    own_etcd: EtcdCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Night]:
    """Replicas whose reads of etcd never give up."""
    call = EtcdClient._call

    async def patient(self: EtcdClient, name: str, *args: Any, **options: Any) -> Any:
        while True:
            try:
                return await call(self, name, *args, **options)
            except UnavailableError:
                if name != "range":
                    raise

    monkeypatch.setattr(EtcdClient, "_call", patient)
    async with running(own_etcd.endpoints, tmp_path, "night") as lab:
        made = Night(own_etcd, lab)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await all_known(lab)
            yield made
        finally:
            made.heal()


async def weir(lab: Lab, region: str, *args: str) -> tuple[int | None, str]:
    """Run the command line at one replica; again while it has no answer: a starved one may be late."""
    while True:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "controlplane.cli.main", *args,
            env={**os.environ, "WEIR_SERVER": lab.address(region)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        if process.returncode not in (4, 5):
            return process.returncode, out.decode()


async def ask(lab: Lab, region: str) -> list[Any]:
    """Ask one replica what rests on etcd, and one that knows nothing new; no deadline of ours."""
    async with lab.admin(region) as stub:
        return [
            await stub.ListRegions(pb.ListRegionsRequest()),
            await stub.ListEvents(pb.ListEventsRequest()),
            await stub.ExplainRoute(pb.ExplainRouteRequest(channel="alipay")),
            await stub.GetStatus(pb.GetStatusRequest()),
        ]


async def all_known(lab: Lab) -> None:
    """Wait until every replica answers from etcd, and remembers an event (what is followed comes from
    its memory)."""
    for region in REGIONS:
        while any(answer.HasField("last_known") for answer in await ask(lab, region)):
            await asyncio.sleep(0.05)
        async with lab.admin(region) as stub:
            first = await stub.WatchEvents(pb.WatchEventsRequest(backlog=1)).read()
            assert first.id > 0


async def told_old(lab: Lab) -> None:
    """Wait until every replica knows and says that etcd does not answer."""
    for region in REGIONS:
        while not all(answer.HasField("last_known") for answer in await ask(lab, region)):
            await asyncio.sleep(0.05)


async def frames(lab: Lab, region: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Give what the console of a replica is sent."""
    url = f"http://127.0.0.1:{lab.ports[region][1]}/api/events"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        kind = ""
        async for line in answer.content:
            name, _, rest = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = rest
            elif name == "data":
                yield kind, json.loads(rest)


def test_every_read_command_is_in_the_table() -> None:
    """A new one cannot be left out of the night."""
    names = {
        command.name or command.callback.__name__
        for command in commands.registered_commands
        if command.callback.__module__
        == commands_module  # `main` adds the others when it is loaded
    }
    assert names == {name.split()[0] for name in READS}


@pytest.mark.parametrize("illness", ILLNESSES)
async def test_night_5_every_read_command_answers_while_etcd_does_not(
    night: Night, illness: str
) -> None:
    """Members killed, or all of them hung: each read answers with what was known, and how old it is."""
    lab = night.lab
    ILLNESSES[illness](night.etcd)
    async with asyncio.timeout(PATIENCE_S):
        await told_old(lab)  # also by whoever led, and by whoever nobody had asked
        for region in REGIONS:
            regions, events, explained, status = await ask(lab, region)
            assert all(len(r.votes) == 2 for r in regions.regions)
            assert {s.rule for s in explained.steps} >= {"evidence", "base_share", "plan"}
            assert "leader_elected" in {event.kind for event in events.events}
            assert not status.coordinated
            later = (await ask(lab, region))[-1].heartbeat_age_ms
            assert later == -1 or later >= status.last_known.age_ms
            for answer in (regions, events, explained, status):
                assert answer.last_known.age_ms >= 0
                assert answer.last_known.read_at.seconds > 0
        for command, (code, words) in READS.items():
            found = await weir(lab, "south", *command.split())
            assert (found[0], words in found[1]) == (code, True), (command, found)
            found = await weir(lab, "south", "-o", "json", *command.split())
            assert found[0] == code, (command, found)
            if command not in AGELESS:
                assert json.loads(found[1])["last_known"]["age_ms"] >= 0
        async with lab.admin("south") as stub:
            assert (await stub.WatchEvents(pb.WatchEventsRequest(backlog=1)).read()).id > 0
    night.heal()
    async with asyncio.timeout(PATIENCE_S):
        await all_known(lab)


async def test_night_5_the_console_stays_alive_while_etcd_hangs(night: Night) -> None:
    """Every replica's page goes on being told the status, and that its regions are old."""
    lab = night.lab
    ILLNESSES["hung"](night.etcd)
    for region in REGIONS:
        async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(frames(lab, region)) as told:
            last: dict[str, dict[str, Any]] = {}
            async for kind, data in told:
                last[kind] = data
                if all("last_known" in last.get(k, {}) for k in ("status", "regions")):
                    break
            assert last["status"]["coordinated"] is False
            assert len(last["regions"]["regions"]) == len(REGIONS)


async def test_what_a_replica_does_by_itself_is_among_its_events(night: Night) -> None:
    """A local override cannot be in etcd yet: the replica that holds it tells, and no other."""
    lab = night.lab
    ILLNESSES["hung"](night.etcd)
    async with asyncio.timeout(PATIENCE_S):
        await told_old(lab)
        async with lab.admin("south") as stub:
            await stub.DrainRegion(
                pb.DrainRegionRequest(region="east", mutation=mutation(local=True))
            )
            own = (await stub.ListEvents(pb.ListEventsRequest())).events[0]
            assert (own.id, own.kind, own.region, own.severity) == (
                0,
                "local_drain",
                "east",
                "warning",
            )
            assert "without a quorum" in own.message
        async with lab.admin("north") as stub:
            events = (await stub.ListEvents(pb.ListEventsRequest())).events
            assert "local_drain" not in {event.kind for event in events}


async def test_what_stands_by_a_word_is_told_while_etcd_does_not_answer(night: Night) -> None:
    """Who froze it and until when, as last read, at every replica; a local drain only where it holds."""
    lab = night.lab

    async def told(region: str) -> dict[str, pb.Order]:
        async with lab.admin(region) as stub:
            status = await stub.GetStatus(pb.GetStatusRequest())
            return {order.kind: order for order in status.orders}

    async with asyncio.timeout(PATIENCE_S):
        async with lab.admin("south") as stub:
            await stub.Freeze(pb.FreezeRequest(mutation=mutation(reason="INC-9")))
        while not all([await told(region) for region in lab.ports]):
            await asyncio.sleep(0.05)
        ILLNESSES["hung"](night.etcd)
        await told_old(lab)
        async with lab.admin("south") as stub:
            change = mutation(local=True, ttl_s=600, reason="INC-10")
            await stub.DrainRegion(pb.DrainRegionRequest(region="east", mutation=change))
        south, north = await told("south"), await told("north")
    assert (set(north), set(south)) == ({"freeze"}, {"freeze", "drain"})
    assert (north["freeze"].reason, north["freeze"].local) == ("INC-9", False)
    drain = south["drain"]
    assert (drain.target, drain.reason, drain.local) == ("east", "INC-10", True)
    assert drain.by
    left_ms = unix_ms(drain.expires_at) - SystemClock().wall_ms()
    assert 0 < left_ms <= 600_000


async def test_night_5_a_replica_that_starts_in_the_dark_tells_what_its_disk_knows(
    night: Night,
) -> None:
    """It never read etcd: regions and routes are those of its last good plan, and it says so."""
    lab = night.lab
    ILLNESSES["hung"](night.etcd)
    await lab.stop("south")
    again = replica_app.Replica(lab.replicas["south"].config, lab.replicas["south"].clock)
    lab.replicas["south"] = again
    lab.tasks["south"] = asyncio.ensure_future(again.run())
    async with asyncio.timeout(PATIENCE_S):
        async with lab.channel("south") as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            wait = {"wait_for_ready": True}
            regions = await stub.ListRegions(pb.ListRegionsRequest(), **wait)
            assert [r.phase for r in regions.regions] == ["healthy"] * 3
            assert regions.last_known.age_ms == -1
            assert not regions.last_known.HasField("read_at")
            explained = await stub.ExplainRoute(pb.ExplainRouteRequest(channel="alipay"))
            assert [s.rule for s in explained.steps] == ["region"] * 3 + ["plan"]
            assert explained.last_known.age_ms == -1
            with pytest.raises(grpc.aio.AioRpcError) as unknown:
                await stub.ExplainRoute(pb.ExplainRouteRequest(channel="nonesuch"))
            assert unknown.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        code, out = await weir(lab, "south", "explain", "alipay")
    assert (code, "not read since its start" in out) == (0, True), out
