"""Cost and size of /metrics at 3 regions x 100 channels. Target: <= 50 ms and <= 300 kB."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from controlplane.adapters.metric_catalogue import PROBE_PHASES
from controlplane.adapters.prometheus import Meters
from tests.observability.test_metrics import agent, filled

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 50
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def measure(name: str, meters: Meters, accept: str) -> None:
    """Scrape again and again and print one line."""
    times_ms = []
    cpu_start = time.process_time()
    for _ in range(ROUNDS):
        start = time.perf_counter()
        body, _ = meters.exposition(accept)
        times_ms.append((time.perf_counter() - start) * 1000)
    cpu_ms = (time.process_time() - cpu_start) * 1000 / ROUNDS
    series = sum(not line.startswith(b"#") for line in body.splitlines())
    p99 = statistics.quantiles(times_ms, n=100)[98]
    print(
        f"{name:<24}{series:>8}{len(body) / 1000:>9.1f} kB"
        f"{statistics.median(times_ms):>9.1f} ms{p99:>9.1f} ms{cpu_ms:>9.1f} ms"
    )


def main() -> None:
    """Print the table."""
    print(f"{'':<24}{'series':>8}{'size':>12}{'p50':>12}{'p99':>12}{'CPU':>12}")
    for channels in (4, 100):
        measure(f"replica, 3 x {channels}", filled(channels), "")
        measure(f"replica, 3 x {channels}, OM", filled(channels), OPENMETRICS)
        measure(f"agent, {channels} x {len(PROBE_PHASES)} phases", agent(channels), "")


if __name__ == "__main__":
    main()
