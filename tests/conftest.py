"""What holds for every test.

Tests start real servers as children of a process in which gRPC runs threads. gRPC's own fork
handlers would make such a child die now and then; our children are exec'ed at once and need none.
The switch is read when grpc is imported, so it is set here, before any test module.

A machine that is starved for seconds can make a real etcd elect anew or a real Envoy eject a host in
the middle of a test. A test beside real processes therefore gets a second chance, alone. It is not
free: pytest's closing line counts it as rerun, the summary names it with its first failure, and each
is to be explained. Tests of pure code get none, and a whole run at most five.
"""

import os
from pathlib import Path
from typing import Final

import hypothesis
import pytest

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# neither a deadline nor a judgement on slowness: on a shared machine they would test the machine
hypothesis.settings.register_profile(
    "weir",
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("weir")

PURE: Final = frozenset({"contract", "decision", "sim"})
"""Folders whose tests start no process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test beside real processes a second chance."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] not in PURE:
            item.add_marker(pytest.mark.flaky(reruns=1))
