"""Cells: sequential tests of every region x channel against its own past.

Theory. Page's CUSUM: each call adds log(p1/p0) when it failed and log((1-p1)/(1-p0)) when not,
never below 0; the test trips above a threshold h. Among all tests with the same rate of false
alarms it finds a change soonest. p0 is what the cell usually fails, learned; p1 is 30 % or 2.5
times p0. The threshold grows with the logarithm of the rate of calls, so that *in time* every cell
has the same rate of false alarms: one in 1000 days, one a month for a whole installation's cells. A
second test does the same for slow calls (slower than three times the learned mean).

Rules
- Real payments count; probes count only where no payment was seen for 10 s. A probe says less than
  a payment, and mixing the two thins out what payments say.
- A decline is an answer, not an error.
- Baselines are learned slowly (600 s or 2,000 calls, whichever is longer), within bounds, and never
  while the test is rising, the breaker is not closed, or the region is out or its observer unwell:
  an incident must not become the norm.
- Evidence is counted in calls: at one request a minute a single failure proves nothing, and some
  eight in a row do.

Failure modes. An observer that is unwell sees failures of its own making: its cells are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from controlplane.decision.state import Column, State
from controlplane.decision.world import World
from controlplane.model.evidence import Evidence, Gains, Outcomes
from controlplane.model.plan import Breaker, Phase

TRAFFIC_RECENT_MS: Final = 10_000
LEARN_CALLS: Final = 2000
LEARN_S: Final = 600.0
FIRST_CALLS: Final = 100
"""Weight of the first guess, in calls."""
BASE_LEAST: Final = 0.01
BASE_MOST: Final = 0.2
ALTERNATIVE: Final = 0.3
ALTERNATIVE_FACTOR: Final = 2.5
CALM: Final = 0.25
"""Baselines are learned while a test is below this part of its threshold."""
RATE_S: Final = 60.0
RATE_LEAST: Final = 0.01
BEYOND: Final = 10.0
"""Nats a test may stand above its threshold: so that recovery is noticed."""
RECENT_CALLS: Final = 500.0
BUCKETS_PER_DOUBLING: Final = 4.0
LATENCY_BOUND: Final = 8.0
"""The learned mean stays within these many buckets (4x) of the configured median."""
TILT_EVERY_MS: Final = 5000
TILT_CALLS: Final = 50.0
TILT_LEAST: Final = 0.5
TILT_PER_ERROR: Final = 5.0
TILT_LATENCY_MOST: Final = 0.3

Index = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
Place = Index | slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What one tick's tests say. Arrays run over `cell`, the cells that gained something.

    `good`, `bad` and `slow` are the calls that counted; `tripped` marks tests above threshold.
    """

    cell: Index
    good: Column
    bad: Column
    slow: Column
    threshold: Column
    tripped: Mask


def thresholds(rate: Column, false_alarm_ms: int) -> Column:
    """Threshold in nats by calls a second: log of the calls in the time of one false alarm."""
    seconds = false_alarm_ms / 1000.0
    return np.asarray(np.log1p(np.maximum(rate, RATE_LEAST) * seconds), dtype=np.float64)


def ratios(base: Column) -> tuple[Column, Column]:
    """Nats per failed and per good call (the second negative) for a learned share of failures."""
    p0 = np.clip(base, BASE_LEAST, BASE_MOST) * 1.1
    p1 = np.minimum(0.9, np.maximum(ALTERNATIVE, ALTERNATIVE_FACTOR * p0))
    return np.log(p1 / p0), np.log((1.0 - p1) / (1.0 - p0))


def gains_of(world: World, evidence: Evidence) -> Gains:
    """Return what cells gained as columns, whatever form the evidence has."""
    if evidence.gains is not None:
        return evidence.gains
    rows: list[tuple[int, int, int, int, int]] = []
    latency: list[tuple[int, int, int]] = []
    for region in evidence.regions:
        if not region.cells or region.region not in world.region_index:
            continue
        first = world.region_index[region.region] * len(world.channel_index)
        for counters in region.cells:
            column = world.channel_index.get(counters.channel)
            if column is None:
                continue
            traffic, probe = counters.traffic, counters.probe
            cell = first + column
            rows.append((cell, *_good_bad(traffic), *_good_bad(probe)))
            chosen = traffic if traffic.total else probe
            latency.extend((cell, bucket, count) for bucket, count in chosen.latency.items())
    rows.sort()
    latency.sort()
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    triples = list(zip(*latency, strict=True)) if latency else [()] * 3
    return Gains(
        cell=columns[0],
        traffic_good=columns[1],
        traffic_bad=columns[2],
        probe_good=columns[3],
        probe_bad=columns[4],
        latency_cell=triples[0],
        latency_bucket=triples[1],
        latency_count=triples[2],
    )


