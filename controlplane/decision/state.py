"""The decision's memory: everything one tick hands to the next, and nothing else.

Theory. `step` is a function, so whatever it must remember is in here and can be written, read by a
new leader, and replayed. Small things (regions, links, breakers that are not closed, failovers) are
frozen dataclasses. What exists once per cell (region x channel) is a column of numbers, so that a
tick over 300,000 cells is a handful of array operations instead of 300,000 Python calls.

Rules
- Arrays in a state are never written to: a step makes new ones where something changed.
- Times are *attentive* ms: `now_ms` advances by at most 2.5 ticks a step, so a leader that was
  paused does not take its own absence for the silence of others.
- `to_bytes` and `from_bytes` are exact: equal states give equal bytes, and the next step cannot
  tell a state from its copy.

Failure modes. A state written for another topology is realigned by names: regions and channels that
are gone are forgotten, new ones start fresh. Bytes that do not fit raise InvalidInputError; the
runtime then starts from `State.initial`, which trusts nobody to be dead.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from controlplane.decision import codec
from controlplane.model.errors import InvalidInputError
from controlplane.model.ids import ChannelName, Epoch, RegionName
from controlplane.model.intents import Override
from controlplane.model.plan import Breaker, FailoverRecord, Phase, Plan, Verdict
from controlplane.model.topology import Topology

FORMAT: Final = 1
KEPT_FAILOVERS: Final = 20
"""Closed failovers kept for display; older ones are in the events."""

ORDERED: Final = frozenset({"manual", "drill"})
"""Kinds of a failure that is an operator's order and no evidence."""

Column = npt.NDArray[np.float64]


