"""A guard inside one process, for single-writer channels and caches.

It is as durable as the process: after a restart it has seen nothing. Use it where the resource dies
with the process too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from controlplane.locks.errors import StaleTokenError


class MemoryGuard:
    """Highest token seen per resource. Safe across threads."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}

    def seal(self, resource: str, token: int) -> None:
        """Refuse everything below `token` from now on; StaleTokenError when it is itself below."""
        with self._lock:
            if token < self._seen.get(resource, 0):
                raise StaleTokenError(resource, token)
            self._seen[resource] = token

    @contextmanager
    def transaction(self, resource: str, token: int) -> Iterator[None]:
        """Run the body with the token sealed and nobody else inside, so that read and write are
        one."""
        with self._lock:
            inside = self._busy.setdefault(resource, threading.Lock())
        with inside:
            self.seal(resource, token)
            yield
