"""Leadership of this replica: the asyncio shell around `runtime.election`.

States: candidate (another leads, or nobody), leader, suspended (we hold the key, but no write of
ours succeeded for `demote_after_ms`). `leadership` is not None only as leader, and it looks at the
clock at every access: a process that was stopped finds itself suspended at its first instruction.

Rules
- Nothing but a guarded write that succeeded renews the deadline, counted from *before* it was sent.
  While writes take long the deadline is as much later as candidates then wait longer
  (`ElectionRules.demote_ms`): a write that takes 2 s would else find it passed whenever it ends.
- The lease of the key is renewed while we hold it, suspended too: on a slow disk it would lapse
  before a write comes through, and an election takes three. It hides no hung tick: see the next.
- Suspended, we read the key. If it still carries our term, one guarded write brings us back under
  the same term; if not, we are a candidate again. Suspended once more without a write of the tick
  in between, we resign: etcd works and the tick hangs. A write of the tick that is under way is
  waited for (the store bounds it), and a read that fails or is late starts the count anew: on a
  slow disk the tick does not hang, its writes do.
- On exit the key is deleted and the lease revoked: the next leader needs no timeout.

Failure modes. etcd without quorum: everybody is suspended or blind, nobody claims. A lost answer
to a claim: the next read shows our lease's key; it is given back and claimed anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from controlplane.clock import Clock, seeded
from controlplane.model.errors import AmbiguousError, DeposedError, UnavailableError, WeirError
from controlplane.model.ids import Term
from controlplane.ports import LeaderKey, LeaderKeyState, Leadership
from controlplane.runtime.election import Candidate, ElectionRules

log = structlog.get_logger(__name__)

RESIGN_MS: Final = 1000
"""Longest time that giving the key back may take."""
HINT_RETRY_MS: Final = 500
KEPT_PER_TTL: Final = 5
"""Renewals of the lease in its time: some may come late."""
READS_KEPT: Final = 8
"""Reads of the key whose duration says how slow etcd is now."""
RESIGNED_REST_MS: Final = 5000
"""How long a leader that resigned because it was cut off lets others go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderInfo:
    """Who leads, as this replica last read it. Term 0: nobody. Ages in ms, None when never read.

    A `read_age_ms` beyond a few seconds means that etcd has no quorum for us.
    """

    replica: str
    region: str
    term: Term
    heartbeat_age_ms: int | None
    read_age_ms: int | None


