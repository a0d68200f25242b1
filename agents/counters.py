"""What an agent has seen, cumulative since its boot.

Cumulative numbers make reports idempotent: a report that is lost, repeated or overtaken loses
nothing, the next one says it all again. Nothing here ever goes back while the agent lives, whatever
the application does (see `Application`).

Latency goes into the histogram for answers, and for timeouts at their deadline; a refused
connection took no time that a payment would have waited.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agents.probes.observation import Observation, Reason
from agents.targets import Subject, Target
from controlplane.model.evidence import NOTHING, CellCounters, IngressView, Outcomes, PhaseTimes
from controlplane.model.ids import ChannelName, RegionName
from controlplane.model.latency import bucket_of, merge, subtract


@dataclass(slots=True)
class Tally:
    """Outcomes of one target's probes. `histogram` and `phases` count by bucket."""

    ok: int = 0
    error: int = 0
    histogram: dict[int, int] = field(default_factory=dict)
    phases: dict[str, dict[int, int]] = field(default_factory=dict)
    last_success_ms: int | None = None
    failures_since_success: int = 0

    def add(self, seen: Observation, now_ms: int) -> None:
        """Count one observation made at `now_ms` (monotonic)."""
        if seen.ok:
            self.ok += 1
            self.last_success_ms = now_ms
            self.failures_since_success = 0
        else:
            self.error += 1
            self.failures_since_success += 1
        if seen.ok or seen.reason is Reason.TIMEOUT:
            _count(self.histogram, seen.total_ms)
        for phase, took_ms in seen.phases.items():
            _count(self.phases.setdefault(phase, {}), took_ms)


@dataclass(slots=True)
class Application:
    """Real payments of one channel as the application counts them, cumulative since *its* boot.

    What it had counted before this agent first asked belongs to an earlier life of ours and is left
    out. When its `boot` changes, what it had counted is kept and the new life is added. A counter
    that goes back within one life is a fault of the application: the highest value stands.
    """

    boot: int | None = None
    base: Outcomes = NOTHING
    origin: Outcomes = NOTHING
    newest: Outcomes = NOTHING

    def update(self, boot: int, counted: Outcomes) -> None:
        """Take what the application says now."""
        if self.boot is None:
            self.origin = self.newest = counted
        elif boot != self.boot:
            self.base, self.origin, self.newest = self.total, NOTHING, counted
        else:
            self.newest = _highest(self.newest, counted)
        self.boot = boot

    @property
    def total(self) -> Outcomes:
        """Everything since the agent's boot."""
        return _add(self.base, _minus(self.newest, self.origin))


class Counters:
    """All counters of one agent for a fixed set of channels and targets."""

    def __init__(self, channels: Iterable[str], targets: Iterable[Target]) -> None:
        found = tuple(targets)
        self._probes = {t.name: Tally() for t in found if t.subject is Subject.CHANNEL}
        self._ingress = {t.name: Tally() for t in found if t.subject is Subject.INGRESS}
        self._traffic = {name: Application() for name in channels}

    @property
    def channels(self) -> frozenset[str]:
        """Channels whose traffic may be counted."""
        return frozenset(self._traffic)

    def observed(self, target: Target, seen: Observation, now_ms: int) -> None:
        """Count one probe."""
        tallies = self._probes if target.subject is Subject.CHANNEL else self._ingress
        tallies[target.name].add(seen, now_ms)

    def counted(self, channel: str, boot: int, outcomes: Outcomes) -> None:
        """Take the application's counters of one channel; KeyError when it is not ours."""
        self._traffic[channel].update(boot, outcomes)

    def cells(self) -> tuple[CellCounters, ...]:
        """Return one entry per channel probed or used, sorted."""
        names = sorted(self._probes.keys() | self._traffic.keys())
        return tuple(
            CellCounters(
                channel=ChannelName(name),
                traffic=self._traffic[name].total if name in self._traffic else NOTHING,
                probe=_outcomes(self._probes.get(name)),
            )
            for name in names
        )

    def phases(self) -> tuple[PhaseTimes, ...]:
        """Return the time channels' probes spent in each phase, sorted by channel and phase."""
        return tuple(
            PhaseTimes(channel=ChannelName(name), phase=phase, latency=dict(histogram))
            for name, tally in sorted(self._probes.items())
            for phase, histogram in sorted(tally.phases.items())
        )

    def ingress(self, now_ms: int) -> tuple[IngressView, ...]:
        """Return the view of every other region's ingress at `now_ms`, sorted by region."""
        return tuple(
            IngressView(
                target=RegionName(name),
                ok=tally.ok,
                failed=tally.error,
                last_success_age_ms=(
                    None
                    if tally.last_success_ms is None
                    else max(0, now_ms - tally.last_success_ms)
                ),
                failures_since_success=tally.failures_since_success,
            )
            for name, tally in sorted(self._ingress.items())
        )


def _count(histogram: dict[int, int], took_ms: float) -> None:
    bucket = bucket_of(took_ms)
    histogram[bucket] = histogram.get(bucket, 0) + 1


def _outcomes(tally: Tally | None) -> Outcomes:
    if tally is None:
        return NOTHING
    return Outcomes(ok=tally.ok, error=tally.error, latency=dict(tally.histogram))


def _add(a: Outcomes, b: Outcomes) -> Outcomes:
    return Outcomes(
        ok=a.ok + b.ok,
        error=a.error + b.error,
        declined=a.declined + b.declined,
        latency=merge(a.latency, b.latency),
    )


def _minus(newer: Outcomes, older: Outcomes) -> Outcomes:
    return Outcomes(
        ok=newer.ok - older.ok,
        error=newer.error - older.error,
        declined=newer.declined - older.declined,
        latency=subtract(newer.latency, older.latency),
    )


def _highest(a: Outcomes, b: Outcomes) -> Outcomes:
    return Outcomes(
        ok=max(a.ok, b.ok),
        error=max(a.error, b.error),
        declined=max(a.declined, b.declined),
        latency={
            bucket: max(a.latency.get(bucket, 0), b.latency.get(bucket, 0))
            for bucket in a.latency.keys() | b.latency.keys()
        },
    )
