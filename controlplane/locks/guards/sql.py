"""A guard in a SQL database, through any DB-API driver: PostgreSQL, SQLite, MySQL.

One row per resource keeps the highest token. `seal` raises it first thing in the transaction, which
takes the row's lock (in SQLite, the database's write lock): reads that follow see what the previous
holder wrote, and nobody with a lower token gets past until the commit or ever after. `seals`
counts, so that the row always changes: MySQL reports *changed* rows, not matched ones.

Use any isolation level from READ COMMITTED up. Under SERIALIZABLE or REPEATABLE READ a conflict
raises the driver's serialization error: roll back and try again with the same token. (MySQL's
REPEATABLE READ reads what is there after the seal, and raises none.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, Protocol

from controlplane.locks.errors import StaleTokenError
from controlplane.locks.metrics import LockMetrics, NoMetrics
from controlplane.model.errors import InvalidInputError

_MYSQL_NAME_MAX = 190
"""Characters of a resource's name in MySQL: what every version can index."""
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,62}")


class SqlDialect(StrEnum):
    """Where the statements differ."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"
    MYSQL = "mysql"


class Cursor(Protocol):
    """What is needed of a DB-API cursor."""

    @property
    def rowcount(self) -> int:
        """Rows matched or changed by the last statement."""
        ...

    def execute(self, operation: str, parameters: Any = ..., /) -> Any:
        """Run a statement."""
        ...

    def close(self) -> Any:
        """Free it."""
        ...


class Connection(Protocol):
    """What is needed of a DB-API connection."""

    def cursor(self) -> Any:
        """Open a cursor."""
        ...

    def commit(self) -> Any:
        """Commit."""
        ...

    def rollback(self) -> Any:
        """Roll back."""
        ...


class SqlGuard:
    """Tokens in `table`. The table may live beside the data only: a transaction must span both."""

    def __init__(
        self, dialect: SqlDialect, *, table: str = "weir_fence", metrics: LockMetrics | None = None
    ) -> None:
        if _TABLE.fullmatch(table) is None:
            raise InvalidInputError("table", f"{table!r} is no plain table name")
        self.dialect = dialect
        self.table = table
        self._metrics = metrics or NoMetrics()
        mark = "?" if dialect is SqlDialect.SQLITE else "%s"
        values = f"({mark}, {mark}, 1)"
        # `table` is checked above and everything else is bound
        self._raise = (
            f"UPDATE {table} SET token = {mark}, seals = seals + 1 "  # noqa: S608
            f"WHERE resource = {mark} AND token <= {mark}"
        )
        tail = "ON CONFLICT (resource) DO NOTHING"
        if dialect is SqlDialect.MYSQL:
            tail = "ON DUPLICATE KEY UPDATE seals = seals"
        self._first = f"INSERT INTO {table} (resource, token, seals) VALUES {values} {tail}"  # noqa: S608

    def create_table(self, cursor: Cursor) -> None:
        """Create the table if it does not exist (run it with your migrations)."""
        text = "TEXT"
        if self.dialect is SqlDialect.MYSQL:
            # by default it would take `a`, `A` and `á` for one resource
            text = f"VARCHAR({_MYSQL_NAME_MAX}) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS {self.table} (resource {text} NOT NULL PRIMARY KEY, "
            "token BIGINT NOT NULL, seals BIGINT NOT NULL)"
        )

    def seal(self, cursor: Cursor, resource: str, token: int) -> None:
        """Seal the resource at `token`: the first statement of a transaction.

        Raises StaleTokenError when a higher token was seen; roll the transaction back then.
        """
        if self.dialect is SqlDialect.MYSQL and len(resource) > _MYSQL_NAME_MAX:
            raise InvalidInputError("resource", f"over {_MYSQL_NAME_MAX} characters")
        if self.dialect is SqlDialect.MYSQL:
            # makes or locks the row. Two that found none by an UPDATE would lock the gap, both, and
            # each wait for the other to let it insert
            cursor.execute(self._first, (resource, token))
        else:
            cursor.execute(self._raise, (token, resource, token))
            if cursor.rowcount == 1:
                return
            cursor.execute(self._first, (resource, token))
            if cursor.rowcount == 1:
                return
            # the row exists: it appeared meanwhile, or it holds a higher token
        cursor.execute(self._raise, (token, resource, token))
        if cursor.rowcount != 1:
            self._metrics.lock_token_rejected()
            raise StaleTokenError(resource, token)

    @contextmanager
    def transaction(self, connection: Connection, resource: str, token: int) -> Iterator[Any]:
        """Seal, run the body with a cursor, commit; roll back on any error.

        The connection must not have a transaction open: what was read before the seal is not
        protected. Raises InvalidInputError for one in autocommit mode: there the seal would be a
        transaction of its own, and a later holder could come between it and the body.
        """
        if _autocommits(connection):
            raise InvalidInputError("connection", "is in autocommit mode: nothing would be guarded")
        cursor = connection.cursor()
        try:
            self.seal(cursor, resource, token)
            yield cursor
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        finally:
            cursor.close()


def _autocommits(connection: Any) -> bool:
    """Tell whether every statement is its own transaction, as far as drivers tell."""
    if getattr(connection, "isolation_level", "") is None and hasattr(connection, "in_transaction"):
        return not connection.in_transaction  # sqlite3: a BEGIN by hand is as good
    if callable(asked := getattr(connection, "get_autocommit", None)):
        return bool(asked())  # PyMySQL, mysqlclient
    return getattr(connection, "autocommit", False) is True
