"""The plan's way through a replica when its disk does not keep up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace

from agents.store import Saved
from controlplane.adapters.wire import decode_plan
from controlplane.model.ids import Epoch
from controlplane.model.plan import Plan, Route
from controlplane.runtime.board import PlanBoard
from controlplane.serving import PlanServing
from controlplane.simulation.demo import EAST, NORTH, SOUTH, demo_topology

TOPOLOGY = demo_topology()


class StalledFile:
    """A disk whose first write takes until it is let go."""

    def __init__(self) -> None:
        self.started, self.go = threading.Event(), threading.Event()
        self.epochs: list[int] = []

    def save(self, saved: Saved) -> None:
        """Keep the epoch once the disk answers."""
        self.started.set()
        assert self.go.wait(60)
        assert saved.plan is not None
        self.epochs.append(decode_plan(saved.plan).epoch)


def plan(epoch: int) -> Plan:
    """A plan of every channel."""
    rows = dict.fromkeys(("alipay", "wechatpay"), ((EAST, 7000), (NORTH, 2500), (SOUTH, 500)))
    two = ((EAST, 7000), (NORTH, 3000))
    routes = tuple(
        Route(channel=channel.name, weights=rows.get(channel.name, two))
        for channel in TOPOLOGY.channels
    )
    return Plan(epoch=Epoch(epoch), routes=routes)


async def test_a_stalled_disk_delays_no_plan() -> None:
    """While the write of plan 1 hangs, plans 2 and 3 are published; then only the newest is
    written, after the first, also when the replica ends meanwhile."""
    disk, board, committed = StalledFile(), PlanBoard(TOPOLOGY), asyncio.Queue[Plan]()

    async def follow() -> AsyncIterator[SimpleNamespace]:
        while True:
            yield SimpleNamespace(plan=await committed.get())

    serving = PlanServing(
        file=disk,  # type: ignore[arg-type]
        board=board,
        ads=SimpleNamespace(),  # type: ignore[arg-type]
        metrics=SimpleNamespace(set_plan=lambda _plan: None),  # type: ignore[arg-type]
        dataplane=lambda: None,
    )
    store = SimpleNamespace(follow=follow)
    following = asyncio.ensure_future(serving.follow(store, lambda: Epoch(0)))  # type: ignore[arg-type]
    saving = asyncio.ensure_future(serving.save())
    committed.put_nowait(plan(1))
    assert await asyncio.to_thread(disk.started.wait, 60)
    committed.put_nowait(plan(2))
    committed.put_nowait(plan(3))
    async with asyncio.timeout(60):
        while board.epoch < 3:
            await asyncio.sleep(0)
    assert disk.epochs == []
    saving.cancel()
    following.cancel()
    threading.Timer(0.0, disk.go.set).start()
    await asyncio.gather(saving, following, return_exceptions=True)
    assert disk.epochs == [1, 3]
