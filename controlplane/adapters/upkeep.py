"""What ends or falls due by the calendar: overrides, drills, closed gates. Shown in metrics.

These times live in etcd for people, not for decisions, so they are read slowly and apart from the
tick. While etcd does not answer the last ones stay shown: they are points in time, not ages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, Protocol

from controlplane.adapters.etcd_intents import EtcdIntents
from controlplane.adapters.etcd_keys import Keys
from controlplane.adapters.planstore import EtcdPlanStore
from controlplane.clock import Clock
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.model.plan import FailoverRecord
from controlplane.ports import KeyValue

LOOK_MS: Final = 5_000
"""Alerts on these look minutes and days ahead."""
FAILOVERS_MAX: Final = 1_000
"""How far back the last drill is looked for."""


class UpkeepMetrics(Protocol):
    """Where it is shown (controlplane.adapters.prometheus.Metrics)."""

    def set_override_expiries(self, unix_s: Mapping[str, float]) -> None:
        """Show when each override ends, by channel."""
        ...

    def set_drills(self, unix_s: Mapping[str, float]) -> None:
        """Show when the last completed drill of each region ended."""
        ...

    def set_gate_closed(self, closed: bool) -> None:
        """Show whether a gate forbids automatic failback."""
        ...


def override_expiries(keys: Keys, intents: Iterable[KeyValue]) -> dict[str, float]:
    """Return when each override ends (Unix s by channel); what makes no sense is left out."""
    found: dict[str, float] = {}
    for kv in intents:
        kind, _, channel = kv.key.removeprefix(keys.intents).decode(errors="replace").partition("/")
        if kind == "override":
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                found[channel] = datetime.fromisoformat(
                    json.loads(kv.value)["expires_at"]
                ).timestamp()
    return found


def last_drills(failovers: Iterable[FailoverRecord]) -> dict[str, float]:
    """Return the end of each region's last completed drill (Unix s); records in wall ms."""
    found: dict[str, float] = {}
    for record in failovers:
        if record.kind == "drill" and record.outcome == "completed" and record.converged_ms:
            ended_s = record.converged_ms / 1000
            found[record.region] = max(ended_s, found.get(record.region, 0.0))
    return found


class Upkeep:
    """Reads and shows, for ever."""

    def __init__(
        self, store: EtcdPlanStore, intents: EtcdIntents, metrics: UpkeepMetrics, clock: Clock
    ) -> None:
        self._store = store
        self._intents = intents
        self._metrics = metrics
        self._clock = clock
        self.drills: Mapping[str, float] = {}
        """End of each region's last completed drill, Unix s, as last read."""

    async def look(self) -> None:
        """Read once. Raises UnavailableError when etcd does not answer."""
        intents = await self._intents.raw()
        gates = self._intents.keys.intents + b"gate/"
        self._metrics.set_gate_closed(any(kv.key.startswith(gates) for kv in intents))
        self._metrics.set_override_expiries(override_expiries(self._intents.keys, intents))
        self.drills = last_drills(await self._store.failovers(FAILOVERS_MAX))
        self._metrics.set_drills(self.drills)

    async def run(self) -> None:
        """Read again and again; trouble with etcd is waited out."""
        while True:
            with contextlib.suppress(UnavailableError, InvalidInputError):
                await self.look()
            await self._clock.sleep_ms(LOOK_MS)
