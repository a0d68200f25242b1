"""One call to etcd: attempts at one member after the other, and the first answer counts.

Theory. A member that does not answer soon is left for the next, and its attempt goes on: on a slow
disk it may still be the first to answer, and to take it back would only ask for the work again.
While etcd elects, members forward to the leader that is gone, and what was forwarded is lost
without a word; so after a first failure the next attempt joins sooner.

Rules. At most `OPEN_MAX` attempts at once, all over when the call's time is (`etcd_pace`): of more,
the first and the newest stay, the first because it is the one that a slow disk answers. Without
`repeat` nothing is sent that may have happened already. `on_unknown` is told of every attempt that
may have happened, before any answer counts.

Failure modes as in `etcd_links`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc

from controlplane.adapters.etcd_links import Attempt, Fault, Link, Links, Metadata, classify, typed
from controlplane.clock import Clock
from controlplane.model.errors import AmbiguousError, UnavailableError

OPEN_MAX: Final = 6
AGAIN_SOONER: Final = 3
"""After a first failure the next attempt joins after this part of the usual patience."""
_READS: Final = frozenset({"range", "keepalive", "status", "alarms", "members"})

_T = TypeVar("_T")


@dataclass(slots=True)
class _Try:
    """One attempt. `metadata` are empty until the request goes out."""

    link: Link
    sent_ms: int
    metadata: Metadata = ()


class Call(Generic[_T]):
    """One call; `run` it once."""

    def __init__(
        self,
        links: Links,
        clock: Clock,
        name: str,
        attempt: Attempt[_T],
        *,
        repeat: bool,
        on_unknown: Callable[[], None] | None = None,
    ) -> None:
        self._links = links
        self._clock = clock
        self._name = name
        self._attempt = attempt
        self._repeat = repeat
        self._on_unknown = on_unknown
        self._going: dict[asyncio.Task[_T], _Try] = {}
        self._failures = 0
        self._unknown = False
        self._last = "no attempt"
        self._begun_ms = clock.monotonic_ms()
        self._end_ms = self._begun_ms + links.pace.call_ms(self._begun_ms)

    async def run(self) -> _T:
        """Return the first answer; raises UnavailableError, AmbiguousError or etcd's refusal."""
        self._links.stats.calls[self._name] += 1
        try:
            while self._left_ms() > 0 and (self._repeat or not self._unknown):
                newest = self._begin()
                answer = await self._wait(newest)
                if answer is not None:
                    return answer.result()
                if newest not in self._going:
                    await self._links.backoff(self._failures)
        finally:
            for task in self._going:
                task.cancel()
        tried = f"{self._failures} tries; {self._last}"
        if self._unknown and self._name not in _READS:
            self._links.stats.ambiguous += 1
            raise AmbiguousError(f"etcd {self._name}: outcome unknown after {tried}")
        raise UnavailableError(f"etcd {self._name}: no member answered in {tried}")

    def _left_ms(self) -> int:
        return self._end_ms - self._clock.monotonic_ms()

    def _begin(self) -> asyncio.Task[_T]:
        if len(self._going) >= OPEN_MAX:
            lost = list(self._going)[1]
            del self._going[lost]
            lost.cancel()
        made = _Try(self._links.current, self._clock.monotonic_ms())
        task = asyncio.ensure_future(self._send(made))
        task.add_done_callback(_look_at)
        self._going[task] = made
        return task

    async def _send(self, made: _Try) -> _T:
        login_ms = min(self._links.pace.attempt_ms(made.sent_ms), self._left_ms())
        made.metadata = await self._links.metadata(login_ms / 1000)
        return await self._attempt(made.link, self._left_ms() / 1000, made.metadata)

    async def _wait(self, newest: asyncio.Task[_T]) -> asyncio.Task[_T] | None:
        """Wait for an answer until another attempt should join; return it, or None."""
        while newest in self._going:
            wait_ms = max(0, self._patience_ms(self._going[newest]))
            done, _ = await asyncio.wait(
                self._going, timeout=wait_ms / 1000, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if self._answers(task):
                    return task
            if not done:
                self._leave(self._going[newest])
                return None
        return None

    def _patience_ms(self, made: _Try) -> int:
        """How long from now until another attempt joins the newest."""
        now_ms = self._clock.monotonic_ms()
        patience_ms = self._links.pace.attempt_ms(now_ms)
        if self._failures:
            patience_ms //= AGAIN_SOONER
        return min(made.sent_ms + patience_ms - now_ms, self._left_ms())

    def _answers(self, task: asyncio.Task[_T]) -> bool:
        """Take in how an attempt ended; whether with an answer. Raises etcd's refusal."""
        made, error = self._going.pop(task), task.exception()
        if error is None:
            self._took()
            return True
        if not isinstance(error, grpc.aio.AioRpcError):
            raise error
        fault = classify(error)
        self._last = f"{made.link.endpoint}: {error.code().name} {error.details()}"
        self._links.stats.failures[error.code().name.lower()] += 1
        if fault is Fault.FINAL:
            self._took()
            raise typed(error) from error
        if fault is Fault.LOGIN:
            self._links.forget_token(made.metadata)
        elif fault is Fault.UNKNOWN and made.metadata:
            self._may_have_happened()
        if fault is not Fault.LOGIN or self._failures:
            self._links.failed(made.link)
        self._failures += 1
        return False

    def _leave(self, made: _Try) -> None:
        """Go to the next member; the attempt at this one goes on."""
        self._last = f"{made.link.endpoint}: no answer yet"
        self._links.stats.failures["slow"] += 1
        self._links.failed(made.link)
        self._failures += 1
        if made.metadata or self._repeat:  # what is left goes on, and is sent once it has logged in
            self._may_have_happened()

    def _may_have_happened(self) -> None:
        self._unknown = True
        if self._on_unknown is not None:
            self._on_unknown()

    def _took(self) -> None:
        """Tell the pace; from the first attempt on: a later one is answered with the same sync."""
        now_ms = self._clock.monotonic_ms()
        self._links.pace.answered(now_ms, now_ms - self._begun_ms)


def _look_at(task: asyncio.Task[Any]) -> None:
    """Look at how a task ended: nobody else may, once another has answered."""
    if not task.cancelled():
        task.exception()
