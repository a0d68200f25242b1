"""Which replica to talk to, and how long to wait before. Pure: time and randomness come in.

The own region's replicas come first, then all others. After a failure comes the next one, after a
full-jitter pause that grows with every failure in a row: agents of a dead region must not arrive
everywhere at once. A session counts as good, and clears the failures, only after `GOOD_MS`, so that
a replica which dies at every first report is not asked twenty times a second.

Away from home the home replica is looked at now and then; `HOME_PROOFS` good looks in a row bring
the agent back. Each return that ends within `GOOD_MS` doubles the time between looks, up to
`HOME_CHECK_MAX_MS`: a flapping replica costs a bounded number of moves.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final

BACKOFF_BASE_MS: Final = 100
BACKOFF_CAP_MS: Final = 2_000
GOOD_MS: Final = 10_000
HOME_CHECK_MS: Final = 2_000
HOME_CHECK_MAX_MS: Final = 60_000
HOME_PROOFS: Final = 3
_MAX_DOUBLINGS: Final = 16


def order(
    configured: Sequence[str], replicas: Mapping[str, tuple[str, str]], region: str
) -> tuple[tuple[str, ...], int]:
    """Return the servers in order of preference, and how many of them are home.

    `configured` wins when it is not empty (home is then what the configuration places in the own
    region, and the first server if it places none there). `replicas` maps id to (region, address).
    """
    local = [address for where, address in replicas.values() if where == region]
    if configured:
        servers = list(dict.fromkeys(configured))
        home = [s for s in servers if s in local] or servers[:1]
    else:
        servers = [address for _, address in replicas.values()]
        home = local
    away = [s for s in dict.fromkeys(servers) if s not in home]
    return (*dict.fromkeys(home), *away), len(dict.fromkeys(home))


def backoff_ms(failures: int, rng: random.Random) -> float:
    """Return a pause in ms, uniform from 0 to the bound that `failures` (at least 1) allow."""
    doublings = min(max(failures - 1, 0), _MAX_DOUBLINGS)
    return rng.uniform(0.0, min(BACKOFF_CAP_MS, BACKOFF_BASE_MS * 2**doublings))


class Rotation:
    """Where the agent is in the order of its servers."""

    def __init__(self, servers: Sequence[str], home: int, rng: random.Random) -> None:
        if not servers:
            raise ValueError("no servers")
        self._servers = tuple(servers)
        self._home = home
        self._rng = rng
        self._index = 0
        self._failures = 0
        self._proofs = 0
        self._returned = False
        self._check_ms = float(HOME_CHECK_MS)
        self._look = 0

    @property
    def current(self) -> str:
        """The server to talk to now."""
        return self._servers[self._index]

    @property
    def at_home(self) -> bool:
        """Whether it lives in the own region (or no server does)."""
        return self._home == 0 or self._index < self._home

    @property
    def home(self) -> str:
        """The home server to look at next while away."""
        return self._servers[self._look % max(self._home, 1)]

    @property
    def home_check_ms(self) -> float:
        """Pause until the next look at home, jittered."""
        return self._check_ms * self._rng.uniform(0.75, 1.25)

    def lost(self, lasted_ms: float) -> float:
        """Move to the next server after a session of `lasted_ms`; return the pause before it."""
        if lasted_ms >= GOOD_MS:
            self._failures = 0
            if self.at_home:
                self._check_ms = float(HOME_CHECK_MS)
        elif self._returned:
            self._check_ms = min(HOME_CHECK_MAX_MS, self._check_ms * 2)
        self._failures += 1
        self._returned = False
        self._proofs = 0
        self._index = (self._index + 1) % len(self._servers)
        return backoff_ms(self._failures, self._rng)

    def looked(self, well: bool) -> bool:
        """Note a look at home; True when it is time to go back, which `current` then says."""
        self._proofs = self._proofs + 1 if well else 0
        if not well:
            self._look += 1
        if self._proofs < HOME_PROOFS:
            return False
        self._index = self._look % max(self._home, 1)
        self._proofs = 0
        self._returned = True
        return True
