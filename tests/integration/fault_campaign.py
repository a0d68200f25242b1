"""The fault campaign: `python -m tests.integration.fault_campaign --schedules 60 --seed 1`.

A schedule is a few steps, drawn from its seed: one fault or two at once (`tests.support.fault_world`),
and while they last an operator's command, sent with one request_id to two replicas. When they are
over, the command is repeated at the third replica until it has an answer. Then
- the history is sound (`tests.support.history`): terms, epochs, the chain, events;
- the command took effect exactly once if anybody said that it was accepted, never twice;
- within `LIVE_MS` the leader writes again, and its plan carries what operators asked for.
Prints one line of JSON a schedule, and a last one; exit 1 when a promise was broken.
"""

# ruff: noqa: T201 - run as a script it prints

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from controlplane.adapters import wire
from controlplane.adapters.etcd_keys import unpack_plan
from controlplane.dev.servers import scratch_root
from controlplane.model.errors import WeirError
from controlplane.ports import WatchEvent
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import common_pb2
from tests.operate.lab import REGIONS
from tests.support.daemons import READY_S, refused
from tests.support.fault_world import FAULTS, Fault, Happening, World, fault_world
from tests.support.history import check
from tests.support.replicas import now_ms, until

LIVE_MS = 10_000
PATIENCE_MS = 60_000
"""Longest wait for what is late; that it was late is said."""
ANSWER_S = 8.0
REGION, CHANNEL = "south", "alipay"
FORCED = ["capacity", "headroom", "lag", "drill", "channel_served"]


@dataclass(slots=True)
class Command:
    """One change: asked for under one request_id, whatever happens."""

    kind: str
    token: str
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    accepted: set[str] = field(default_factory=set)

    @property
    def told(self) -> bool:
        """Whether its reason becomes an intent and an event."""
        return self.kind in {"drain", "override"} and bool(self.accepted)

    def request(self) -> tuple[str, Any]:
        """Method and message."""
        mutation = pb.Mutation(
            request_id=self.request_id, reason=self.token, override_rules=FORCED, ttl_s=3600
        )
        match self.kind:
            case "drain":
                return "DrainRegion", pb.DrainRegionRequest(region=REGION, mutation=mutation)
            case "undrain":
                return "UndrainRegion", pb.UndrainRegionRequest(region=REGION, mutation=mutation)
            case "override":
                weights = [
                    common_pb2.RegionWeight(region="east", weight_bp=6000),
                    common_pb2.RegionWeight(region="north", weight_bp=4000),
                ]
                return "SetOverride", pb.SetOverrideRequest(
                    channel=CHANNEL, weights=weights, mutation=mutation
                )
            case _:
                return "ClearOverride", pb.ClearOverrideRequest(channel=CHANNEL, mutation=mutation)

    async def ask(self, world: World, region: str) -> bool:
        """Ask one replica; whether the answer settles it."""
        method, request = self.request()
        try:
            answer = await world.group.ask(region, method, request, ANSWER_S)
        except grpc.aio.AioRpcError as error:
            return refused(error)
        self.accepted.add(answer.id)
        return True

    async def settle(self, world: World, rng: random.Random) -> None:
        """Repeat it at one replica after the other until one has answered."""
        end = now_ms() + PATIENCE_MS
        while now_ms() < end:
            if await self.ask(world, rng.choice(REGIONS)):
                return
            await asyncio.sleep(0.1)


@dataclass(slots=True)
class Outcome:
    """What a schedule found."""

    seed: int
    faults: list[str] = field(default_factory=list)
    commands: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    live_ms: list[int] = field(default_factory=list)
    writes: int = 0

    def as_json(self) -> str:
        """One line."""
        return json.dumps({
            "seed": self.seed, "faults": self.faults, "commands": self.commands,
            "writes": self.writes, "live_ms": self.live_ms, "violations": self.violations,
        })  # fmt: skip


async def schedule(
    world: World, seed: int, *, steps: int = 3, faults: Sequence[Fault] = FAULTS
) -> Outcome:
    """Run one schedule on a world that works, and judge the whole history."""
    rng, outcome = random.Random(seed), Outcome(seed)
    commands: list[Command] = []
    for number in range(steps):
        for region in REGIONS:  # a start takes long on a busy machine: two faults are enough
            await until(lambda r=region: world.group.ready(r), f"{region} is back", READY_S)
        chosen = rng.sample(faults, 2 if rng.random() < 0.45 else 1)
        kind = await next_kind(world, rng)
        command = Command(kind, f"s{seed}-{number}-{kind}") if rng.random() < 0.7 else None
        outcome.faults.append("+".join(fault.__name__ for fault in chosen))
        await step(world, rng, chosen, command)
        healed = now_ms()
        if command is not None:
            await command.settle(world, rng)
            commands.append(command)
        outcome.live_ms.append(await live(world, healed, command))
        if outcome.live_ms[-1] > LIVE_MS:
            outcome.violations.append(f"live: {outcome.live_ms[-1]} ms after {outcome.faults[-1]}")
    events = await world.recorded()
    outcome.writes = len(events)
    outcome.violations += check(events, world.cluster)
    for command in commands:
        outcome.commands[command.kind] += 1
        outcome.violations += once(world, command)
    return outcome


