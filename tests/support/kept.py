"""Something costly that the tests of a module share, made anew where that matters.

A module's fixture is made once, so a test that fails because of what it was given fails again when
it is run again. What is kept here is made anew for such a second chance, and for whoever comes after
a test that broke it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Generic, TypeVar

import pytest

T = TypeVar("T")


class Kept(Generic[T]):
    """One thing at a time, made by `make`."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make = make
        self._held: tuple[T, ExitStack] | None = None

    def get(self, test: pytest.Item) -> T:
        """Return the thing; a new one when the test has failed with the last one."""
        if getattr(test, "execution_count", 1) > 1:  # counted by pytest-rerunfailures
            self.drop()
        if self._held is None:
            with ExitStack() as stack:
                made = stack.enter_context(self._make())
                self._held = made, stack.pop_all()
        return self._held[0]

    def drop(self) -> None:
        """End the thing: the next one who asks gets a new one."""
        held, self._held = self._held, None
        if held:
            held[1].close()


@contextlib.contextmanager
def kept(make: Callable[[], AbstractContextManager[T]]) -> Iterator[Kept[T]]:
    """Keep one for a module; nothing is made before somebody asks."""
    made = Kept(make)
    try:
        yield made
    finally:
        made.drop()
