"""Circuits: what the tests mean for breakers, and breakers for a channel as a whole.

Rules
- A cell opens only when somewhere else is better: another live region whose cell is closed and
  whose test is below a tenth of its threshold. So a provider that fails everywhere moves nothing.
- At most `breaker_max_open_bp` of a channel's live regions are open at once, and never all of them;
  what exceeds that is withheld and said.
- Bad in every live region means that the provider is out: breakers open, weights disregard them.
  The outage is over when every live cell is closed, or one has been closed for 15 s.
- Half-open is judged by a sequential probability ratio test over the trickle and the probes: three
  nats either way are one decision.
- While frozen, cut off or with etcd ill, nothing opens.

Failure modes. A channel served by one live region can only be in an outage: there is nowhere to go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from controlplane.decision.breaker import FORGET_MS, decide, wake
from controlplane.decision.cells import (
    CALM,
    TILT_EVERY_MS,
    Tested,
    observe_cells,
    ratios,
    thresholds,
    tilted,
)
from controlplane.decision.state import BreakerMemory, Column, State
from controlplane.decision.world import World
from controlplane.model.evidence import Evidence
from controlplane.model.ids import FULL_BP, ChannelName, RegionName
from controlplane.model.plan import Breaker, Event, Phase, Severity

PROBATION_NATS: Final = 3.0
"""About one wrong decision in twenty; two good ones in a row close."""
SOUND: Final = 0.1
"""A cell whose test is below this part of its threshold is a place to go: well below CALM, because
in a provider's outage the cell with the fewest calls is the last to show it."""
OUTAGE_OVER_MS: Final = 15_000
_FRESH: Final = (
    ("error_sum", 0.0),
    ("slow_sum", 0.0),
    ("recent_calls", 0.0),
    ("recent_errors", 0.0),
    ("recent_latency", 0.0),
    ("tilt", 1.0),
)


@dataclass(slots=True, kw_only=True)
class _Tick:
    """What one tick works on. Mutable within one step only."""

    world: World
    now_ms: int
    live: dict[ChannelName, tuple[RegionName, ...]]
    breakers: dict[str, BreakerMemory]
    columns: dict[str, Column]
    hold: bool
    events: list[Event]
    owned: set[str] = field(default_factory=set)

    def clear(self, cell: int) -> None:
        """Let a cell's tests start afresh. Each column is copied once a tick, however many trip."""
        for name, value in _FRESH:
            if name not in self.owned:
                self.owned.add(name)
                self.columns[name] = self.columns[name].copy()
            self.columns[name][cell] = value


def advance_cells(
    world: World,
    state: State,
    evidence: Evidence,
    passed_ms: int,
    drained: frozenset[RegionName],
    events: list[Event],
) -> State:
    """Advance tests, breakers, outages and tilt by one tick."""
    memory = state.memory
    if memory.cut_off:
        return state
    quiet = not memory.breakers and memory.now_ms - memory.tilt_ms < TILT_EVERY_MS
    if quiet and evidence.gains is None and not any(region.cells for region in evidence.regions):
        return state
    state, tested = observe_cells(world, state, evidence, passed_ms)
    tick = _Tick(
        world=world,
        now_ms=memory.now_ms,
        live={},
        breakers=dict(memory.breakers),
        columns=dict(state.columns),
        hold=memory.frozen or evidence.coordination_suspect,
        events=events,
    )
    _wake(tick)
    if tested is not None:
        live = frozenset(
            name
            for name, region in memory.regions.items()
            if region.phase is not Phase.FAILED and not region.moved and name not in drained
        )
        _probation(tick, tested, memory.unwell)
        _trips(tick, tested, live)
        outages = _outages(tick, memory.outages, live)
    else:
        outages = memory.outages
    if memory.now_ms - memory.tilt_ms >= TILT_EVERY_MS:
        memory = replace(memory, tilt_ms=memory.now_ms)
        tilt = tilted(world, state.having(memory))
        if not np.array_equal(tilt, tick.columns["tilt"]):
            tick.columns["tilt"] = tilt
    breakers = tick.breakers if tick.breakers != memory.breakers else memory.breakers
    if breakers is not memory.breakers or outages != memory.outages:
        memory = replace(memory, breakers=breakers, outages=outages)
    return state.having(memory, tick.columns)


