"""The loss campaign: `python tests/locks/lock_campaign.py --rounds 1000 --seed 1`.

Each round forces one loss on a world that works, waits until locks are granted again, and goes on in
the same history. At the end the exact checker looks at all of it. Prints one line of JSON.
"""

# ruff: noqa: T201 - run as a script it prints

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # or gRPC's handlers hang a server's start

import structlog
from lock_faults import LOSSES, UNORDERED_BY_LINEAGE, Fault
from lock_history import Verdict, check
from lock_world import LIMITS, World

from controlplane.dev.servers import EtcdCluster, scratch_root
from controlplane.locks.grant import Mode

SETTLE = 12
"""Grants to see after a loss before the next."""
VERBOSE = bool(os.environ.get("VERBOSE"))


@dataclass(slots=True)
class Outcome:
    """What a campaign found."""

    mode: Mode
    rounds: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    lost_updates: int = 0
    refused_by_guard: int = 0
    epochs: int = 0
    seconds: float = 0.0
    recovery_ms: list[int] = field(default_factory=list)

    def as_json(self) -> str:
        """One line."""
        times = sorted(self.recovery_ms) or [0]
        return json.dumps({
            "mode": self.mode.value, "losses": sum(self.rounds.values()), "by_kind": self.rounds,
            "grants": self.verdict.grants, "backwards": self.verdict.backwards,
            "duplicates": self.verdict.duplicates, "overlaps": self.verdict.overlaps,
            "lost_updates": self.lost_updates, "refused_by_guard": self.refused_by_guard,
            "epochs": self.epochs, "seconds": round(self.seconds, 1),
            "granting_again_ms": {"p50": times[len(times) // 2], "max": times[-1]},
            "examples": self.verdict.examples,
        })  # fmt: skip


async def campaign(
    directory: Path,
    etcd: EtcdCluster,
    *,
    rounds: int,
    seed: int,
    mode: Mode,
    faults: Sequence[Fault] = LOSSES,
    prefix: str = "campaign",
    world: World | None = None,
    settle: int = SETTLE,
) -> Outcome:
    """Run `rounds` losses, every kind in turn in a shuffled order."""
    rng = random.Random(seed)
    outcome = Outcome(mode)
    faults = [
        fault for fault in faults
        if mode is Mode.STRICT or fault.__name__ not in UNORDERED_BY_LINEAGE
    ]  # fmt: skip
    world = world or World(
        directory=directory,
        endpoints=etcd.endpoints,
        prefix=prefix,
        mode=mode,
        seed=seed,
        limits=LIMITS,
    )
    started = time.perf_counter()
    stop = False
    async with world.running(), asyncio.TaskGroup() as group:
        group.create_task(world.work(lambda: stop))
        try:
            await world.granted(5)
            deck: list[Fault] = []
            for _ in range(rounds):
                if not deck:
                    deck = rng.sample(faults, len(faults))
                fault = deck.pop()
                if VERBOSE:
                    print(len(world.history), fault.__name__, file=sys.stderr)
                await fault(world, etcd)
                outcome.rounds[fault.__name__] += 1
                before = time.perf_counter()
                await world.granted(settle)
                outcome.recovery_ms.append(int((time.perf_counter() - before) * 1000))
        finally:
            stop = True
    outcome.epochs = max((grant.token >> 32 for grant in world.history), default=0)
    outcome.verdict = check(world.history)
    reopened = world.ledger.open()
    outcome.lost_updates = reopened.lost_updates()
    outcome.refused_by_guard = reopened.refused
    reopened.close()
    outcome.seconds = time.perf_counter() - started
    return outcome


def main() -> int:
    """Run from the command line; exit 1 when a promise was broken."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=36)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], default="strict")
    args = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    directory = Path(tempfile.mkdtemp(prefix="weir-locks-", dir=scratch_root()))
    etcd = EtcdCluster(directory, size=3).start()
    try:
        outcome = asyncio.run(
            campaign(directory, etcd, rounds=args.rounds, seed=args.seed, mode=Mode(args.mode))
        )
    finally:
        etcd.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print(outcome.as_json())
    return 0 if outcome.verdict.ok and not outcome.lost_updates else 1


if __name__ == "__main__":
    sys.exit(main())