def observe_cells(
    world: World, state: State, evidence: Evidence, passed_ms: int
) -> tuple[State, Tested | None]:
    """Feed one tick to the tests; return the state and what the tests say, None if nothing came."""
    gains = gains_of(world, evidence)
    if len(gains.cell) == 0:
        return state, None
    policy, now_ms = world.topology.policy, float(state.memory.now_ms)
    old = state.columns
    cell: Index = np.asarray(gains.cell, dtype=np.intp)
    traffic_good, traffic_bad = _column(gains.traffic_good), _column(gains.traffic_bad)
    traffic = traffic_good + traffic_bad > 0
    place = _place(cell, old["rate"].size)
    seen_ms = np.where(traffic, now_ms, old["traffic_ms"][place])
    real = now_ms - seen_ms < TRAFFIC_RECENT_MS
    good = np.where(real, traffic_good, _column(gains.probe_good))
    bad = np.where(real, traffic_bad, _column(gains.probe_bad))
    calls = good + bad
    slow, timed, buckets = _latency(gains, old["latency_base"], cell, place, policy.slow_factor)
    heard = ~real | traffic
    slow, timed, buckets = slow * heard, timed * heard, buckets * heard
    rate = _smoothed_rate(old["rate"], place, calls, passed_ms)
    threshold = thresholds(rate[place], policy.breaker_false_alarm_ms)
    judged = judged_cells(world, state)[place]
    up, down = ratios(old["error_base"][place])
    error_sum = _cusum(old["error_sum"][place], bad * up + good * down, threshold, judged)
    up, down = ratios(old["slow_base"][place])
    fast = np.maximum(0.0, timed - slow)
    slow_sum = _cusum(old["slow_sum"][place], slow * up + fast * down, threshold, judged)
    calm = judged & (np.maximum(error_sum, slow_sum) < CALM * threshold)
    fresh = old["learned"][place] < FIRST_CALLS
    learn = judged & (calm | fresh) & (calls > 0)
    changed: dict[str, Column] = {
        "traffic_ms": seen_ms,
        "error_sum": error_sum,
        "slow_sum": slow_sum,
    }
    changed |= _learned(old, place, learn, calls, bad, timed, slow, buckets, rate)
    changed |= _recent(old, place, calls, bad, timed, buckets)
    columns = {**old, "rate": rate}
    for name, values in changed.items():
        columns[name] = _put(old[name], place, values)
    tripped = judged & ((error_sum >= threshold) | (slow_sum >= threshold))
    memory_state = State(
        memory=state.memory, regions=state.regions, channels=state.channels, columns=columns
    )
    return memory_state, Tested(
        cell=cell, good=good, bad=bad, slow=slow, threshold=threshold, tripped=tripped
    )


def judged_cells(world: World, state: State) -> Mask:
    """Cells whose tests run: breaker closed, region not out, observer well."""
    shape = (len(world.region_index), len(world.channel_index))
    judged = np.ones(shape, dtype=np.bool_)
    memory = state.memory
    for name, row in world.region_index.items():
        region = memory.regions[name]
        out = region.phase is Phase.FAILED or region.moved
        if out or name in memory.unwell:
            judged[row, :] = False
    for breaker in memory.breakers.values():
        if breaker.state is not Breaker.CLOSED:
            judged[world.region_index[breaker.region], world.channel_index[breaker.channel]] = False
    return judged.reshape(-1)


def tilted(world: World, state: State) -> Column:
    """Return the tilt of every cell: the part of its share that it keeps, in steps of a tenth.

    A cell is compared with the best cell of its channel, beyond what chance explains; latency with
    its own past. A step is taken only when it is worth three quarters of a tenth: no wobbling.
    While a channel's test rises anywhere its tilts stay: recent counts run over calls, so of a rise
    that is the same everywhere a busy cell tells first, and would be blamed for it.
    """
    columns = state.columns
    worse = np.maximum(columns["error_sum"], columns["slow_sum"])
    limit = CALM * thresholds(columns["rate"], world.topology.policy.breaker_false_alarm_ms)
    shape = (len(world.region_index), len(world.channel_index))
    calls = columns["recent_calls"]
    known = calls >= TILT_CALLS
    safe = np.maximum(calls, 1.0)
    share = np.where(known, columns["recent_errors"] / safe, np.nan).reshape(shape)
    some = np.where(np.isnan(share), np.inf, share)
    best = np.broadcast_to(some.min(axis=0), shape).reshape(-1)
    error = np.where(known, share.reshape(-1), 0.0)
    best = np.where(np.isfinite(best), best, 0.0)
    chance = 3.0 * np.sqrt((np.maximum(error, 0.01) * (1.0 - np.minimum(error, 0.99))) / safe)
    excess = np.maximum(0.0, error - best - chance - 0.005)
    mean = columns["recent_latency"] / safe
    slower = np.where(known, mean - columns["latency_base"] - 2.0, 0.0)
    raw = 1.0 - TILT_PER_ERROR * excess - np.clip(0.1 * slower, 0.0, TILT_LATENCY_MOST)
    raw = np.clip(raw, TILT_LEAST, 1.0)
    held = columns["tilt"]
    closed = judged_cells(world, state)  # a test that does not run does not rise
    high = (closed & (worse >= limit)).reshape(shape)
    rising = np.broadcast_to(high.any(axis=0), shape).reshape(-1)
    step = (np.abs(raw - held) >= 0.075) & ~rising  # noqa: PLR2004 - see above
    tilt = np.where(step, np.round(raw, 1), held)
    return np.asarray(np.where(closed, tilt, 1.0), dtype=np.float64)