def _wake(tick: _Tick) -> None:
    policy = tick.world.topology.policy
    for key in sorted(tick.breakers):
        breaker = tick.breakers[key]
        woken = wake(breaker, policy, tick.now_ms)
        if woken is not breaker:
            tick.breakers[key] = woken
            text = f"{key} on probation with at most {policy.trickle_bp / 100:g} % of the channel"
            tick.events.append(_event("breaker_half_open", text, woken))
        elif (
            breaker.state is Breaker.CLOSED
            and not breaker.withheld
            and tick.now_ms - breaker.since_ms >= FORGET_MS
        ):
            del tick.breakers[key]


def _probation(tick: _Tick, tested: Tested, unwell: tuple[RegionName, ...]) -> None:
    policy = tick.world.topology.policy
    for key in sorted(tick.breakers):
        breaker = tick.breakers[key]
        if breaker.state is not Breaker.HALF_OPEN or breaker.region in unwell:
            continue
        cell = tick.world.cell(breaker.region, breaker.channel)
        place = int(np.searchsorted(tested.cell, cell))
        if place >= tested.cell.size or tested.cell[place] != cell:
            continue
        calls = float(tested.good[place] + tested.bad[place])
        bad = min(calls, max(float(tested.bad[place]), float(tested.slow[place])))
        up, down = ratios(tick.columns["error_base"][cell : cell + 1])
        ratio = breaker.ratio + bad * float(up[0]) + (calls - bad) * float(down[0])
        breaker = replace(breaker, ratio=ratio)
        if abs(ratio) >= PROBATION_NATS:
            good = ratio < 0
            breaker = replace(decide(breaker, policy, tick.now_ms, good=good), ratio=0.0)
            if breaker.state is Breaker.OPEN:
                wait_s = ((breaker.open_until_ms or 0) - tick.now_ms) / 1000
                text = f"{key} failed on probation, open for {wait_s:.1f} s: {breaker.cause}"
                tick.events.append(_event("breaker_opened", text, breaker, Severity.WARNING))
            elif breaker.state is Breaker.CLOSED:
                tick.clear(cell)
                tick.events.append(_event("breaker_closed", f"{key} passed probation", breaker))
        tick.breakers[key] = breaker


def _trips(tick: _Tick, tested: Tested, live: frozenset[RegionName]) -> None:
    for place in np.flatnonzero(tested.tripped).tolist():
        cell = int(tested.cell[place])
        row, column = divmod(cell, len(tick.world.channel_index))
        region = tick.world.topology.regions[row].name
        channel = tick.world.topology.channels[column]
        if region not in tick.world.serving[column]:
            continue
        key = f"{region}/{channel.name}"
        breaker = tick.breakers.get(key) or BreakerMemory(
            region=region, channel=channel.name, since_ms=tick.now_ms
        )
        if breaker.state is not Breaker.CLOSED:
            continue
        cause = _cause(tick.columns, cell, tested, place, tick.world.topology.policy.slow_factor)
        _trip(tick, key, breaker, cause, live)
    for key in [k for k, b in tick.breakers.items() if b.withheld]:
        # withheld until the test is calm again
        breaker = tick.breakers[key]
        cell = tick.world.cell(breaker.region, breaker.channel)
        if _height(tick, cell) < CALM:
            tick.breakers[key] = replace(breaker, withheld=False)


def _trip(
    tick: _Tick, key: str, breaker: BreakerMemory, cause: str, live: frozenset[RegionName]
) -> None:
    policy = tick.world.topology.policy
    refusal = "nothing changes by itself now" if tick.hold else _refusal(tick, breaker, live)
    if refusal:
        if not breaker.withheld:
            text = f"{key} is bad ({cause}), yet stays closed: {refusal}"
            tick.events.append(_event("breaker_withheld", text, breaker, Severity.WARNING))
        tick.breakers[key] = replace(breaker, withheld=True)
        return
    breaker = decide(breaker, policy, tick.now_ms, good=False, cause=cause)
    breaker = replace(breaker, withheld=False)
    tick.breakers[key] = breaker
    cell = tick.world.cell(breaker.region, breaker.channel)
    tick.clear(cell)
    wait_s = ((breaker.open_until_ms or 0) - tick.now_ms) / 1000
    text = f"{key} opened for {wait_s:.1f} s: {cause}"
    tick.events.append(_event("breaker_opened", text, breaker, Severity.WARNING))


