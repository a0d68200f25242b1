"""The blocking client of LockService, for threads. Import it from `lock_client`."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import grpc

from controlplane.adapters.lock_stream_sync import SyncLockStream
from controlplane.adapters.lock_wire import (
    CALL_TIMEOUT_MS,
    acquire_request,
    grant_of,
    release_request,
    renew_request,
    renew_timeout_ms,
)
from controlplane.clock import Clock, SystemClock
from controlplane.locks.errors import LockLostError
from controlplane.locks.grant import Grant, Mode
from controlplane.locks.tenure import Tenure
from controlplane.model.errors import UnavailableError, WeirError


class SyncLockClient:
    """Blocking, safe across threads. `channels` are open grpc channels to replicas, tried in turn;
    closing a channel ends its stream too."""

    def __init__(self, channels: Sequence[grpc.Channel], *, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self._links = [SyncLockStream(channel) for channel in channels]
        self._at = 0

    def acquire(
        self,
        name: str,
        *,
        owner: str,
        ttl_ms: int,
        wait_ms: int = 0,
        mode: Mode | None = None,
        shared: bool = False,
        reentrant: bool = False,
        request: str | None = None,
    ) -> Grant:
        """Acquire; meaning and errors of LockManager.acquire. `request` is a UUID."""
        ask = acquire_request(name, {
            "owner": owner, "ttl_ms": ttl_ms, "wait_ms": wait_ms, "mode": mode, "shared": shared,
            "reentrant": reentrant, "request": request,
        })  # fmt: skip
        answer, sent = self._call("acquire", ask, name, CALL_TIMEOUT_MS + wait_ms)
        grant = grant_of(answer, ask, sent)
        if grant.waited_ms <= ttl_ms // 2:
            return grant
        try:
            return self.renew(grant, mode=mode)
        except BaseException:
            with suppress(WeirError):  # the caller never had it
                self.release(grant, whole=not reentrant)
            raise

    def renew(
        self,
        grant: Grant,
        *,
        ttl_ms: int | None = None,
        mode: Mode | None = None,
        timeout_ms: int | None = None,
    ) -> Grant:
        """Renew; LockLostError when the token does not hold the lock any more.

        `timeout_ms` bounds all replicas together.
        """
        ask = renew_request(grant.name, grant.owner, grant.token, ttl_ms or grant.ttl_ms, mode)
        answer, sent = self._call(
            "renew", ask, grant.name, renew_timeout_ms(ask.ttl_ms), timeout_ms
        )
        fresh = grant_of(answer, ask, sent)
        return replace(
            grant, deadline_ms=fresh.deadline_ms, ttl_ms=ask.ttl_ms, verified=fresh.verified
        )

    def release(self, grant: Grant, *, whole: bool = True) -> int | None:
        """Release; the entries left, None when the token did not hold the lock."""
        ask = release_request(grant.name, grant.owner, grant.token, None, whole=whole)
        answer, _ = self._call("release", ask, grant.name, CALL_TIMEOUT_MS)
        return answer.entries if answer.released else None

    @contextmanager
    def hold(
        self,
        name: str,
        *,
        ttl_ms: int,
        owner: str = "",
        wait_ms: int = 0,
        mode: Mode | None = None,
        shared: bool = False,
        reentrant: bool = False,
        margin_ms: int | None = None,
        on_lost: Callable[[LockLostError], None] | None = None,
    ) -> Iterator[SyncHeld]:
        """Hold for the body, renewed by a thread.

        A thread cannot be cancelled: call `check()` before each effect, or be told by `on_lost` (on
        the renewing thread) `margin_ms` before the time is over, by default a tenth of the TTL.
        """
        grant = self.acquire(
            name, owner=owner or str(uuid.uuid4()), ttl_ms=ttl_ms, wait_ms=wait_ms, mode=mode,
            shared=shared, reentrant=reentrant,
        )  # fmt: skip
        tenure = Tenure(grant, ttl_ms // 10 if margin_ms is None else margin_ms)
        held = SyncHeld(self, tenure, mode, on_lost)
        held.start()
        try:
            yield held
        finally:
            held.stop()
            try:
                self.release(held.grant, whole=not reentrant)
            except WeirError:
                held.lost.set()  # the TTL frees it

    @contextmanager
    def hold_all(
        self,
        names: Sequence[str],
        *,
        ttl_ms: int,
        owner: str = "",
        wait_ms: int = 0,
        mode: Mode | None = None,
    ) -> Iterator[Mapping[str, SyncHeld]]:
        """Hold several locks at once, taken in sorted order so that no two callers can deadlock.

        `wait_ms` bounds the whole; what is held already is renewed while the rest is waited for.
        """
        owner = owner or str(uuid.uuid4())
        until = self.clock.monotonic_ms() + wait_ms
        with ExitStack() as stack:
            held: dict[str, SyncHeld] = {}
            for name in sorted(set(names)):
                left = max(0, until - self.clock.monotonic_ms()) if wait_ms else 0
                held[name] = stack.enter_context(
                    self.hold(name, ttl_ms=ttl_ms, owner=owner, wait_ms=left, mode=mode)
                )
            yield held

    def _call(
        self, kind: str, ask: Any, name: str, timeout_ms: int, whole_ms: int | None = None
    ) -> tuple[Any, int]:
        last, count, first = UnavailableError("no replica was named"), len(self._links), self._at
        began = self.clock.monotonic_ms()
        for turn in range(count):
            at = (first + turn) % count
            link, sent = self._links[at], self.clock.monotonic_ms()
            if whole_ms is not None:
                timeout_ms = min(timeout_ms, began + whole_ms - sent)
                if timeout_ms <= 0:
                    break
            try:
                answer = link.ask(kind, ask, timeout_ms, name)
            except UnavailableError as error:
                last = error
                continue
            self._at = at
            return answer, sent
        raise last


class SyncHeld:
    """A lock in the hand of a thread."""

    def __init__(
        self,
        client: SyncLockClient,
        tenure: Tenure,
        mode: Mode | None,
        on_lost: Callable[[LockLostError], None] | None,
    ) -> None:
        self._client = client
        self._tenure = tenure
        self._mode = mode
        self._on_lost = on_lost
        self._stop = threading.Event()
        name = f"lock-{tenure.grant.name}"
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self.lost = threading.Event()
        """Set when one may not act any more."""

    @property
    def grant(self) -> Grant:
        """The grant, as renewed last."""
        return self._tenure.grant

    @property
    def token(self) -> int:
        """The fencing token to present to guards."""
        return self.grant.token.value

    def remaining_ms(self) -> int:
        """How long one may still act; 0 when not at all."""
        return self._tenure.remaining_ms(self._client.clock.monotonic_ms())

    def check(self) -> None:
        """Raise LockLostError when one may not act any more."""
        if self._tenure.over(self._client.clock.monotonic_ms()):
            self.lost.set()
            raise self._tenure.error()

    def start(self) -> None:
        """Begin renewing."""
        self._thread.start()

    def stop(self) -> None:
        """End renewing."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        clock, tenure = self._client.clock, self._tenure
        while not tenure.over(clock.monotonic_ms()):
            if self._stop.wait(tenure.pause_ms(clock.monotonic_ms()) / 1000):
                return
            if not (left := self.remaining_ms()):
                continue
            try:
                fresh = self._client.renew(tenure.grant, mode=self._mode, timeout_ms=left)
            except WeirError as error:
                tenure.failed(error)
            else:
                tenure.renewed(fresh)
        self.lost.set()
        if self._on_lost and not self._stop.is_set():
            self._on_lost(tenure.error())
