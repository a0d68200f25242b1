"""What can go wrong with a lock, each with its remedy."""

from __future__ import annotations

from typing import Final

from controlplane.model.errors import RefusedError, UnavailableError, WeirError


class LockHeldError(RefusedError):
    """Somebody else holds the lock and the wait, if any, is over. Try again, or wait longer."""

    def __init__(self, name: str, *, left_ms: int, waiters: int, owner: str = "") -> None:
        by = f" by {owner}" if owner else ""
        super().__init__(
            "lock_held", f"{name} is held{by} for {left_ms} ms more; {waiters} wait for it"
        )
        self.name = name
        self.left_ms = left_ms
        self.waiters = waiters
        self.owner = owner


class LockLostError(RefusedError):
    """The lock is not held by this token any more: it expired, was released or was taken away.

    Stop acting on the guarded resource; work already sealed with a token is safe.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__("lock_lost", f"{name}: {why}")
        self.name = name


class LineageError(UnavailableError):
    """Redis lost data or changed identity; the leader has to put a new epoch in force first."""

    def __init__(self, cause: str, retry_after_ms: int) -> None:
        super().__init__(f"locks: {_CAUSES.get(cause, cause)}", retry_after_ms)
        self.cause = cause


class StaleTokenError(WeirError):
    """A guard has seen a higher token: the holder of this one may not act any more."""

    def __init__(self, resource: str, token: int) -> None:
        super().__init__(f"{resource}: token {token} has been passed by a later grant")
        self.resource = resource
        self.token = token


_CAUSES: Final = {
    "lost": "Redis lost the fence; a new epoch is on its way",
    "stale": "this Redis is behind the epoch in force; a new one is on its way",
    "quarantine": "a new epoch waits until grants of the lost one have expired",
    "exhausted": "the counter of this epoch is used up; a new epoch is on its way",
    "replica": "this Redis is a replica; looking for the primary",
    "unverified": "etcd knows a newer epoch than this grant's; it was withdrawn",
    "starting": "the lock service has not seen Redis and etcd yet",
}