def _refusal(tick: _Tick, breaker: BreakerMemory, live: frozenset[RegionName]) -> str:
    """Say why a bad cell may not open; empty when it may."""
    policy = tick.world.topology.policy
    serving = tick.world.serving[tick.world.channel_index[breaker.channel]]
    names = [name for name in serving if name in live]
    if breaker.region not in names:
        return ""
    others = [name for name in names if name != breaker.region]
    closed = [name for name in others if _closed(tick, name, breaker.channel)]
    sound = [
        name for name in closed if _height(tick, tick.world.cell(name, breaker.channel)) < SOUND
    ]
    if not sound:
        # every live cell is bad: the provider is out, and opening moves nothing any more
        bad = [n for n in closed if _height(tick, tick.world.cell(n, breaker.channel)) < 1.0]
        return "no other region is better" if bad else ""
    most = min(math.ceil(policy.breaker_max_open_bp * len(names) / FULL_BP), len(names) - 1)
    already = len(others) - len(closed)
    if already + 1 > most:
        return f"{already} of {len(names)} live regions are open already"
    return ""


def _outages(
    tick: _Tick, before: tuple[ChannelName, ...], live: frozenset[RegionName]
) -> tuple[ChannelName, ...]:
    """Channels that are bad from every live region."""
    suspects = {b.channel for b in tick.breakers.values() if b.state is not Breaker.CLOSED}
    out = []
    for channel in sorted(suspects | set(before)):
        serving = tick.world.serving[tick.world.channel_index[channel]]
        names = [name for name in serving if name in live]
        closed = [name for name in names if _closed(tick, name, channel)]
        if names and not closed:
            out.append(channel)
            if channel not in before:
                text = f"{channel} fails from all of {', '.join(names)}: the provider is out"
                tick.events.append(
                    Event(
                        kind="provider_outage",
                        message=text,
                        severity=Severity.CRITICAL,
                        channel=channel,
                    )
                )
        elif channel in before:
            if names and len(closed) < len(names) and not _lasting(tick, closed, channel):
                out.append(channel)
                continue
            text = f"{channel} works again from {', '.join(closed) or 'nowhere'}"
            tick.events.append(Event(kind="provider_back", message=text, channel=channel))
    return tuple(out)


def _lasting(tick: _Tick, closed: list[RegionName], channel: ChannelName) -> bool:
    for name in closed:
        breaker = tick.breakers.get(f"{name}/{channel}")
        if breaker is None or tick.now_ms - breaker.since_ms >= OUTAGE_OVER_MS:
            return True
    return False


def _closed(tick: _Tick, region: RegionName, channel: ChannelName) -> bool:
    breaker = tick.breakers.get(f"{region}/{channel}")
    return breaker is None or breaker.state is Breaker.CLOSED


def _height(tick: _Tick, cell: int) -> float:
    """How far a cell's worse test stands, as a part of its threshold."""
    columns = tick.columns
    policy = tick.world.topology.policy
    threshold = thresholds(columns["rate"][cell : cell + 1], policy.breaker_false_alarm_ms)
    worse = max(float(columns["error_sum"][cell]), float(columns["slow_sum"][cell]))
    return worse / float(threshold[0])


def _cause(
    columns: Mapping[str, Column], cell: int, tested: Tested, place: int, slow_factor: int
) -> str:
    """Say in words why a cell tripped: the calls that came last, what is usual, and all evidence as
    so many bad calls in a row, for the last ones alone may be few."""
    calls = float(tested.good[place] + tested.bad[place])
    if float(columns["error_sum"][cell]) >= float(columns["slow_sum"][cell]):
        what, bad, name = "failed", float(tested.bad[place]), "error"
    else:
        limit_ms = slow_factor * 2.0 ** (float(columns["latency_base"][cell]) / 4.0)
        what, bad, name = f"took over {limit_ms:.0f} ms", float(tested.slow[place]), "slow"
    base = columns[f"{name}_base"][cell : cell + 1]
    nats = float(columns[f"{name}_sum"][cell])
    row = math.ceil(nats / float(ratios(base)[0][0]))
    return (
        f"{bad:.0f} of the last {max(calls, bad):.0f} calls {what}, usually {float(base[0]):.1%}; "
        f"{nats:.0f} nats of evidence, as much as {row} in a row"
    )


def _event(
    kind: str, message: str, breaker: BreakerMemory, severity: Severity = Severity.INFO
) -> Event:
    return Event(
        kind=kind,
        message=message,
        severity=severity,
        region=breaker.region,
        channel=breaker.channel,
        data={"trips": breaker.trips},
    )
