"""Names to addresses the way a payment client does it: through the system's resolver.

Rules
- Answers are kept at most `CACHE_MS`, and all are dropped when a new plan arrives: a cache of
  minutes would hide a failover that was done by DNS, and would let probes praise an address that
  payments no longer use.
- Failures are never kept.
- One look-up in flight per name, each in a daemon thread of its own: getaddrinfo cannot be
  cancelled, and a resolver that hangs must neither exhaust a pool nor keep the process from ending.

Failure mode: with `MAX_LOOKUPS` names hanging at once further names fail at once, as a DNS error.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agents.probes.observation import ProbeFailedError, Reason, Trace
from controlplane.clock import precise_ms

CACHE_MS: Final = 5_000
MAX_LOOKUPS: Final = 16
MAX_NAMES: Final = 1_024

Lookup = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Answer:
    addresses: tuple[str, ...]
    until_ms: float


def system_lookup(host: str) -> Sequence[str]:
    """Ask the system's resolver; blocks. Addresses in its order, each once."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Resolver:
    """Resolves names with a short memory. `lookup` blocks and runs in a thread."""

    def __init__(self, lookup: Lookup = system_lookup) -> None:
        self._lookup = lookup
        self._answers: dict[str, _Answer] = {}
        self._pending: dict[str, asyncio.Future[Sequence[str]]] = {}
        self._generation = 0

    def flush(self) -> None:
        """Forget every answer, those still on their way included."""
        self._generation += 1
        self._answers.clear()

    async def resolve(self, host: str, trace: Trace) -> tuple[str, ...]:
        """Return the addresses of `host`; ProbeFailedError when there are none.

        Only real look-ups count into the phase `dns`.
        """
        if _is_address(host):
            return (host,)
        known = self._answers.get(host)
        if known is not None and known.until_ms > precise_ms():
            return known.addresses
        with trace.phase("dns"):
            return await self._ask(host)

    async def _ask(self, host: str) -> tuple[str, ...]:
        generation = self._generation
        pending = self._pending.get(host)
        if pending is None:
            if len(self._pending) >= MAX_LOOKUPS:
                raise ProbeFailedError(Reason.DNS, f"{len(self._pending)} look-ups already hang")
            pending = self._start(host)
        try:
            addresses = tuple(await asyncio.shield(pending))
        except OSError as error:
            raise ProbeFailedError(Reason.DNS, f"{host}: {error.strerror or error}") from error
        if not addresses:
            raise ProbeFailedError(Reason.DNS, f"{host}: no address")
        if generation == self._generation:
            if len(self._answers) >= MAX_NAMES:
                self._answers.clear()
            self._answers[host] = _Answer(addresses, precise_ms() + CACHE_MS)
        return addresses

    def _start(self, host: str) -> asyncio.Future[Sequence[str]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[str]] = loop.create_future()
        self._pending[host] = future

        def settle(addresses: Sequence[str] | None, error: Exception | None) -> None:
            self._pending.pop(host, None)
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
                future.exception()  # everybody who waited may have given up: that is no fault
            else:
                future.set_result(addresses or ())

        def work() -> None:
            addresses: Sequence[str] | None = None
            error: Exception | None = None
            try:
                addresses = self._lookup(host)
            except OSError as problem:
                error = problem
            except Exception as problem:  # noqa: BLE001 - e.g. a name that IDNA cannot encode
                error = OSError(str(problem))
            try:
                loop.call_soon_threadsafe(settle, addresses, error)
            except RuntimeError:  # the loop has ended meanwhile
                return

        threading.Thread(target=work, name=f"dns-{host}", daemon=True).start()
        return future


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
