"""One acquisition from the first call to the grant: waiting, losses and lost notifications.

A waiter keeps its place by repeating the same call (same request id) every beat; between beats it
sleeps until it is told. The repetition is also what finds a lock whose holder died, a notification
that was lost, and an epoch that changed. Whoever waits sits out a loss of Redis within its own
deadline; whoever does not is answered at once.

A hand-off happened after our last call was answered "queued", so the grant is ours for one TTL from
before *that* call was sent. When less than half is left, it is renewed before it is returned.

A request may be repeated while an earlier attempt of it still waits here, on a stream that its
caller has left. Redis tells processes apart, not attempts, so the attempts of a request are kept in
the order they began: only the newest withdraws, and one that was granted takes that right from
those before it, for its caller holds what they would give back.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from controlplane.clock import Clock
from controlplane.locks import codec
from controlplane.locks.errors import LineageError, LockHeldError
from controlplane.locks.grant import Grant, Limits, Mode
from controlplane.locks.lineage import Lineage
from controlplane.locks.token import Token
from controlplane.model.errors import NotSentError, RefusedError, UnavailableError

RETRY_MS: Final = 100
"""Pause of a waiter while Redis cannot be reached at all."""
EXPIRY_SLACK_MS: Final = 5
"""How long after a holder's time the first in the queue looks."""
HEADS: Final = 2
"""So many at the head of a queue look when the holder's time is over; the others only beat."""


class Grantor(Protocol):
    """What an acquisition needs of a LockManager, which says what each means."""

    @property
    def clock(self) -> Clock:
        """The clock of deadlines."""
        ...

    @property
    def limits(self) -> Limits:
        """Bounds."""
        ...

    @property
    def lineage(self) -> Lineage:
        """The epoch in force."""
        ...

    @property
    def hand_offs(self) -> dict[str, asyncio.Future[codec.HandOff | None]]:
        """Who waits to be told, by request."""
        ...

    @property
    def attempts(self) -> dict[tuple[str, str, str], list[Acquisition]]:
        """Attempts under way by name, owner and request, the newest last."""
        ...

    async def ask(self, ask: codec.Ask, sent_ms: int) -> codec.Answer:
        """Ask Redis."""
        ...

    async def announce_ttl(self, epoch: int, ttl_ms: int) -> None:
        """Announce a longer TTL."""
        ...

    async def confirm_replicas(self) -> None:
        """Wait for replicas."""
        ...

    async def confirm_epoch(self, epoch: int) -> None:
        """Confirm by a linearizable read."""
        ...

    async def refresh(self, grant: Grant, mode: Mode) -> Grant | None:
        """Renew a grant that was waited for."""
        ...

    def withdraw(self, ask: codec.Ask) -> None:
        """Give back."""
        ...

    def took_over(self, ask: codec.Ask) -> bool:
        """Begin another attempt."""
        ...

    def met(self, cause: str, epoch: int) -> None:
        """React to a refusal."""
        ...

    def retry_after_ms(self, cause: str) -> int:
        """When to come back."""
        ...


