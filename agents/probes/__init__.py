"""Probes: one file per kind, one observation per run.

A probe function returns when its target answered well and raises when not; `observe` turns whatever
happens into an `Observation`. Nothing a target does can raise out of here, and nothing outlives the
target's deadline: a probe that meets something unexpected is a failed probe, never a crash.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from agents.probes import grpc_health, http, tcp
from agents.probes.dns import Resolver
from agents.probes.observation import Observation, ProbeFailedError, Reason, Trace
from agents.targets import Target

Probe = Callable[[Target, Resolver, Trace], Awaitable[None]]

PROBES: Final[Mapping[str, Probe]] = {
    "http": http.probe,
    "https": http.probe,
    "tcp": tcp.probe,
    "grpc": grpc_health.probe,
}

_ERRNO: Final = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.RESET,
    errno.EPIPE: Reason.RESET,
    errno.ECONNABORTED: Reason.RESET,
    errno.EHOSTUNREACH: Reason.UNREACHABLE,
    errno.ENETUNREACH: Reason.UNREACHABLE,
    errno.EHOSTDOWN: Reason.UNREACHABLE,
    errno.ENETDOWN: Reason.UNREACHABLE,
}


async def observe(
    target: Target, resolver: Resolver, probes: Mapping[str, Probe] = PROBES
) -> Observation:
    """Probe once. Always returns an observation; only cancellation gets through."""
    trace = Trace()
    reason: Reason | None = None
    detail = ""
    try:
        async with asyncio.timeout(target.deadline_ms / 1000):
            await probes[target.kind](target, resolver, trace)
    except ProbeFailedError as error:
        reason, detail = error.reason, error.detail
    except TimeoutError:
        reason, detail = Reason.TIMEOUT, f"no end of {trace.current} in {target.deadline_ms:g} ms"
    except ssl.SSLError as error:
        reason, detail = Reason.TLS, error.reason or str(error)
    except OSError as error:
        reason, detail = (
            _ERRNO.get(error.errno or 0, _fallback(error)),
            error.strerror or str(error),
        )
    except Exception as error:  # noqa: BLE001 - by contract, see above
        reason, detail = Reason.INTERNAL, f"{type(error).__name__}: {error}"
    return Observation(
        total_ms=trace.total_ms, reason=reason, phases=dict(trace.phases), detail=detail
    )


def _fallback(error: OSError) -> Reason:
    return Reason.RESET if isinstance(error, ConnectionError) else Reason.UNREACHABLE
