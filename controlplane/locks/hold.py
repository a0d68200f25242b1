"""Hold a lock for the length of a `with` block: renewed in time, and told in time.

    async with hold(locks, "debit:42", owner="job-7", ttl_ms=5_000, wait_ms=10_000) as held:
        guard.transaction(connection, "account:42", held.token) ...

The lock is renewed in time (`tenure`). If that fails until `margin_ms` before the deadline,
`held.lost` is set and the block is cancelled with LockLostError: *before* somebody else can be
granted the lock, not after. The deadline counts from before the last successful call was sent. A
block that cannot be cancelled (a thread, a blocking call) asks `held.check()` before each
effect, and lets its guard have the last word.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

from controlplane.clock import Clock
from controlplane.locks.errors import LockLostError
from controlplane.locks.grant import Grant, Mode
from controlplane.locks.tenure import Tenure
from controlplane.locks.token import Token
from controlplane.model.errors import WeirError

RELEASE_TIMEOUT_MS: Final = 1_000
"""How long leaving the block may wait for the release; the TTL frees the lock anyway."""


class Locks(Protocol):
    """Anything that grants: LockManager, or LockClient over gRPC."""

    clock: Clock

    async def acquire(
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
        """Acquire."""
        ...

    async def renew(
        self, name: str, *, owner: str, token: Token, ttl_ms: int, mode: Mode | None = None
    ) -> Grant:
        """Renew."""
        ...

    async def release(
        self, name: str, *, owner: str, token: Token, request: str | None = None, whole: bool = True
    ) -> int | None:
        """Release."""
        ...


class Held:
    """A lock in hand."""

    def __init__(self, locks: Locks, grant: Grant, mode: Mode | None, margin_ms: int) -> None:
        self._locks = locks
        self._mode = mode
        self._tenure = Tenure(grant, margin_ms)
        self.lost = asyncio.Event()
        """Set when the holder may not act any more."""

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
        return self._tenure.remaining_ms(self._locks.clock.monotonic_ms())

    def check(self) -> None:
        """Raise LockLostError when one may not act any more. Call it after every pause."""
        if self._tenure.over(self._locks.clock.monotonic_ms()):
            self.lost.set()
            raise self._tenure.error()

    async def keep(self) -> None:
        """Renew until the lock is lost; then raise LockLostError."""
        clock, tenure = self._locks.clock, self._tenure
        while not tenure.over(clock.monotonic_ms()):
            await clock.sleep_ms(tenure.pause_ms(clock.monotonic_ms()))
            left, grant = self.remaining_ms(), tenure.grant
            if not left:
                continue
            try:
                async with asyncio.timeout(left / 1000):
                    fresh = await self._locks.renew(
                        grant.name, owner=grant.owner, token=grant.token, ttl_ms=grant.ttl_ms,
                        mode=self._mode,
                    )  # fmt: skip
            except (WeirError, TimeoutError) as error:
                tenure.failed(error)
            else:
                tenure.renewed(fresh)
        self.lost.set()
        raise tenure.error()


@asynccontextmanager
async def hold(
    locks: Locks,
    name: str,
    *,
    ttl_ms: int,
    owner: str = "",
    wait_ms: int = 0,
    mode: Mode | None = None,
    shared: bool = False,
    reentrant: bool = False,
    margin_ms: int | None = None,
) -> AsyncIterator[Held]:
    """Acquire, keep renewed, release. `margin_ms` defaults to a tenth of the TTL.

    Raises what `acquire` raises, and LockLostError when the lock is lost inside the block.
    """
    owner = owner or uuid.uuid4().hex
    grant = await locks.acquire(
        name, owner=owner, ttl_ms=ttl_ms, wait_ms=wait_ms, mode=mode, shared=shared,
        reentrant=reentrant,
    )  # fmt: skip
    held = Held(locks, grant, mode, ttl_ms // 10 if margin_ms is None else margin_ms)
    raised: Exception | None = None
    lost: Exception | None = None
    try:
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(held.keep(), name=f"lock-{name}")
            try:
                yield held
            except Exception as error:  # noqa: BLE001 - a TaskGroup would wrap the body's error
                raised = error
            finally:
                keeper.cancel()
    except* LockLostError as group:
        # raised below: what is raised in here comes out as a group before Python 3.11.4
        lost = group.exceptions[0]
    finally:
        await _give_back(locks, held, whole=not reentrant)
    if raised or lost:
        raise (raised or lost) from None  # type: ignore[misc]


async def _give_back(locks: Locks, held: Held, *, whole: bool) -> None:
    grant = held.grant
    with contextlib.suppress(WeirError, TimeoutError):
        async with asyncio.timeout(RELEASE_TIMEOUT_MS / 1000):
            await locks.release(grant.name, owner=grant.owner, token=grant.token, whole=whole)


@asynccontextmanager
async def hold_all(
    locks: Locks,
    names: Sequence[str],
    *,
    ttl_ms: int,
    owner: str = "",
    wait_ms: int = 0,
    mode: Mode | None = None,
) -> AsyncIterator[dict[str, Held]]:
    """Hold several locks at once, taken in sorted order so that no two callers can deadlock.

    `wait_ms` bounds the whole; what is held already is renewed while the rest is waited for.
    """
    owner = owner or uuid.uuid4().hex
    until = locks.clock.monotonic_ms() + wait_ms
    async with AsyncExitStack() as stack:
        held: dict[str, Held] = {}
        for name in sorted(set(names)):
            left = max(0, until - locks.clock.monotonic_ms()) if wait_ms else 0
            held[name] = await stack.enter_async_context(
                hold(locks, name, ttl_ms=ttl_ms, owner=owner, wait_ms=left, mode=mode)
            )
        yield held
