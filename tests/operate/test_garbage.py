"""A replica does not look for garbage in the middle of a push."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from controlplane import garbage


@pytest.fixture
def collector() -> Iterator[None]:
    """Give the collector back as it was."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_calls_under_way_to_all_streams_start_no_collection() -> None:
    """Four thousand streams with ten objects each in flight are below the first look; more are not."""
    looks = list[int]()

    def look(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            looks.append(info["generation"])

    gc.collect()
    garbage.settle()
    gc.callbacks.append(look)
    try:
        under_way = [[number] for number in range(40_000)]
        assert looks == []
        under_way += [[number] for number in range(garbage.YOUNG_MAX)]
        assert looks
    finally:
        gc.callbacks.remove(look)
    assert gc.get_freeze_count() > 0
