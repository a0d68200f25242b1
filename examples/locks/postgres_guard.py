"""The same debit in PostgreSQL: the table of the guard lives beside the data.

    python examples/locks/postgres_guard.py 127.0.0.1:7700 "dbname=payments"

Needs psycopg.
"""

# ruff: noqa: INP001, T201 - a script that prints

import sys

import grpc
import psycopg

from controlplane.adapters.lock_client import SyncLockClient
from controlplane.locks.guards import SqlDialect, SqlGuard


def main(server: str, dsn: str) -> None:
    """Debit account 42 by 10 under a lock."""
    guard = SqlGuard(SqlDialect.POSTGRESQL)
    with psycopg.connect(dsn) as database, grpc.insecure_channel(server) as channel:
        with database.cursor() as cursor:
            guard.create_table(cursor)
            cursor.execute(
                "CREATE TABLE IF NOT EXISTS account (id INT PRIMARY KEY, balance BIGINT)"
            )
            cursor.execute("INSERT INTO account VALUES (42, 100) ON CONFLICT DO NOTHING")
        database.commit()
        locks = SyncLockClient([channel])
        with (
            locks.hold("account/42", ttl_ms=2_000, wait_ms=5_000) as held,
            guard.transaction(database, "account/42", held.token) as cursor,
        ):
            cursor.execute("UPDATE account SET balance = balance - 10 WHERE id = 42")
        print("debited under token", held.token)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
