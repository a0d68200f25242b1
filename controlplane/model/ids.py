"""Names and units. One word, one meaning: see docs/glossary.md."""

from __future__ import annotations

import re
from typing import Final, NewType

RegionName = NewType("RegionName", str)
ChannelName = NewType("ChannelName", str)
ReplicaId = NewType("ReplicaId", str)
AgentId = NewType("AgentId", str)
Epoch = NewType("Epoch", int)
"""Number of a plan: strictly increasing, never reused."""
Term = NewType("Term", int)
"""Number of a leadership: mod_revision of the leader key in etcd."""

Cell = tuple[RegionName, ChannelName]
"""Region x channel: what a breaker guards."""

FULL_BP: Final = 10_000
"""The whole of a route, in basis points."""

NAME: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")
"""Names of regions, channels, replicas and agents: 1 to 63 characters, a label everywhere."""


def valid_name(text: str) -> bool:
    """Tell whether `text` may name a region, channel, replica or agent."""
    return NAME.fullmatch(text) is not None
