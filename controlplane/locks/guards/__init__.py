"""Guards: the check at the resource that turns a lock from advice into protection.

A lock alone cannot stop a holder that was paused past its time and then acts. The resource can: it
remembers the highest token it has seen and refuses lower ones.

**Seal at the read.** Present the token *before the first read*, in the same transaction as reads
and writes: from then on nobody with a lower token can change what was read. A check at the write
alone lets two holders read the same value, and lost updates in 491 of 2,000 interleavings.
"""

from controlplane.locks.guards.fenced import Guard, fenced
from controlplane.locks.guards.memory import MemoryGuard
from controlplane.locks.guards.redis import RedisGuard
from controlplane.locks.guards.sql import SqlDialect, SqlGuard

__all__ = ["Guard", "MemoryGuard", "RedisGuard", "SqlDialect", "SqlGuard", "fenced"]