class Acquisition:
    """One attempt by one request."""

    def __init__(self, manager: Grantor, ask: codec.Ask, wait_ms: int, mode: Mode) -> None:
        self._manager = manager
        self._ask = ask
        self._key = ask.key
        self._mode = mode
        self._clock = manager.clock
        self._started_ms = self._clock.monotonic_ms()
        self._until_ms = self._started_ms + wait_ms
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Future[codec.HandOff | None] | None = None
        self._trouble: UnavailableError | None = None
        self.in_redis = manager.took_over(ask)
        """What is, or may be, there of this request is ours to give back."""

    async def run(self) -> Grant:
        """Return the grant.

        Raises LockHeldError when others hold it until the end of the wait, UnavailableError
        (LineageError) while Redis or etcd cannot vouch for a grant, RefusedError for a nested or
        upgraded acquisition that is not possible.
        """
        done = False
        attempts = self._manager.attempts.setdefault(self._key, [])
        attempts.append(self)
        try:
            while True:
                grant = await self._step()
                if grant is not None:
                    done = True
                    return grant
        finally:
            self._end(attempts, done=done)

    def _end(self, attempts: list[Acquisition], *, done: bool) -> None:
        """Give back what is in Redis, unless a newer attempt of this request answers for it."""
        manager, request = self._manager, self._ask.request
        if manager.hand_offs.get(request) is self._told:
            manager.hand_offs.pop(request, None)
        if self not in attempts:
            return  # a newer one was granted
        at, newest = attempts.index(self), attempts[-1]
        del attempts[0 if done else at : at + 1]
        if not attempts:
            del manager.attempts[self._key]
        if done or not self.in_redis:
            return
        if newest is self:
            manager.withdraw(self._ask)
        else:
            newest.in_redis = True  # from here on that one has to give it back

    async def _step(self) -> Grant | None:
        turn = self._manager.lineage.turn
        try:
            return await self._ask_once()
        except UnavailableError as error:
            self._trouble = error
            await self._sit_out(turn, error)
            return None

    async def _ask_once(self) -> Grant | None:
        manager, ask = self._manager, self._ask
        if ask.wait and (self._told is None or self._told.done()):
            # before asking: the notification may arrive together with the answer
            self._told = manager.hand_offs[ask.request] = self._loop.create_future()
        sent = self._clock.monotonic_ms()
        try:
            answer = await manager.ask(ask, sent)
        except NotSentError:
            raise
        except BaseException:
            self.in_redis = True  # it may be: the call has left, and Redis runs it all the same
            raise
        if isinstance(answer, codec.Granted):
            self.in_redis = True  # from here on it has to be given back if anything fails
            return await self._vouch(
                answer.token, sent + answer.left_ms, answer.entries, answer.fence_epoch
            )
        if isinstance(answer, codec.Refusal):
            await self._refused(answer)
            return None
        if isinstance(answer, codec.Busy):
            raise LockHeldError(
                ask.name, left_ms=answer.left_ms, waiters=answer.waiters, owner=answer.owner
            )
        self.in_redis = True
        self._trouble = None
        return await self._wait(answer)

    async def _refused(self, answer: codec.Refusal) -> None:
        """Do what makes a repetition worth while, or raise."""
        cause = answer.cause
        if cause == "ttl":
            await self._manager.announce_ttl(answer.epoch, self._ask.ttl_ms)
            return
        if cause == "full":
            raise UnavailableError(f"{self._ask.name}: {answer.epoch} wait already", RETRY_MS)
        if cause == "upgrade":
            raise RefusedError("lock_upgrade", "release the shared lock before asking for it alone")
        if cause == "nested":
            raise RefusedError("lock_nesting", "too many nested entries of one owner")
        self._manager.met(cause, answer.epoch)
        raise LineageError(cause, self._manager.retry_after_ms(cause))

    async def _sit_out(self, turn: asyncio.Event, error: UnavailableError) -> None:
        """Wait until the epoch changes or a little time passes; raise when the wait is over."""
        left = self._until_ms - self._clock.monotonic_ms()
        if left <= 0:
            raise error
        pause = min(left, RETRY_MS if not isinstance(error, LineageError) else error.retry_after_ms)
        try:
            async with asyncio.timeout(pause / 1000):
                await turn.wait()
        except TimeoutError:
            pass

    async def _wait(self, queued: codec.Queued) -> Grant | None:
        """Sleep until told, until the next beat, or until the wait is over."""
        told = self._told
        assert told is not None
        now = self._clock.monotonic_ms()
        pause = self._manager.limits.beat_ms
        if queued.ahead < HEADS and queued.left_ms >= 0:
            pause = min(pause, queued.left_ms + EXPIRY_SLACK_MS)
        pause = min(pause, self._until_ms - now)
        if pause <= 0:
            raise self._trouble or LockHeldError(
                self._ask.name, left_ms=queued.left_ms, waiters=queued.waiters
            )
        alarm = self._loop.call_later(pause / 1000, _wake, told)
        try:
            hand_off = await told
        finally:
            alarm.cancel()
        if hand_off is None:
            return None
        return await self._vouch(hand_off.token, hand_off.deadline_ms, 1, hand_off.token.epoch)

    async def _vouch(
        self, token: Token, deadline_ms: int, entries: int, fence_epoch: int
    ) -> Grant | None:
        """Confirm the grant as the mode promises; None when it was withdrawn and may be retried."""
        manager, ask = self._manager, self._ask
        manager.lineage.saw(fence_epoch)
        await manager.confirm_replicas()
        if self._mode is Mode.STRICT:
            await manager.confirm_epoch(fence_epoch)
        now = self._clock.monotonic_ms()
        grant = Grant(
            name=ask.name, owner=ask.owner, token=token, deadline_ms=deadline_ms,
            ttl_ms=ask.ttl_ms, request=ask.request, verified=self._mode is Mode.STRICT,
            shared=ask.shared, entries=entries, waited_ms=now - self._started_ms,
        )  # fmt: skip
        if deadline_ms - now >= ask.ttl_ms // 2:
            return grant
        return await manager.refresh(grant, self._mode)


def _wake(told: asyncio.Future[codec.HandOff | None]) -> None:
    if not told.done():
        told.set_result(None)
