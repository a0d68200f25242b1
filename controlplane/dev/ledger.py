"""What was charged: one append-only file per region, one JSON line per charge.

A line is written in one `write` with O_APPEND, so a gateway killed at any moment leaves whole lines
(a torn last line, from a full disk, is not counted). A *double charge* is one idempotency key with
more than one line over all regions' ledgers: the one thing that must never happen, counted from the
files and from nothing else.
"""

from __future__ import annotations

import json
import os
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

TALLY_KEYS_MAX = 500_000
"""How many keys the running tally remembers; older ones are forgotten (a repeat comes soon)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One charge. `amount` is in minor units of `currency`, `at_ms` Unix time for people."""

    key: str
    payment_id: str
    region: str
    channel: str
    amount: int
    currency: str
    at_ms: int


class Ledger:
    """The ledger of one region, open for appending."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def append(self, charge: Charge) -> None:
        """Record one charge; OSError when the disk refuses it."""
        line = json.dumps(asdict(charge), separators=(",", ":")) + "\n"
        os.write(self._fd, line.encode())

    def charges(self) -> Iterator[Charge]:
        """Every charge recorded so far."""
        return read_ledger(self._path)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_ledger(path: Path) -> Iterator[Charge]:
    """Yield the whole lines of a ledger; nothing when it does not exist yet."""
    if not path.exists():
        return
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield Charge(**json.loads(line))


def double_charges(paths: Iterable[Path]) -> dict[str, list[Charge]]:
    """Return every idempotency key charged more than once over all ledgers, with its charges."""
    charges = [charge for path in paths for charge in read_ledger(path)]
    counts = Counter(charge.key for charge in charges)
    doubled: dict[str, list[Charge]] = {key: [] for key, n in counts.items() if n > 1}
    for charge in charges:
        if charge.key in doubled:
            doubled[charge.key].append(charge)
    return doubled


@dataclass(slots=True)
class Tally:
    """Running count over all ledgers, cheap enough for a live view: reads only what is new."""

    directory: Path
    charges: int = 0
    doubles: int = 0
    _offsets: dict[str, int] = field(default_factory=dict)
    _keys: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def update(self) -> Tally:
        """Read what was appended since the last call."""
        for path in sorted(self.directory.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path.name, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offsets[path.name] = self._offsets.get(path.name, 0) + len(line)
                    self._count(json.loads(line)["key"])
        return self

    def _count(self, key: str) -> None:
        self.charges += 1
        if key in self._keys:
            self.doubles += 1
        self._keys[key] = None
        if len(self._keys) > TALLY_KEYS_MAX:
            self._keys.popitem(last=False)
