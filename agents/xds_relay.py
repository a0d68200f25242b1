"""The agent as a node-local ADS server: Envoy and gRPC clients of one machine follow their agent.

Theory. A data plane that asks its agent needs no address of the control plane, and gets a plan
while every replica is gone, since the agent has one on disk. It is the same server as a replica's,
fed by the agent's own copy of the plan.

Rules
- The plan counts as applied at this agent only when the data planes behind it have applied it:
  replicas see the agent, and must not believe it before that.
- A plan from disk that no replica has vouched for closes the channels that fail closed.
- A local override confirms nothing: what was closed stays closed under it.

Failure modes. A data plane that does not follow within `FOLLOW_MS` makes `take` raise; the applier
tries again, and the agent is named as a laggard meanwhile.
"""

from __future__ import annotations

from typing import Final

import grpc.aio

from controlplane.adapters.xds_admission import AdsLimits
from controlplane.adapters.xds_ads import AdsService
from controlplane.adapters.xds_snapshot import Snapshot
from controlplane.clock import Clock
from controlplane.model.dataplane import DataPlane
from controlplane.model.errors import UnavailableError
from controlplane.model.plan import Plan

FOLLOW_MS: Final = 1000
"""How long the data planes of this machine may take to apply a plan."""
_POLL_MS: Final = 5
STREAMS_MAX: Final = 256
"""Data planes of one machine; more is a mistake."""


class AdsRelay:
    """Takes the agent's plan and serves it to data planes."""

    def __init__(self, dataplane: DataPlane, clock: Clock) -> None:
        self._dataplane = dataplane
        self._clock = clock
        # who left is gone: on one machine there is no partition to wait out
        self.ads = AdsService(clock=clock, limits=AdsLimits(streams_max=STREAMS_MAX, remember_ms=0))

    def register(self, server: grpc.aio.Server) -> None:
        """Add ADS to the agent's server."""
        self.ads.register(server)

    async def take(self, plan: Plan, *, confirmed: bool) -> None:
        """Serve the plan; return when every data plane has applied it, raise when one does not."""
        served, confirmed = self.ads.snapshot, confirmed and plan.local is None
        if served is None or served.plan != plan:
            self.ads.publish(Snapshot.build(plan, self._dataplane), confirmed=confirmed)
        elif confirmed:
            self.ads.confirm()
        end_ms = self._clock.monotonic_ms() + FOLLOW_MS
        while laggards := self.ads.laggards():
            if self._clock.monotonic_ms() >= end_ms:
                names = ", ".join(subscriber.name for subscriber in laggards)
                raise UnavailableError(f"epoch {plan.epoch} is not applied by {names}")
            await self._clock.sleep_ms(_POLL_MS)
