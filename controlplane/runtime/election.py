"""When to take the leader key: the election as a pure function of what was read and when.

Theory. The leader puts a heartbeat in every tick. A candidate reads leader key and heartbeat
linearizably every `poll_ms`. A heartbeat that stands still *while the candidate's own reads keep
succeeding* means that etcd works and the leader does not: the candidate takes over. A lease would
say the same much later (2 x TTL + 2.6 s when etcd's own leader changed). Safety does not depend on
any of this: a claim is a transaction on the revisions seen, and every write carries its term.

Rules
- A failed read, or a pause of more than `read_gap_ms` between two reads, starts the wait anew: we
  were blind, so we cannot say that the leader stood still. etcd's own elections depose nobody.
- The wait is `takeover_after_ms`, or `slow_factor` times the longest recent pause between two
  heartbeats (at most `takeover_max_ms`): on a slow disk the next leader would be no faster.
- Candidates stagger by rank and jitter; collisions cost a transaction, nothing more.
- Who is not eligible (its region is failed or drained, or it has just resigned) waits
  `ineligible_extra_ms` longer: it leads only when nobody else does. When nobody else *can* (no
  replica of a region that is not out is heard, `another_can`), its region no longer holds it back:
  it waits as long as for a standstill, at a vacant key too, so that whoever lives had the time to
  be heard, and `alone_extra_ms`, so that one who lives unheard still is first.
- A claim that failed waits `claim_backoff_ms`, doubled up to `claim_backoff_max_ms`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from controlplane.model.evidence import Digest
from controlplane.model.ids import RegionName
from controlplane.model.plan import Phase, Plan
from controlplane.ports import LeaderKeyState


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionRules:
    """Times of the election in ms of the local monotonic clock."""

    takeover_after_ms: int = 1500
    demote_after_ms: int = 1400
    poll_ms: int = 150
    read_gap_ms: int = 700
    rank_step_ms: int = 100
    vacant_step_ms: int = 15
    jitter_ms: int = 20
    slow_factor: int = 2
    takeover_max_ms: int = 6000
    ineligible_extra_ms: int = 5000
    alone_extra_ms: int = 500
    claim_backoff_ms: int = 200
    claim_backoff_max_ms: int = 3200
    lease_ttl_s: int = 5
    ttl_factor: int = 4
    beats_kept: int = 16

    def takeover_ms(self, pauses_ms: Collection[int]) -> int:
        """Return the standstill that counts as the end of a leader, after recent pauses between
        its heartbeats."""
        slow_ms = self.slow_factor * max(pauses_ms, default=0)
        ceiling_ms = max(self.takeover_max_ms, self.takeover_after_ms)
        return max(self.takeover_after_ms, min(slow_ms, ceiling_ms))

    def ttl_s(self, reads_ms: Collection[int]) -> int:
        """Return the TTL of the lease to claim with, after recent reads that took so long: on a
        slow disk it has to outlive its own grant and the claim."""
        slow_s = self.ttl_factor * max(reads_ms, default=0) // 1000
        return max(self.lease_ttl_s, min(slow_s, self.ttl_factor * self.lease_ttl_s))

    def demote_ms(self, took_ms: Collection[int]) -> int:
        """Return how long after it was sent the last write vouches for a leader whose recent
        writes took so long: always as much shorter than a takeover as is configured."""
        return self.takeover_ms(took_ms) - (self.takeover_after_ms - self.demote_after_ms)


def regions_out(plan: Plan | None) -> frozenset[RegionName]:
    """Regions that a plan calls drained or failed: they do not campaign while another can."""
    regions = plan.regions if plan is not None else ()
    return frozenset(s.name for s in regions if s.drained or s.phase is Phase.FAILED)


def another_can(
    heard: Iterable[tuple[Digest, int]],
    out: Collection[RegionName],
    without: Collection[str],
    within_ms: int,
) -> bool:
    """Whether some replica of a region that is not `out` is heard: it could lead.

    `heard` are the replicas' newest digests with their age in ms; one that is older than
    `within_ms` says nothing any more. `without` names who does not count: ourselves, and the leader
    whose heartbeat we see standing still, for it may be well and cut off from etcd.
    """
    return any(
        age_ms <= within_ms and digest.region not in out and digest.replica not in without
        for digest, age_ms in heard
    )


class Candidate:
    """What one candidate knows. Feed it with `saw` and `blind`, ask it with `due_ms`."""

    def __init__(self, rules: ElectionRules, rank: int, rng: random.Random) -> None:
        self._rules = rules
        self._rank = rank
        self._random = rng
        self._seen: LeaderKeyState | None = None
        self._since_ms = 0
        self._read_ms: int | None = None
        self._pauses: deque[int] = deque(maxlen=rules.beats_kept)
        self._jitter_ms = 0
        self._unbroken = False
        self._not_before_ms = 0
        self._failed_claims = 0

    @property
    def seen(self) -> LeaderKeyState | None:
        """What the last successful read saw; None before the first."""
        return self._seen

    def beat_age_ms(self, now_ms: int) -> int | None:
        """How long the heartbeat stands still as far as we know; None before the first read."""
        return None if self._seen is None else now_ms - self._since_ms

    def read_age_ms(self, now_ms: int) -> int | None:
        """How long ago a linearizable read succeeded; None when never."""
        return None if self._read_ms is None else now_ms - self._read_ms

    def saw(self, now_ms: int, state: LeaderKeyState) -> None:
        """Take in a successful read that was answered at `now_ms`."""
        before, self._seen = self._seen, state
        gap = self._read_ms is None or now_ms - self._read_ms > self._rules.read_gap_ms
        self._read_ms = now_ms
        if before is not None and _pulse(before) == _pulse(state):
            if gap:
                self._restart(now_ms, unbroken=False)
            return
        if before is not None and before.term == state.term and self._unbroken and not gap:
            self._pauses.append(now_ms - self._since_ms)
        if before is None or before.term != state.term:
            self._failed_claims = 0
        self._restart(now_ms, unbroken=True)

    def blind(self, now_ms: int) -> None:
        """Take in a failed read: the standstill cannot be vouched for any more."""
        self._restart(now_ms, unbroken=False)

    def claim_failed(self, now_ms: int) -> None:
        """Take in a claim that etcd refused or did not answer."""
        wait_ms = self._rules.claim_backoff_ms << min(self._failed_claims, 10)
        self._failed_claims += 1
        self._not_before_ms = now_ms + min(wait_ms, self._rules.claim_backoff_max_ms)
        self._restart(now_ms, unbroken=False)

    def takeover_ms(self) -> int:
        """Return the standstill in ms that counts as the end of a leader."""
        return self._rules.takeover_ms(self._pauses)

    def due_ms(self, *, eligible: bool, alone: bool = False) -> int | None:
        """When to claim, if nothing changes until then; None while there is no reading.

        `alone`: we are not eligible, and nobody who is can be heard.
        """
        if self._seen is None:
            return None
        alone = alone and not eligible
        if self._seen.term == 0 and not alone:
            wait_ms = self._rank * self._rules.vacant_step_ms
        else:
            wait_ms = self.takeover_ms() + self._rank * self._rules.rank_step_ms
        if not eligible:
            wait_ms += self._rules.alone_extra_ms if alone else self._rules.ineligible_extra_ms
        return max(self._since_ms + wait_ms + self._jitter_ms, self._not_before_ms)

    def _restart(self, now_ms: int, *, unbroken: bool) -> None:
        self._since_ms = now_ms
        self._unbroken = unbroken
        self._jitter_ms = self._random.randrange(self._rules.jitter_ms + 1)


def _pulse(state: LeaderKeyState) -> tuple[int, int]:
    return state.term, state.heartbeat_revision
