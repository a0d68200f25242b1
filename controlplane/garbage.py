"""When Python looks for cyclic garbage in a replica: rarely, and never among what it was built of.

Theory. The collector walks everything that is alive, so its cost is that of the living, not of the
garbage; reference counts free nearly all of ours. With Python's defaults a push to a thousand data
planes met a collection of 5 to 14 ms each time, for the objects of its own calls under way, and
now and then one of 37 ms over all streams. Both stand in the middle of the push.

Rules
- What was imported and built before serving is left out for ever (100,000 objects, 70 ms a look).
- A first look comes after `YOUNG_MAX` new objects: more than a push to every stream has under way
  at once. Until then cyclic garbage waits; it is at most some 10 MB.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG_MAX: Final = 50_000
"""New objects between two looks; Python's own default is 700."""


def settle() -> None:
    """Leave out what is there and look rarely from now on. Once, when a process begins to serve."""
    gc.freeze()
    _young, middle, old = gc.get_threshold()
    gc.set_threshold(YOUNG_MAX, middle, old)
