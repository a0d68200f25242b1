"""The keeper of the epoch: finds out that Redis is another one, and puts a new epoch in force.

Every replica looks about four times a second whether the fence belongs to the server it meets, and
compares epochs with etcd once a second. Only the leader (`may_bump`) acts:

    PREPARE   a nonce marks this lineage of data, and dies with it            (Redis)
    ALLOCATE  an epoch above all that was ever seen is bound to the nonce     (etcd)
    INSTALL   the epoch comes into force if nonce and identity still match    (Redis)
    OPEN      after one quarantine: grants of the lost epoch have expired     (Redis)

Each step may be repeated, delayed, or carried on by another replica after a crash. The quarantine
is measured by the keeper's own monotonic clock from when it first saw the epoch, so a jump of
Redis's clock cannot shorten it; a leader that takes over measures it anew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Final

import structlog

from controlplane.clock import Clock
from controlplane.locks import codec
from controlplane.locks.grant import Limits
from controlplane.locks.lineage import Lineage
from controlplane.locks.metrics import LockMetrics
from controlplane.locks.register import EpochRegister, Record
from controlplane.locks.runner import Scripts
from controlplane.locks.token import COUNTER_MAX
from controlplane.model.errors import WeirError

log = structlog.get_logger(__name__)

LOOK_MS: Final = 250
"""How often Redis's identity is looked at; a call that meets a loss makes the keeper look at
once."""
COMPARE_MS: Final = 1_000
"""How often the epoch is compared with etcd's."""
LOOK_TIMEOUT_MS: Final = 3_000
"""A look that takes longer is given up: etcd or Redis hangs."""
ROLL_AT: Final = COUNTER_MAX // 2
"""Counter at which the epoch is rolled, days before it would be used up."""


class Keeper:
    """Keeps one prefix on one Redis. `may_bump` tells whether this replica leads."""

    def __init__(
        self,
        scripts: Scripts,
        register: EpochRegister,
        lineage: Lineage,
        *,
        limits: Limits,
        clock: Clock,
        may_bump: Callable[[], bool],
        metrics: LockMetrics,
        seed: random.Random,
    ) -> None:
        self._scripts = scripts
        self._register = register
        self._lineage = lineage
        self._limits = limits
        self._clock = clock
        self._may_bump = may_bump
        self._metrics = metrics
        self._random = seed
        self._kick = asyncio.Event()
        self._record = Record(epoch=0)
        self._compared_ms: int | None = None
        self._first_seen: tuple[int, int] = (0, 0)
        self._warned = ""
        self.bumps = 0
        """Epochs put in force by this process."""

    def kick(self) -> None:
        """Look now: a call met a loss."""
        self._kick.set()

    async def run(self) -> None:
        """Look for ever; trouble with Redis or etcd is waited out."""
        while True:
            pause_ms = LOOK_MS
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_MS / 1000):
                    pause_ms = await self.look()
            except (WeirError, TimeoutError) as error:
                state = "unreachable" if self._lineage.state == "open" else self._lineage.state
                self._settle(self._lineage.epoch, state, str(error) or "timed out")
            try:
                async with asyncio.timeout(pause_ms / 1000):
                    await self._kick.wait()
                await self._clock.sleep_ms(LOOK_MS / 25)  # many callers meet one loss together
            except TimeoutError:
                pass
            self._kick.clear()

    async def look(self) -> int:
        """Look once and do what is to be done; return in how many ms to look again."""
        seen = codec.status(await self._scripts.run("status", None))
        self._warn_of_eviction(seen.eviction)
        if seen.role != "master":
            self._settle(self._lineage.epoch, "replica", "the server became a replica")
            self._scripts.link.leave("it became a replica")
            return LOOK_MS
        whole = seen.intact and seen.epoch >= self._lineage.floor
        moved = seen.epoch != self._record.epoch
        if not whole or moved or seen.state != "open" or self._due():
            await self._compare()
        if not seen.intact:
            return await self._replace(seen.epoch, 0, "lost")
        if seen.epoch != self._record.epoch or seen.epoch < self._lineage.floor:
            # another lineage was in force since, or etcd was restored from a backup
            return await self._replace(seen.epoch, seen.epoch + 1, "stale")
        if seen.counter >= ROLL_AT:
            return await self._replace(seen.epoch, seen.epoch + 1, "exhausted")
        if seen.state == "quarantine":
            return await self._quarantine(seen.epoch)
        self._settle(seen.epoch, "open", "")
        return LOOK_MS

    def _due(self) -> bool:
        now = self._clock.monotonic_ms()
        return self._compared_ms is None or now - self._compared_ms >= COMPARE_MS

    async def _compare(self) -> None:
        self._record, _ = await self._register.read()
        self._compared_ms = self._clock.monotonic_ms()
        self._lineage.saw(self._record.epoch)

    async def _replace(self, epoch: int, floor: int, why: str) -> int:
        """Put a new epoch in force if we lead; else say why nothing is granted."""
        if why != "exhausted" or not self._may_bump():
            self._settle(epoch, why if why != "exhausted" else "open", f"epoch {epoch} {why}")
        if not self._may_bump():
            return LOOK_MS
        await self.bump(floor, why)
        return 0

    async def bump(self, floor: int, why: str) -> None:
        """PREPARE, ALLOCATE, INSTALL. `floor`: an intact fence below it is replaced too."""
        nonce = f"{self._random.getrandbits(64):016x}"
        prepared = await self._scripts.run("prepare", None, floor, nonce)
        if prepared[0] != b"pending":
            return
        nonce, above = bytes(prepared[1]).decode(), int(prepared[2])
        self._record = await self._register.allocate(
            nonce, above=above, floor=self._lineage.floor, ttl_usual_ms=self._limits.ttl_usual_ms
        )
        epoch = self._record.epoch
        self._lineage.saw(epoch)
        reply = await self._scripts.run("install", None, nonce, epoch, self._record.ttl_high_ms)
        if reply[0] == b"installed":
            self.bumps += 1
            log.warning(
                "lock_epoch_installed", epoch=epoch, cause=why, state=bytes(reply[1]).decode(),
                quarantine_ms=self._record.quarantine_ms,
            )  # fmt: skip

    async def _quarantine(self, epoch: int) -> int:
        """Open the epoch when its quarantine is over; return how long that takes."""
        now = self._clock.monotonic_ms()
        if self._first_seen[0] != epoch:
            self._first_seen = (epoch, now)
        self._settle(epoch, "quarantine", "grants of the lost epoch may still be believed in")
        left = self._first_seen[1] + self._quarantine_ms() - now
        if left > 0:
            return min(left, LOOK_MS)
        if self._may_bump():
            await self._scripts.run("open", None, epoch)
            self._record = await self._register.opened(epoch)
            return 0
        return LOOK_MS

    def _quarantine_ms(self) -> int:
        return max(self._record.quarantine_ms, self._limits.ttl_usual_ms)

    def _settle(self, epoch: int, state: str, why: str) -> None:
        self._metrics.set_lock_state(state)
        if self._lineage.settle(epoch, state):
            self._metrics.set_lock_epoch(epoch)
            log.info("lock_epoch", epoch=epoch, state=state, why=why)

    def _warn_of_eviction(self, policy: str) -> None:
        if policy != self._warned:
            self._warned = policy
            if policy and policy != "noeviction":
                log.warning(
                    "redis_evicts", maxmemory_policy=policy,
                    remedy="set maxmemory-policy noeviction: evicted locks end before their time",
                )  # fmt: skip
