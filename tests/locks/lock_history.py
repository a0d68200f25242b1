"""The exact checker of lock histories: sound and complete for the two promises, in O(n log n).

A grant is (name, token, asked, returned) on one monotonic clock. Promises, per name:

1. **unique**: no token is granted twice;
2. **forward**: no grant that had returned before another was asked for has a token as high as its.

Sorted by time, the second needs only the highest token returned before each ask. Two grants whose
times overlap may be in either order. Repeated and re-entrant grants of one hold are one grant:
record them once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """One grant as its holder saw it. Times in ns on CLOCK_MONOTONIC of one machine."""

    name: str
    token: int
    asked_ns: int
    returned_ns: int
    until_ns: int = 0
    """When it was given back or its time was over; 0 when unknown."""
    shared: bool = False


@dataclass(slots=True)
class Verdict:
    """What the checker found. `ok` is what the promises are about; overlaps are about exclusion."""

    grants: int = 0
    duplicates: int = 0
    backwards: int = 0
    overlaps: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether tokens are unique and never went back."""
        return not self.duplicates and not self.backwards


def check(history: Iterable[Granted]) -> Verdict:
    """Check a history, name by name."""
    verdict = Verdict()
    names: dict[str, list[Granted]] = {}
    for grant in history:
        names.setdefault(grant.name, []).append(grant)
    for grants in names.values():
        verdict.grants += len(grants)
        _unique(grants, verdict)
        _forward(grants, verdict)
        _exclusive(grants, verdict)
    return verdict


def _unique(grants: list[Granted], verdict: Verdict) -> None:
    seen: dict[int, Granted] = {}
    for grant in grants:
        other = seen.setdefault(grant.token, grant)
        if other is not grant:
            verdict.duplicates += 1
            _example(verdict, "duplicate", other, grant)


def _forward(grants: list[Granted], verdict: Verdict) -> None:
    returned = sorted(grants, key=attrgetter("returned_ns"))
    highest: Granted | None = None
    at = 0
    for grant in sorted(grants, key=attrgetter("asked_ns")):
        while at < len(returned) and returned[at].returned_ns < grant.asked_ns:
            if highest is None or returned[at].token > highest.token:
                highest = returned[at]
            at += 1
        if highest is not None and highest.token >= grant.token:
            verdict.backwards += 1
            _example(verdict, "backwards", highest, grant)


def _exclusive(grants: list[Granted], verdict: Verdict) -> None:
    """Count writers whose holds overlap: not a promise about tokens, but what a quarantine is
    for."""
    end, last = 0, None
    for grant in sorted(grants, key=attrgetter("returned_ns")):
        if grant.until_ns < grant.returned_ns or grant.shared:
            continue  # not told, or over before it was returned: its holder may not act at all
        if last is not None and grant.returned_ns < end:
            verdict.overlaps += 1
            _example(verdict, "overlap", last, grant)
        if grant.until_ns > end:
            end, last = grant.until_ns, grant


def _example(verdict: Verdict, what: str, first: Granted, second: Granted) -> None:
    if len(verdict.examples) < 5:
        verdict.examples.append(f"{what}: {first} then {second}")
