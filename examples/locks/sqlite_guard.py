"""A holder that is late is refused by the guard. Needs a running Weir: `weir dev --headless`.

python examples/locks/sqlite_guard.py 127.0.0.1:7700
"""

# ruff: noqa: INP001, T201 - a script that prints

import sqlite3
import sys

import grpc

from controlplane.adapters.lock_client import SyncLockClient
from controlplane.locks.errors import StaleTokenError
from controlplane.locks.guards import SqlDialect, SqlGuard


def main(server: str) -> None:
    """Debit an account twice; the second time by a holder whose time is over."""
    guard, database = SqlGuard(SqlDialect.SQLITE), sqlite3.connect(":memory:")
    guard.create_table(database.cursor())
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
    database.execute("INSERT INTO account VALUES (42, 100)")
    database.commit()
    with grpc.insecure_channel(server) as channel:
        locks = SyncLockClient([channel])
        late = locks.acquire("account/42", owner="late", ttl_ms=500)
        with locks.hold("account/42", owner="on-time", ttl_ms=2_000, wait_ms=5_000) as held:
            debit(guard, database, held.token)
        try:
            debit(guard, database, late.token.value)
        except StaleTokenError as refused:
            print("refused:", refused)
    print("balance:", database.execute("SELECT balance FROM account").fetchone()[0])


def debit(guard: SqlGuard, database: sqlite3.Connection, token: int) -> None:
    """Read, think, write: under the seal."""
    with guard.transaction(database, "account/42", token) as cursor:
        balance = cursor.execute("SELECT balance FROM account WHERE id = 42").fetchone()[0]
        cursor.execute("UPDATE account SET balance = ? WHERE id = 42", (balance - 10,))


if __name__ == "__main__":
    main(sys.argv[1])
