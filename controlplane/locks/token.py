"""The fencing token: a pair (epoch, counter), carried as one 64-bit integer.

`value = epoch * 2**32 + counter`. Epochs come from etcd and stay below 2**31, counters are counted
in Redis and stay below 2**32, so a token is a positive int64. The pair, never the integer, goes
through Lua: Lua's numbers are doubles, in which 9007199254740993 becomes ...992.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from controlplane.model.errors import InvalidInputError

COUNTER_BITS: Final = 32
EPOCH_MAX: Final = (1 << 31) - 1
COUNTER_MAX: Final = (1 << COUNTER_BITS) - 1


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """One grant's place in the order of all grants. Compares by epoch, then counter."""

    epoch: int
    counter: int

    @property
    def value(self) -> int:
        """The token as a positive int64."""
        return (self.epoch << COUNTER_BITS) | self.counter

    @classmethod
    def of(cls, value: int) -> Token:
        """Split an int64; InvalidInputError when it cannot be a token."""
        if not 0 < value <= (EPOCH_MAX << COUNTER_BITS | COUNTER_MAX):
            raise InvalidInputError("token", f"{value} is not a token this service grants")
        return cls(value >> COUNTER_BITS, value & COUNTER_MAX)

    def __str__(self) -> str:
        return f"{self.epoch}.{self.counter}"
