"""Latency in fixed exponential buckets.

Every histogram in Weir has the same 66 buckets with ratio 2^(1/4): they merge by addition,
subtract to give an interval, and do not care about order. Bucket 0 holds everything up to 1 ms,
bucket i covers (2^((i-1)/4), 2^(i/4)] ms, bucket 65 everything above 2^16 ms (65.5 s). The relative
error of a quantile is at most 19 %.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from typing import Final

BUCKETS: Final = 66
BOUNDS_MS: Final[tuple[float, ...]] = tuple(2.0 ** (i / 4) for i in range(BUCKETS - 1))
"""Upper bounds of buckets 0 to 64, in ms."""

Histogram = Mapping[int, int]
"""Sparse: bucket number to count."""


def bucket_of(latency_ms: float) -> int:
    """Return the bucket (0 to 65) of a latency in ms; negative latencies count as 0."""
    return bisect.bisect_left(BOUNDS_MS, latency_ms)


def quantile_ms(histogram: Histogram, q: float) -> float | None:
    """Return the upper bound in ms of the bucket holding quantile `q` (0..1), or None when
    empty."""
    total = sum(histogram.values())
    if total <= 0:
        return None
    rank = q * total
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= rank:
            return BOUNDS_MS[bucket] if bucket < len(BOUNDS_MS) else 2.0 * BOUNDS_MS[-1]
    return 2.0 * BOUNDS_MS[-1]


def count_above(histogram: Histogram, threshold_ms: float) -> int:
    """Count calls in buckets that lie wholly above `threshold_ms`."""
    first = bucket_of(threshold_ms) + 1
    return sum(n for bucket, n in histogram.items() if bucket >= first)


def merge(a: Histogram, b: Histogram) -> dict[int, int]:
    """Add two histograms."""
    out = dict(a)
    for bucket, n in b.items():
        out[bucket] = out.get(bucket, 0) + n
    return out


def subtract(newer: Histogram, older: Histogram) -> dict[int, int]:
    """Return what `newer` has gained over `older`; counts that went back (another boot) give 0."""
    # most buckets have not changed since the last report: the views' difference finds the others
    return {
        bucket: gained
        for bucket, n in sorted(newer.items() - older.items())
        if (gained := n - older.get(bucket, 0)) > 0
    }