class Link(NamedTuple):
    """What one vantage knows of one region's ingress; with itself as target, of its reports.

    `age_ms` attentive ms since the last success (None: none known in this leader's term),
    `failures` since then, `loss` the usual share of failures before the present run of them,
    `recent_*` decaying counts for the brown-out test.
    """

    age_ms: int | None = None
    failures: int = 0
    loss: float = 0.02
    recent_ok: float = 0.0
    recent_failed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMemory:
    """Where one region stands; times in attentive ms."""

    phase: Phase = Phase.HEALTHY
    verdict: Verdict = Verdict.UNKNOWN
    since_ms: int = 0
    kind: str = ""
    cause: str = ""
    seen: bool = False
    blind: bool = False
    # when the present evidence began; None while there is none
    symptom_ms: int | None = None
    suspect_ms: int | None = None
    # weight has left on suspicion
    moved: bool = False
    # uninterrupted good evidence since
    clear_ms: int | None = None
    # step of the return; -1 while not returning
    ramp: int = -1
    ramp_ms: int = 0
    # flap damping
    penalty: float = 0.0
    penalty_ms: int = 0
    damped_ms: int | None = None
    # the operator ordered it out
    ordered: bool = False
    # last event about being held back, so that it is said once
    held: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerMemory:
    """One breaker that is not closed, or was not long ago. Counters are pybreaker's."""

    region: RegionName
    channel: ChannelName
    state: Breaker = Breaker.CLOSED
    since_ms: int = 0
    open_until_ms: int | None = None
    trips: int = 0
    fail_counter: int = 0
    success_counter: int = 0
    cause: str = ""
    # the sequential probability ratio test of the half-open state, in nats
    ratio: float = 0.0
    withheld: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The part of the state that is not columns."""

    now_ms: int = 0
    # monotonic clock of the leader at the last step; None after a takeover
    clock_ms: int | None = None
    # when the present leader's term began
    term_ms: int = 0
    epoch: Epoch = Epoch(0)
    plan: Plan | None = None
    regions: Mapping[RegionName, RegionMemory] = field(default_factory=dict)
    # "vantage>target"
    links: Mapping[str, Link] = field(default_factory=dict)
    # "region/channel"
    breakers: Mapping[str, BreakerMemory] = field(default_factory=dict)
    outages: tuple[ChannelName, ...] = ()
    failovers: tuple[FailoverRecord, ...] = ()
    # (when, region): regions taken out within the last hour
    removals: tuple[tuple[int, RegionName], ...] = ()
    # (when, region): regions failed by evidence within the last hour
    failures: tuple[tuple[int, RegionName], ...] = ()
    next_failover: int = 1
    # what shaped the weights last time, and whether they have arrived
    situation: str = ""
    settled: bool = False
    tilt_ms: int = 0
    frozen: bool = False
    # those that were said to be set
    overrides: tuple[Override, ...] = ()
    panic: bool = False
    # the leader hears nobody: since when, long enough to say so, and when one last gave up for it
    alone_ms: int | None = None
    cut_off: bool = False
    gave_up_ms: int | None = None
    unwell: tuple[RegionName, ...] = ()
    refused_epoch: int = 0
    notices: tuple[str, ...] = ()
    # channels that nobody may serve, so that it is said once
    unserved: tuple[ChannelName, ...] = ()


COLUMNS: Final[tuple[str, ...]] = (
    "error_sum",  # CUSUM of errors, nats
    "slow_sum",  # CUSUM of slow calls, nats
    "error_base",  # learned share of errors
    "slow_base",  # learned share of slow calls
    "learned",  # calls that the baselines rest on
    "rate",  # calls a second, smoothed
    "latency_base",  # learned mean latency, as a bucket number
    "recent_calls",  # decaying counts for the tilt
    "recent_errors",
    "recent_latency",  # sum of bucket numbers of recent calls
    "traffic_ms",  # when a real payment was last seen
    "tilt",  # share of the weight that the tilt leaves, 0 to 1
    "weight",  # weights of the last plan, bp
    "good",  # weights of the last plan without panic, bp
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Memory and columns. Cells are numbered region-major in the order of `regions`, `channels`."""

    memory: Memory
    regions: tuple[RegionName, ...]
    channels: tuple[ChannelName, ...]
    columns: Mapping[str, Column]

    @staticmethod
    def initial(topology: Topology) -> State:
        """Return the state of a leader that knows nothing: everybody is unknown, nobody is dead."""
        regions = tuple(region.name for region in topology.regions)
        channels = tuple(channel.name for channel in topology.channels)
        memory = Memory(regions={name: RegionMemory() for name in regions})
        columns = fresh_columns(topology)
        return State(memory=memory, regions=regions, channels=channels, columns=columns)

    def having(self, memory: Memory, columns: Mapping[str, Column] | None = None) -> State:
        """Return the state with another memory (and columns); itself when nothing differs."""
        if memory is self.memory and columns is None:
            return self
        return State(
            memory=memory,
            regions=self.regions,
            channels=self.channels,
            columns=self.columns if columns is None else columns,
        )

    def to_bytes(self) -> bytes:
        """Write exactly; equal states give equal bytes."""
        columns = {
            name: base64.b64encode(zlib.compress(column.astype("<f8").tobytes(), 1)).decode()
            for name, column in self.columns.items()
        }
        return codec.dumps(
            {
                "format": FORMAT,
                "memory": codec.to_json(self.memory),
                "regions": list(self.regions),
                "channels": list(self.channels),
                "columns": columns,
            }
        )

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """Read what `to_bytes` wrote; InvalidInputError when it does not fit."""
        try:
            raw = json.loads(data)
            if raw["format"] != FORMAT:
                raise InvalidInputError("format", f"{raw['format']} is not {FORMAT}; start afresh")
            regions, channels = tuple(raw["regions"]), tuple(raw["channels"])
            columns = {name: _column(raw["columns"][name]) for name in COLUMNS}
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise InvalidInputError("state", f"cannot be read: {error!r}") from error
        if any(column.size != len(regions) * len(channels) for column in columns.values()):
            raise InvalidInputError("columns", "do not match the number of cells; start afresh")
        memory = codec.from_json(Memory, raw["memory"])
        return State(memory=memory, regions=regions, channels=channels, columns=columns)

    def rebased(self) -> State:
        """Return the state for a new leader: its clock has another origin, attentive time goes on.

        The ages of links are forgotten as bounds: they guard against this process's own pauses, and
        the new leader was awake. One who takes over from a leader that was cut off has time to hear
        somebody before it gives up as well.
        """
        links = {key: Link(*link)._replace(age_ms=None) for key, link in self.memory.links.items()}
        now_ms = self.memory.now_ms
        memory = replace(
            self.memory,
            clock_ms=None,
            term_ms=now_ms,
            links=links,
            gave_up_ms=now_ms if self.memory.cut_off else None,
        )
        return replace(self, memory=memory)

    def aligned(
        self,
        topology: Topology,
        regions: tuple[RegionName, ...] | None = None,
        channels: tuple[ChannelName, ...] | None = None,
    ) -> State:
        """Return the state for another topology, by names.

        `regions` and `channels` are the topology's names where they are known already.
        """
        regions = regions or tuple(region.name for region in topology.regions)
        channels = channels or tuple(channel.name for channel in topology.channels)
        if regions == self.regions and channels == self.channels:
            return replace(self, regions=regions, channels=channels)
        memory = self.memory
        old_channel = {name: i for i, name in enumerate(self.channels)}
        old_region = {name: i for i, name in enumerate(self.regions)}
        columns = dict(fresh_columns(topology))
        pairs = [
            (r * len(channels) + c, old_region[region] * len(self.channels) + old_channel[channel])
            for r, region in enumerate(regions)
            if region in old_region
            for c, channel in enumerate(channels)
            if channel in old_channel
        ]
        if pairs:
            new, old = (np.array(side, dtype=np.intp) for side in zip(*pairs, strict=True))
            for name, column in columns.items():
                column[new] = self.columns[name][old]
        keep = set(regions)
        memory = replace(
            memory,
            regions={name: memory.regions.get(name, RegionMemory()) for name in regions},
            links={k: v for k, v in memory.links.items() if keep.issuperset(k.split(">"))},
            breakers={
                k: b
                for k, b in memory.breakers.items()
                if b.region in keep and b.channel in channels
            },
            outages=tuple(name for name in memory.outages if name in channels),
            unserved=tuple(name for name in memory.unserved if name in channels),
            situation="",
            settled=False,
        )
        return State(memory=memory, regions=regions, channels=channels, columns=columns)


def fresh_columns(topology: Topology) -> dict[str, Column]:
    """Return the columns of cells that were never observed."""
    size = len(topology.regions) * len(topology.channels)
    columns: dict[str, Column] = {name: np.zeros(size) for name in COLUMNS}
    # a little pessimistic until something is learned: a cell that always fails 5 % must not trip
    columns["error_base"] += 0.05
    columns["slow_base"] += 0.05
    columns["tilt"] += 1.0
    columns["traffic_ms"] -= 1e12
    medians = [4.0 * np.log2(max(1, channel.p50_ms)) for channel in topology.channels]
    columns["latency_base"] = np.tile(np.array(medians, dtype=np.float64), len(topology.regions))
    return columns


def _column(text: Any) -> Column:
    raw = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(raw, dtype="<f8").astype(np.float64)
