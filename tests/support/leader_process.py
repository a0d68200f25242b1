"""A replica reduced to what coordination needs: the real Elector and plan store, one plan a tick.

Run as `python -m tests.support.leader_process JSON`; stdout gets one JSON line per thing done:
{"at_ms", "op", "term", "epoch", "revision"}. `op` is elected, lost (it stepped back, whatever its
last write said), try, ok, refused, unknown, stopping. Times are ms of CLOCK_BOOTTIME, comparable between the processes of one machine.

Settings (JSON): endpoints, cluster, replica, region, rank, tick_ms, rules {…}, options {…},
`stop_at`: number of the write before which the process stops itself (SIGSTOP) after it has looked
at its leadership, `sleep_at`: the same before it looks, `without`: protections to leave out (see `Unprotected`), `fresh`: do not load.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.etcd_leader import EtcdLeaderKey
from controlplane.adapters.etcd_links import EtcdOptions
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.clock import SystemClock
from controlplane.model.errors import AmbiguousError, DeposedError, UnavailableError
from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.plan import Event, Plan, RegionStatus, Route
from controlplane.ports import Compare, Leadership
from controlplane.runtime.election import ElectionRules
from controlplane.runtime.leadership import Elector

EAST, NORTH = RegionName("east"), RegionName("north")
PLAN = Plan(
    epoch=Epoch(1),
    routes=(Route(channel=ChannelName("alipay"), weights=((EAST, 7000), (NORTH, 3000))),),
    regions=(RegionStatus(name=EAST), RegionStatus(name=NORTH)),
)


class Unprotected(EtcdPlanStore):
    """The plan store with protections left out, to see the checker turn red."""

    without: frozenset[str] = frozenset()

    def _guards(self, chain: Any) -> tuple[Compare, ...]:
        term, link = super()._guards(chain)
        kept = [] if "term" in self.without else [term]
        return tuple(kept if "chain" in self.without else [*kept, link])

    async def _already(self, chain: Any, plan: Plan) -> Any:
        return None if "epoch" in self.without else await super()._already(chain, plan)

    async def _write(
        self, leadership: Any, chain: Any, beat: Any, ops: Any, events: Any, guards: Any
    ) -> int:
        kept = () if "epoch" in self.without else guards
        return await super()._write(leadership, chain, beat, ops, events, kept)


class Careless(Elector):
    """An elector that does not look at its deadline."""

    @property
    def leadership(self) -> Leadership | None:
        """Return what it holds, however late it is."""
        return self._held


def say(clock: SystemClock, op: str, **more: Any) -> None:
    """Write one line of history."""
    print(json.dumps({"at_ms": clock.monotonic_ms(), "op": op, **more}), flush=True)  # noqa: T201


class Replica:
    """One process that campaigns and, while it leads, commits a plan a tick."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.writes = 0
        self.slept = False
        self.term = 0  # what it writes under; 0: load first
        self.led = 0  # the term it believes to lead under
        self.epoch = 0

    async def run(self) -> None:
        """Campaign and lead until SIGTERM."""
        s, clock = self.settings, self.clock
        kv = await EtcdClient.connect(
            s["endpoints"], options=EtcdOptions(**s.get("options", {})), clock=clock
        )
        self.store = Unprotected(kv, s["cluster"], clock)
        self.store.without = frozenset(s.get("without", ()))
        elector = (Careless if "deadline" in self.store.without else Elector)(
            key=EtcdLeaderKey(kv, s["cluster"], clock),
            touch=self.store.touch,
            writing=self.store.writing,
            replica=s["replica"],
            region=s.get("region", "east"),
            clock=clock,
            rank=s.get("rank", 0),
            rules=ElectionRules(**s.get("rules", {})),
        )
        self.store.on_write, self.store.on_deposed = elector.renewed, elector.deposed
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        say(clock, "ready", replica=s["replica"])
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as self.group:
                self.tasks = [
                    self.group.create_task(elector.run()),
                    self.group.create_task(self.ticks(elector)),
                ]
        say(clock, "stopped")
        await kv.aclose()

    def stop(self) -> None:
        """Leave in order."""
        say(self.clock, "stopping", term=self.term)
        for task in self.tasks:
            task.cancel()

    async def ticks(self, elector: Elector) -> None:
        """Tick while we lead, at once when we begin to."""
        tick_s = self.settings.get("tick_ms", 200) / 1000
        while True:
            if self.writes + 1 == self.settings.get("sleep_at") and not self.slept:
                self.slept = True
                os.kill(os.getpid(), signal.SIGSTOP)
            if (leadership := elector.leadership) is not None:
                self.led = leadership.term
                await self.tick(leadership)
            elif self.led:
                say(self.clock, "lost", term=self.led, depositions=elector.depositions)
                self.term = self.led = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(tick_s):
                    await elector.wait_change()

    async def tick(self, leadership: Leadership) -> None:
        """Commit one plan."""
        try:
            if leadership.term != self.term:
                say(self.clock, "elected", term=leadership.term)
                loaded = None if self.settings.get("fresh") else await self.store.load()
                self.epoch, self.term = loaded.plan.epoch if loaded else 0, leadership.term
            self.writes += 1
            if self.writes == self.settings.get("stop_at"):
                os.kill(os.getpid(), signal.SIGSTOP)
            epoch = self.epoch + 1
            plan = replace(PLAN, epoch=Epoch(epoch), decided_at_ms=self.clock.monotonic_ms())
            say(self.clock, "try", term=leadership.term, epoch=epoch)
            events = [Event(kind="tick", message="one more")]
            done = await self.store.commit(leadership, plan, b"s" * 20_000, events)
            self.epoch = epoch
            say(self.clock, "ok", term=leadership.term, epoch=epoch, revision=done.revision)
        except DeposedError as error:
            say(self.clock, "refused", term=leadership.term, error=str(error))
            self.term = 0
        except (UnavailableError, AmbiguousError) as error:
            say(self.clock, "unknown", term=leadership.term, error=str(error))
            self.term = 0  # load before the next write


if __name__ == "__main__":
    asyncio.run(Replica(json.loads(sys.argv[1])).run())