def _good_bad(outcomes: Outcomes) -> tuple[int, int]:
    return outcomes.ok + outcomes.declined, outcomes.error


def _column(values: object) -> Column:
    return np.asarray(values, dtype=np.float64)


def _place(cell: Index, size: int) -> Place:
    """Return where `cell` lies in a column: views when every cell gained, gathered copies else."""
    return slice(None) if cell.size == size else cell


def _put(column: Column, place: Place, values: Column) -> Column:
    if isinstance(place, slice):
        return values
    column = column.copy()
    column[place] = values
    return column


def _cusum(total: Column, gain: Column, threshold: Column, judged: Mask) -> Column:
    risen = np.minimum(np.maximum(0.0, total + gain), threshold + BEYOND)
    return np.where(judged, risen, 0.0)


def _latency(
    gains: Gains, base: Column, cell: Index, place: Place, slow_factor: int
) -> tuple[Column, Column, Column]:
    """Slow calls, timed calls and the sum of bucket numbers, for each of `cell`."""
    if len(gains.latency_cell) == 0:
        nothing = np.zeros(cell.size)
        return nothing, nothing, nothing
    at = np.asarray(gains.latency_cell, dtype=np.intp)
    if not isinstance(place, slice):
        at = np.searchsorted(cell, at)
    bucket, count = _column(gains.latency_bucket), _column(gains.latency_count)
    limit = base[place] + BUCKETS_PER_DOUBLING * math.log2(slow_factor)
    slow = np.where(bucket > limit[at], count, 0.0)
    size = cell.size
    return (
        _column(np.bincount(at, weights=slow, minlength=size)),
        _column(np.bincount(at, weights=count, minlength=size)),
        _column(np.bincount(at, weights=bucket * count, minlength=size)),
    )


def _smoothed_rate(rate: Column, place: Place, calls: Column, passed_ms: int) -> Column:
    """Return calls a second, smoothed over RATE_S."""
    if passed_ms <= 0:
        return rate
    keep = math.exp(-passed_ms / 1000.0 / RATE_S)
    smooth = rate * keep
    smooth[place] += calls * ((1.0 - keep) / (passed_ms / 1000.0))
    return smooth


def _learned(  # noqa: PLR0917 - columns of one table, in its order
    old: Mapping[str, Column],
    place: Place,
    learn: Mask,
    calls: Column,
    bad: Column,
    timed: Column,
    slow: Column,
    buckets: Column,
    rate: Column,
) -> dict[str, Column]:
    known = old["learned"][place]
    most = np.maximum(float(LEARN_CALLS), LEARN_S * rate[place])
    counted = np.where(learn, calls, 0.0)
    weight = counted / (np.maximum(known, FIRST_CALLS) + calls)
    error_base = old["error_base"][place]
    error = bad / np.maximum(calls, 1.0)
    has_time = learn & (timed > 0)
    timed_safe = np.maximum(timed, 1.0)
    time_weight = np.where(has_time, weight, 0.0)
    slow_base, latency_base = old["slow_base"][place], old["latency_base"][place]
    return {
        "learned": np.minimum(known + counted, most),
        "error_base": np.clip(error_base + weight * (error - error_base), 0.0, BASE_MOST),
        "slow_base": np.clip(
            slow_base + time_weight * (slow / timed_safe - slow_base), 0.0, BASE_MOST
        ),
        "latency_base": latency_base + time_weight * (buckets / timed_safe - latency_base),
    }


def _recent(
    old: Mapping[str, Column],
    place: Place,
    calls: Column,
    bad: Column,
    timed: Column,
    buckets: Column,
) -> dict[str, Column]:
    keep = np.exp(-calls / RECENT_CALLS)
    recent = old["recent_calls"][place]
    mean = old["recent_latency"][place] / np.maximum(recent, 1e-9)
    heard = np.where(timed > 0, buckets / np.maximum(timed, 1.0), mean)
    return {
        "recent_calls": recent * keep + calls,
        "recent_errors": old["recent_errors"][place] * keep + bad,
        "recent_latency": old["recent_latency"][place] * keep + heard * calls,
    }
