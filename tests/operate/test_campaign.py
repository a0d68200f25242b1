"""Which replica may campaign: none from a failed or drained region while another can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from controlplane import config
from controlplane.app import Replica
from controlplane.clock import SystemClock
from controlplane.model.ids import Epoch, RegionName
from controlplane.model.plan import Phase, Plan, RegionStatus
from controlplane.v1 import admin_pb2 as pb
from tests.operate.lab import REGIONS, Lab, mutation, settings
from tests.xds.lab import eventually


def status(name: str, how: str) -> RegionStatus:
    """One region of a plan: well, failed, or drained."""
    phase = Phase.FAILED if how == "failed" else Phase.HEALTHY
    return RegionStatus(name=RegionName(name), phase=phase, drained=how == "drained")


@pytest.mark.parametrize(
    ("east", "north", "south", "may"),
    [
        ("well", "well", "well", True),
        ("well", "failed", "drained", True),
        ("failed", "well", "well", False),
        ("drained", "well", "well", False),
        ("drained", "failed", "well", False),
        ("failed", "failed", "failed", True),  # somebody must lead
        ("drained", "failed", "drained", True),
    ],
)
def test_a_region_that_is_out_stands_back(
    tmp_path: Path, east: str, north: str, south: str, may: bool
) -> None:
    """The plan in force decides: failed or drained stands back, unless every region is out."""
    ports = dict.fromkeys(REGIONS, (1, 2))
    data = settings(["127.0.0.1:1"], tmp_path, ports, "t")
    data["cluster"] |= {"id": "east-0", "region": "east"}
    data["server"] |= {"grpc_listen": "127.0.0.1:1", "http_listen": "127.0.0.1:2"}
    replica = Replica(config.parse(yaml.safe_dump(data)), SystemClock())
    assert replica.eligible(), "nothing is known yet"
    regions = tuple(map(status, ("east", "north", "south"), (east, north, south)))
    replica.board.adopt(Plan(epoch=Epoch(1), regions=regions))
    assert replica.eligible() is may
    replica.file.close()


async def led(lab: Lab) -> str:
    """Return the region that leads, once one does."""
    found: list[str | None] = []

    def leads() -> bool:
        found.append(lab.leader())
        return found[-1] is not None

    await eventually(leads, "one leads")
    assert found[-1]
    return found[-1]


async def drain(lab: Lab, *regions: str) -> None:
    """Drain regions, and wait until their replicas know."""
    for region in regions:
        async with lab.admin(await led(lab)) as stub:
            request = pb.DrainRegionRequest(
                region=region, mutation=mutation(override_rules=["capacity", "headroom"])
            )
            asked = await stub.DrainRegion(request)
            await stub.WaitOperation(pb.WaitOperationRequest(id=asked.id, timeout_ms=60_000))
        await eventually(lambda r=region: not lab.replicas[r].eligible(), "it knows of its drain")


async def test_the_drained_wait_for_nobody_when_nobody_else_can(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only region that is not drained loses its only replica: a drained one leads, and does not
    wait for others that do not exist. Here that wait would be an hour."""
    patient = replace(lab.replicas["east"].elector._rules, ineligible_extra_ms=3_600_000)
    for replica in lab.replicas.values():
        monkeypatch.setattr(replica.elector, "_rules", patient)
        monkeypatch.setattr(replica.elector._candidate, "_rules", patient)
    first = await led(lab)
    others = [name for name in REGIONS if name != first]
    await drain(lab, *others)
    await lab.stop(first)
    await eventually(lambda: lab.leader() in others, "a drained one leads")


async def test_a_drained_region_leaves_the_leadership_to_another(lab: Lab) -> None:
    """The leader goes; of the others the drained one stands back, though it is the first in rank (unless
    the leadership has moved meanwhile, on a starved machine), so the other leads."""
    first = await led(lab)
    drained = next(name for name in REGIONS if name != first)
    await drain(lab, drained)
    leader = await led(lab)
    assert leader != drained
    (well,) = set(REGIONS) - {leader, drained}
    await lab.stop(leader)
    assert await led(lab) == well
