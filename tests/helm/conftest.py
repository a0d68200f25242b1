"""Fixtures of the chart's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helm.charts import CASES, Harness, Helm, Release


@pytest.fixture(scope="session")
def harness() -> Iterator[Harness]:
    """Helm's engine with every rendered case kept."""
    with Harness(Helm()) as found:
        yield found


@pytest.fixture(params=CASES)
def release(request: pytest.FixtureRequest, harness: Harness) -> Release:
    """Each case in turn, rendered for the default version."""
    return harness.case(request.param)