class Elector:
    """Campaigns, leads, steps down. `run` it once; ask `leadership` before every act.

    `touch` makes one guarded write under a leadership (the plan store's). `eligible`: our region is
    not out; `alone`: nobody else whose region is not out can be heard. Connect the store's
    `on_write` to `renewed` and its `on_deposed` to `deposed`; `writing` tells whether a write of
    its is under way.
    """

    def __init__(
        self,
        *,
        key: LeaderKey,
        touch: Callable[[Leadership], Awaitable[None]],
        replica: str,
        region: str,
        clock: Clock,
        rank: int = 0,
        rules: ElectionRules | None = None,
        eligible: Callable[[], bool] = lambda: True,
        alone: Callable[[], bool] = lambda: False,
        writing: Callable[[], bool] = lambda: False,
        seed: int | None = None,
    ) -> None:
        self._key = key
        self._touch = touch
        self._replica = replica
        self._region = region
        self._clock = clock
        self._rules = rules or ElectionRules()
        self._eligible = eligible
        self._alone = alone
        self._writing = writing
        self._candidate = Candidate(self._rules, rank, seeded(seed))
        self._held: Leadership | None = None
        self._lease = 0
        self._deadline_ms = self._vouched_ms = 0
        self._took_ms: deque[int] = deque(maxlen=self._rules.beats_kept)
        self._reads_ms: deque[int] = deque(maxlen=READS_KEPT)
        self._rest_until_ms = 0
        self._touching = self._touched = False
        self._hint = asyncio.Event()
        self._changed = asyncio.Event()
        self.takeovers = 0
        self.depositions = 0

    # --- what others ask -------------------------------------------------------------------------

    @property
    def leadership(self) -> Leadership | None:
        """Our leadership; None when we do not lead or the local deadline has passed."""
        if self._held is None or self._clock.monotonic_ms() >= self._deadline_ms:
            return None
        return self._held

    @property
    def suspended(self) -> Leadership | None:
        """What we held until the local deadline passed and have not yet seen end; else None."""
        return None if self.leadership is not None else self._held

    @property
    def leader_info(self) -> LeaderInfo:
        """Who leads, as far as this replica knows."""
        now_ms = self._clock.monotonic_ms()
        if (mine := self.leadership) is not None:
            age_ms = now_ms - self._vouched_ms
            return LeaderInfo(
                replica=mine.replica, region=mine.region, term=mine.term,
                heartbeat_age_ms=age_ms, read_age_ms=age_ms,
            )  # fmt: skip
        seen = self._candidate.seen or LeaderKeyState()
        return LeaderInfo(
            replica=seen.replica, region=seen.region, term=seen.term,
            heartbeat_age_ms=self._candidate.beat_age_ms(now_ms),
            read_age_ms=self._candidate.read_age_ms(now_ms),
        )  # fmt: skip

    async def wait_change(self) -> None:
        """Wait until leadership was won, regained or lost since the last call; for one caller, who
        then ticks at once."""
        await self._changed.wait()
        self._changed.clear()

    def renewed(self, term: Term, sent_ms: int) -> None:
        """Take in a guarded write that succeeded; `sent_ms` is from before it was sent."""
        if self._held is not None and self._held.term == term:
            self._took_ms.append(self._clock.monotonic_ms() - sent_ms)
            margin_ms = self._rules.demote_ms(self._took_ms)
            self._deadline_ms = max(self._deadline_ms, sent_ms + margin_ms)
            self._vouched_ms = max(self._vouched_ms, sent_ms)
            self._touched = self._touching

    def deposed(self, term: Term) -> None:
        """Take in that etcd refused a write of this term."""
        if self._held is not None and self._held.term == term:
            self._lose("deposed")

    async def resign(self, *, rest_ms: int = RESIGNED_REST_MS) -> None:
        """Give the key back and let others go first for `rest_ms`. Never raises."""
        self._rest_until_ms = self._clock.monotonic_ms() + rest_ms
        held, lease, self._lease = self._held, self._lease, 0
        if held is None:
            return
        self._lose("resigned")
        with contextlib.suppress(WeirError, TimeoutError):
            async with asyncio.timeout(RESIGN_MS / 1000):
                await self._key.release(held)
                if lease:
                    await self._key.revoke_lease(lease)

    # --- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part in the election until cancelled; resigns on the way out."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen(), name="election-hints")
                group.create_task(self._campaign(), name="election")
                group.create_task(self._keep_lease(), name="election-lease")
        finally:
            await self.resign()

    async def _campaign(self) -> None:
        while True:
            wait_ms = await self._step()
            self._hint.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_ms / 1000):
                    await self._hint.wait()

    async def _step(self) -> int:
        """Do what is due; return how long nothing is, in ms."""
        if self.leadership is not None:
            return min(self._rules.poll_ms, self._left_ms())
        if (seen := await self._observe()) is None:
            return self._rules.poll_ms
        if self._held is not None:
            await self._return(self._held, seen)
            return self._rules.poll_ms
        now_ms = self._clock.monotonic_ms()
        rested = now_ms >= self._rest_until_ms
        due_ms = self._candidate.due_ms(
            eligible=rested and self._eligible(), alone=rested and self._alone()
        )
        if due_ms is not None and now_ms >= due_ms:
            await self._claim(seen)
            return 0
        return self._rules.poll_ms if due_ms is None else min(self._rules.poll_ms, due_ms - now_ms)

    def _left_ms(self) -> int:
        return max(1, self._deadline_ms - self._clock.monotonic_ms())

    async def _observe(self) -> LeaderKeyState | None:
        asked_ms = self._clock.monotonic_ms()
        try:
            seen = await self._key.observe()
        except WeirError as error:
            self._candidate.blind(self._clock.monotonic_ms())
            self._touched = False  # etcd is ill: nothing is said about the tick
            log.debug("leader_key_not_readable", error=str(error))
            return None
        now_ms = self._clock.monotonic_ms()
        self._reads_ms.append(now_ms - asked_ms)
        self._touched = self._touched and now_ms - asked_ms <= self._rules.read_gap_ms
        self._candidate.saw(now_ms, seen)
        return seen

    async def _claim(self, seen: LeaderKeyState) -> None:
        sent_ms, lease = self._clock.monotonic_ms(), 0
        try:
            lease = await self._key.grant_lease(self._rules.ttl_s(self._reads_ms))
            sent_ms = self._clock.monotonic_ms()
            won = await self._key.claim(self._replica, self._region, lease, seen)
        except WeirError as error:
            log.info("claim_failed", error=str(error), seen_term=seen.term)
            won = None
        except asyncio.CancelledError:
            await self._drop(lease)
            raise
        if won is None:
            self._candidate.claim_failed(self._clock.monotonic_ms())
            await self._drop(lease)
            return
        self._held, self._lease, self._touched = won, lease, False
        self._took_ms.clear()
        self._deadline_ms = 0
        self.renewed(
            won.term, sent_ms
        )  # the claim was a guarded write, and says how long one takes
        self._vouched_ms = sent_ms
        self.takeovers += 1
        log.info("elected", term=won.term, after=seen.term, replica=self._replica)
        self._changed.set()

    async def _drop(self, lease: int) -> None:
        """Revoke a lease that won nothing; if the claim did happen, this gives the key back."""
        if lease:
            with contextlib.suppress(WeirError):
                await self._key.revoke_lease(lease)

    async def _return(self, held: Leadership, seen: LeaderKeyState) -> None:
        """Suspended, but etcd answers: come back under the same term, or see that it is over."""
        if seen.term != held.term:
            self._lose("deposed")
            return
        if self._touched:
            if self._writing():
                return
            log.error("tick_hangs", term=held.term)
            await self.resign()
            return
        self._touching = True
        try:
            await self._touch(held)
        except DeposedError:
            self._lose("deposed")
        except (UnavailableError, AmbiguousError) as error:
            log.info("still_suspended", term=held.term, error=str(error))
        else:
            log.info("resumed", term=held.term)
            self._changed.set()
        finally:
            self._touching = False

    def _lose(self, why: str) -> None:
        if self._held is None:
            return
        log.info("leadership_lost", term=self._held.term, why=why)
        self.depositions += why == "deposed"
        self._held, self._deadline_ms = None, 0
        self._changed.set()
        self._hint.set()

    async def _keep_lease(self) -> None:
        """Renew the key's lease while we hold it, beside reads and writes that take their time."""
        while True:
            await self._clock.sleep_ms(self._rules.lease_ttl_s * 1000 // KEPT_PER_TTL)
            held, lease = self._held, self._lease
            if held is None or not lease:
                continue
            with contextlib.suppress(UnavailableError):
                if await self._key.keepalive(lease) == 0 and self._held is held:
                    self._lose("lease lost")

    async def _listen(self) -> None:
        """Wake the campaign at every change of the key; a watch proves nothing, it only hurries."""
        while True:
            try:
                after = (await self._key.observe()).revision
                async for _ in self._key.changes(after):
                    self._hint.set()
            except WeirError as error:
                log.debug("leader_key_not_watched", error=str(error))
                await self._clock.sleep_ms(HINT_RETRY_MS)
