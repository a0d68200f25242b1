"""How quickly everybody obeys: what every replica serves and what Envoy has applied, with times.

Used by the end-to-end tests and by `bench/failover.py`. Replicas are watched as a subscriber would
(WatchPlan), Envoy is asked for its own configuration: what it says is what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc

from controlplane.clock import Clock
from controlplane.v1 import routing_pb2, routing_pb2_grpc

ENVOY_EVERY_MS = 50
RETRY_MS = 100
ASK_S = 1.0
ENVOY = "envoy"
_PREFIX = "payments."

Weights = Mapping[str, Mapping[str, int]]
"""Channel -> region -> basis points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one source said at one moment. Envoy tells neither epoch (0) nor phases (none)."""

    at_ms: int
    source: str
    epoch: int
    weights: Weights
    phases: Mapping[str, str] = field(default_factory=dict)

    def share_bp(self, region: str, channel: str | None = None) -> int:
        """Largest weight of a region over all channels, or its weight of one."""
        return max(
            (w.get(region, 0) for name, w in self.weights.items() if channel in {None, name}),
            default=0,
        )


class Recorder:
    """Records every plan that replicas serve and every change of Envoy's endpoints."""

    def __init__(self, topology: Mapping[str, Any], clock: Clock) -> None:
        self._topology = topology
        self._clock = clock
        self.seen: list[Seen] = []
        self._over = False

    @contextlib.asynccontextmanager
    async def recording(self) -> AsyncIterator[Recorder]:
        """Record while the block runs."""
        async with asyncio.TaskGroup() as tasks:
            watchers = [
                tasks.create_task(self._watch(replica["id"], replica["grpc"]))
                for replica in self._topology["replicas"]
            ]
            watchers.append(tasks.create_task(self._watch_envoy(self._topology["envoy"]["admin"])))
            try:
                yield self
            finally:
                # a cancellation that meets a client's own timeout may be lost: say it twice
                self._over = True
                for watcher in watchers:
                    watcher.cancel()

    def of(self, source: str) -> Iterator[Seen]:
        """Everything one source said, oldest first."""
        return (seen for seen in self.seen if seen.source == source)

    def latest(self, source: str) -> Seen | None:
        """Return the last thing a source said."""
        return max(self.of(source), key=lambda seen: seen.at_ms, default=None)

    def zero_since(
        self, source: str, region: str, after_ms: int, channel: str | None = None
    ) -> int | None:
        """Return when a source first gave the region nothing (of one channel, or of any), at or
        after `after_ms`."""
        hits = (
            s.at_ms
            for s in self.of(source)
            if s.at_ms >= after_ms and not s.share_bp(region, channel)
        )
        return next(hits, None)

    async def _watch(self, source: str, address: str) -> None:
        while not self._over:
            async with grpc.aio.insecure_channel(address) as link:
                stub = routing_pb2_grpc.RoutingServiceStub(link)
                name = f"measure-{source}"
                with contextlib.suppress(grpc.aio.AioRpcError):
                    async for plan in stub.WatchPlan(routing_pb2.WatchPlanRequest(subscriber=name)):
                        phases = {state.name: state.phase for state in plan.regions}
                        self._note(source, plan.epoch, _of_plan(plan), phases)
                        ack = routing_pb2.AckPlanRequest(subscriber=name, epoch=plan.epoch)
                        await stub.AckPlan(ack, timeout=ASK_S)
            await self._clock.sleep_ms(RETRY_MS)

    async def _watch_envoy(self, admin: str) -> None:
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        last: Weights = {}
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self._over:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    now = await envoy_weights(session, admin)
                    if now != last:
                        self._note(ENVOY, 0, now)
                        last = now
                await self._clock.sleep_ms(ENVOY_EVERY_MS)

    def _note(
        self, source: str, epoch: int, weights: Weights, phases: Mapping[str, str] | None = None
    ) -> None:
        now_ms = self._clock.monotonic_ms()
        self.seen.append(
            Seen(at_ms=now_ms, source=source, epoch=epoch, weights=weights, phases=phases or {})
        )


def _of_plan(plan: Any) -> Weights:
    return {r.channel: {w.region: w.weight_bp for w in r.weights} for r in plan.routes}


async def envoy_weights(session: aiohttp.ClientSession, admin: str) -> Weights:
    """Return the weights that Envoy has applied, from its own configuration dump."""
    url = f"http://{admin}/config_dump?include_eds&resource=dynamic_endpoint_configs"
    async with session.get(url) as answer:
        dump = await answer.json(content_type=None)
    found: dict[str, dict[str, int]] = {}
    for config in dump.get("configs", []):
        assignment = config["endpoint_config"]
        name = str(assignment["cluster_name"])
        if name.startswith(_PREFIX):
            found[name.removeprefix(_PREFIX)] = {
                entry["locality"]["region"]: int(entry.get("load_balancing_weight", 0))
                for entry in assignment.get("endpoints", [])
            }
    return found


def violations(seen: Sequence[Seen]) -> list[str]:
    """Return every broken promise in a record: sums, epochs that go back or mean two plans."""
    broken = []
    newest: dict[str, int] = {}
    meaning: dict[int, Weights] = {}
    for one in seen:
        for channel, weights in one.weights.items():
            if sum(weights.values()) != 10_000:  # noqa: PLR2004 - the promise itself
                broken.append(f"{one.source}: {channel} sums to {sum(weights.values())}")
        if one.source != ENVOY:
            if one.epoch < newest.get(one.source, 0):
                broken.append(f"{one.source}: epoch {one.epoch} after {newest[one.source]}")
            newest[one.source] = one.epoch
            if meaning.setdefault(one.epoch, one.weights) != one.weights:
                broken.append(f"{one.source}: epoch {one.epoch} has two meanings")
    return broken
