"""Every call passes here: is there a rule for this method, may this caller call it, and not too
often.

The rules are a table (`model.permissions`); what is not in it is refused, so that a new method
without a rule cannot be called by anybody. Refusals are logged with the caller's name and counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import grpc
import structlog
from google.rpc import code_pb2, error_details_pb2

from controlplane.adapters.handlers import Inner, Wrapping, answers_of, rewrapped
from controlplane.adapters.identity import Identity, caller
from controlplane.adapters.rpc_errors import DOMAIN, abort_with, make_status
from controlplane.clock import Clock
from controlplane.model.permissions import allowed

log = structlog.get_logger(__name__)

RATE_PER_S: Final = 100
"""Calls (not messages of a stream) per second and identity."""
BURST: Final = 500
LOCKS: Final = "/controlplane.v1.LockService/"
LOCKS_FACTOR: Final = 20
"""A lock is taken and given back many times a second; its calls are counted apart, so that they
never use up what an operator needs. Programs with more than this use a session: one call."""
IDENTITIES_MAX: Final = 10_000


class DenialMetrics(Protocol):
    """What is counted of refusals."""

    def call_denied(self, reason: str) -> None:
        """Count a refused call: role, identity or rate."""
        ...


class _Buckets:
    """A token bucket per identity; the least recently seen identity is forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, name: str, factor: int) -> bool:
        now_ms = self._clock.monotonic_ms()
        burst = float(BURST * factor)
        tokens, at_ms = self._buckets.pop(name, (burst, now_ms))
        tokens = min(burst, tokens + (now_ms - at_ms) * RATE_PER_S * factor / 1000)
        granted = tokens >= 1
        self._buckets[name] = (tokens - 1 if granted else tokens, now_ms)
        if len(self._buckets) > IDENTITIES_MAX:
            self._buckets.popitem(last=False)
        return granted


class Authorisation(Wrapping):
    """Checks every call of a server."""

    def __init__(self, clock: Clock, metrics: DenialMetrics, *, tls: bool) -> None:
        self._buckets = _Buckets(clock)
        self._metrics = metrics
        self._tls = tls

    def wrapped(self, handler: Any, method: str) -> Any:
        """Check every call of the handler."""

        async def single(inner: Inner, request: Any, context: Any) -> Any:
            await self._check(method, context)
            return await inner(request, context)

        async def streaming(inner: Inner, request: Any, context: Any) -> AsyncIterator[Any]:
            await self._check(method, context)
            async for answer in answers_of(inner, request, context):
                yield answer

        return rewrapped(handler, single=single, streaming=streaming)

    async def _check(self, method: str, context: Any) -> None:
        identity = caller(context, tls=self._tls)
        if not identity.roles:
            await self._deny(
                context,
                method,
                identity,
                grpc.StatusCode.UNAUTHENTICATED,
                "identity",
                "the certificate has no SPIFFE URI spiffe://…/weir/<role>/…",
            )
        if not allowed(method, identity.roles):
            roles = ", ".join(sorted(identity.roles))
            await self._deny(
                context,
                method,
                identity,
                grpc.StatusCode.PERMISSION_DENIED,
                "role",
                f"the role {roles} may not call {method}",
            )
        locks = method.startswith(LOCKS)
        factor = LOCKS_FACTOR if locks else 1
        if not self._buckets.take(f"{identity.name} locks" if locks else identity.name, factor):
            await self._deny(
                context,
                method,
                identity,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "rate",
                f"more than {RATE_PER_S * factor} calls a second; slow down",
            )

    async def _deny(
        self,
        context: Any,
        method: str,
        identity: Identity,
        code: grpc.StatusCode,
        reason: str,
        message: str,
    ) -> None:
        self._metrics.call_denied(reason)
        log.warning("call_denied", method=method, caller=identity.name, reason=reason)
        details: list[Any] = [
            error_details_pb2.ErrorInfo(reason=f"DENIED_{reason.upper()}", domain=DOMAIN)
        ]
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(1000)
            details.append(retry)
        await abort_with(context, make_status(code_pb2.Code.Value(code.name), message, details))