async def next_kind(world: World, rng: random.Random) -> str:
    """Return a command that changes something as things stand."""
    kvs, _ = await world.kv.get_prefix(world.keys.intents)
    there = {kv.key.removeprefix(world.keys.intents).decode() for kv in kvs}
    return rng.choice([
        "undrain" if f"drain/{REGION}" in there else "drain",
        "clear" if f"override/{CHANNEL}" in there else "override",
    ])  # fmt: skip


async def step(
    world: World, rng: random.Random, chosen: Sequence[Fault], command: Command | None
) -> None:
    """Let faults begin, the command go out, and the faults end."""
    happening: list[Happening] = []
    asking: list[asyncio.Task[bool]] = []
    order: list[Fault | None] = [*chosen, None]
    rng.shuffle(order)
    try:
        for fault in order:
            if fault is not None:
                happening.append(await fault(world))
            elif command is not None:
                asked = rng.sample(REGIONS, 2)
                asking += [asyncio.ensure_future(command.ask(world, region)) for region in asked]
            await asyncio.sleep(rng.uniform(0, 0.6))
        await asyncio.sleep(rng.choice((0.2, 1.0, 2.5, 5.0)) * rng.uniform(0.5, 1))
    finally:
        for hit in rng.sample(happening, len(happening)):
            await hit.end()
    await asyncio.gather(*asking)


async def live(world: World, healed: int, command: Command | None) -> int:
    """Return after how long the leader writes again, its plan carries every intent, and the last
    command is told among the events, in ms."""
    after = len(world.history)
    while now_ms() - healed < PATIENCE_MS:
        beats = [e for e in world.history[after:] if e.key == world.keys.heartbeat]
        writes = any(json.loads(e.value or b"{}").get("term") for e in beats)
        # weights alone may look alike: those of the override before it move back step by step
        told = command is None or not command.told or bool(named(world, world.keys.events, command))
        if writes and told and await carried(world):
            return now_ms() - healed
        await asyncio.sleep(0.05)
    return PATIENCE_MS


async def carried(world: World) -> bool:
    """Whether the plan in force has every drain and override that is in etcd, and no other."""
    try:
        kvs, _ = await world.kv.get_prefix(world.keys.intents)
        stored = await world.kv.get(world.keys.plan)
    except WeirError:
        return False
    if stored is None:
        return False
    there = {kv.key.removeprefix(world.keys.intents).decode() for kv in kvs}
    plan = wire.parse_plan(unpack_plan(stored.value)[1])
    drained = any(s.name == REGION and s.drained for s in plan.regions)
    route = next(r for r in plan.routes if r.channel == CHANNEL)
    fixed = route.weight(REGION) == 0 and route.weight("east") == 6000  # type: ignore[arg-type]
    return drained == (f"drain/{REGION}" in there) and (
        fixed if f"override/{CHANNEL}" in there else True
    )


def named(world: World, prefix: bytes, command: Command) -> list[WatchEvent]:
    """Return the writes below a prefix that carry the command's reason."""
    token = command.token.encode()
    return [
        e
        for e in world.history
        if e.key.startswith(prefix) and e.value is not None and token in e.value
    ]


def once(world: World, command: Command) -> list[str]:
    """Return how a command broke its promise: accepted, then done once; never twice."""
    found = []
    keys = world.keys
    records = [
        e
        for e in world.history
        if e.key == keys.request(command.request_id) and e.value is not None
    ]
    if len(command.accepted) > 1:
        found.append(f"once: {command.token}: answers differ: {sorted(command.accepted)}")
    if len(records) > 1 or len(records) < bool(command.accepted):
        found.append(
            f"once: {command.token}: accepted as {sorted(command.accepted)}, recorded "
            f"{len(records)} times"
        )
    if command.told:
        intents, told = named(world, keys.intents, command), named(world, keys.events, command)
        if len(intents) != len(records) or len(told) != len(records):
            found.append(
                f"once: {command.token}: {len(records)} records, {len(intents)} intents, "
                f"{len(told)} events"
            )
    return found


async def campaign(seeds: Sequence[int], steps: int, directory: Path) -> bool:
    """Run schedules one after the other on one world; whether all promises were kept."""
    good = True
    async with fault_world(directory, "campaign") as world:
        for seed in seeds:
            outcome = await schedule(world, seed, steps=steps)
            print(outcome.as_json(), flush=True)
            good = good and not outcome.violations
    return good


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="directory that stays, with every log")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + args.schedules)
    if args.keep:
        args.keep.mkdir(parents=True)
        return 0 if asyncio.run(campaign(seeds, args.steps, args.keep)) else 1
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-faults-") as name:
        return 0 if asyncio.run(campaign(seeds, args.steps, Path(name))) else 1


if __name__ == "__main__":
    sys.exit(main())
