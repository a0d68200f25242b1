"""An agent with Envoy's files and an ADS relay under a local override: no process, no socket."""

from __future__ import annotations

from pathlib import Path

from agents.apply import Applier
from agents.sinks import EnvoyFiles
from agents.store import PlanFile
from agents.xds_files import eds_file
from agents.xds_relay import AdsRelay
from controlplane.clock import SystemClock
from controlplane.model.dataplane import ChannelTraffic, DataPlane, Endpoint, RegionEndpoints
from controlplane.model.ids import ChannelName, RegionName
from controlplane.v1 import common_pb2
from tests.agents.plans import plan
from tests.agents.test_apply import running
from tests.agents.timing import ManualClock, eventually

STALE_MS = 2000


def dataplane() -> DataPlane:
    """Two regions, one channel that fails closed."""
    return DataPlane(
        regions=tuple(
            RegionEndpoints(
                region=RegionName(name), endpoints=(Endpoint(host="127.0.0.1", port=port),)
            )
            for name, port in (("east", 1001), ("north", 1002))
        ),
        channels=(ChannelTraffic(name=ChannelName("alipay"), fail_closed=True),),
        stale_after_ms=STALE_MS,
    )


def over(revision: int, left_ms: int, east_bp: int) -> common_pb2.Plan:
    """An override of epoch 7."""
    message = plan(7, east_bp)
    message.local.revision, message.local.left_ms = revision, left_ms
    message.local.replica = "east-0"
    return message


async def test_an_override_reaches_the_relay_past_the_files_and_opens_nothing(
    tmp_path: Path,
) -> None:
    """The files keep the committed plan, the relay follows the override and its end; what fails closed
    and is shut stays shut until a replica confirms with a quorum."""
    clock = ManualClock()
    relay = AdsRelay(dataplane(), clock)
    files = EnvoyFiles(tmp_path / "xds", dataplane(), ("127.0.0.1", 1003))
    east = [RegionName("east"), RegionName("north")]

    def served() -> list[int]:
        assert relay.ads.snapshot is not None
        return [relay.ads.snapshot.plan.routes[0].weight(name) for name in east]

    async with running(Applier(PlanFile(tmp_path / "s"), SystemClock(), [files, relay])) as applier:
        await applier.offer(plan(7, 5000))
        applier.confirm(7)
        await eventually(lambda: relay.ads.confirmed, "confirmed")
        clock.now_ms += STALE_MS + 1
        assert not relay.ads.confirmed
        on_disk = tmp_path / "xds" / eds_file("alipay")
        before = on_disk.read_bytes(), on_disk.stat().st_ino

        for message, weight in ((over(1, 60_000, 1000), 1000), (over(2, 0, 5000), 5000)):
            await applier.offer(message)
            assert served() == [weight, 10_000 - weight]
            assert not relay.ads.confirmed
            assert (on_disk.read_bytes(), on_disk.stat().st_ino) == before
        applier.confirm(7)
        await eventually(lambda: relay.ads.confirmed, "open again")
