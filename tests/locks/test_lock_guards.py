"""Guards: the check that makes a lock more than advice, on real databases."""

from __future__ import annotations

import functools
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest
import redis
from lock_lab import Lab

from controlplane.dev.servers import RedisServer
from controlplane.locks.errors import StaleTokenError
from controlplane.locks.guards import MemoryGuard, RedisGuard, SqlDialect, SqlGuard, fenced
from controlplane.model.errors import InvalidInputError

BIG = (1 << 53) + 1
"""A token that no double can hold."""


Connect = Callable[[], Any]


@pytest.fixture(params=[*SqlDialect])
def database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[SqlGuard, Connect, str]]:
    """A guard, a way to connect, and the parameter mark, for each database."""
    dialect, mark, text = SqlDialect(request.param), "%s", "TEXT"
    connect: Connect
    if dialect is SqlDialect.SQLITE:
        mark = "?"
        path = tmp_path / "guard.db"
        connect = functools.partial(sqlite3.connect, path, timeout=30, check_same_thread=False)
    elif dialect is SqlDialect.POSTGRESQL:
        connect = functools.partial(psycopg.connect, request.getfixturevalue("postgres"))
    else:
        connect = functools.partial(pymysql.connect, **request.getfixturevalue("mariadb"))
        text = "VARCHAR(20)"
    guard = SqlGuard(dialect)
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("DROP TABLE IF EXISTS weir_fence")
    cursor.execute("DROP TABLE IF EXISTS account")
    guard.create_table(cursor)
    cursor.execute(f"CREATE TABLE account (name {text} PRIMARY KEY, balance BIGINT)")
    cursor.execute("INSERT INTO account VALUES ('a', 0)")
    connection.commit()
    yield guard, connect, mark
    connection.close()


def test_lower_tokens_are_refused(database: tuple[SqlGuard, Connect, str]) -> None:
    """A higher token seals; the same goes on, a lower one is refused, and nothing is written."""
    guard, connect, mark = database
    connection = connect()
    for token in (BIG, BIG, BIG + 1):
        with guard.transaction(connection, "r", token) as cursor:
            cursor.execute("UPDATE account SET balance = balance + 1 WHERE name = 'a'")
    with (
        pytest.raises(StaleTokenError),
        guard.transaction(connection, "r", BIG) as cursor,
    ):
        cursor.execute("UPDATE account SET balance = 99 WHERE name = 'a'")
    cursor = connection.cursor()
    cursor.execute(f"SELECT balance FROM account WHERE name = {mark}", ("a",))
    assert cursor.fetchone() == (3,)
    connection.close()


def test_a_connection_that_commits_by_itself_is_refused(
    database: tuple[SqlGuard, Connect, str],
) -> None:
    """The seal would be over before the body begins: a later holder comes in between, and a write
    under the lower token overwrites its own."""
    guard, connect, _ = database
    connection, other = connect(), connect()
    if guard.dialect is SqlDialect.SQLITE:
        connection.isolation_level = None
    elif guard.dialect is SqlDialect.MYSQL:
        connection.autocommit(True)
    else:
        connection.autocommit = True
    with (  # noqa: PT012 - the body is what would go wrong
        pytest.raises(InvalidInputError, match="autocommit"),
        guard.transaction(connection, "r", 1) as cursor,
    ):
        with guard.transaction(other, "r", 2) as later:
            later.execute("UPDATE account SET balance = 2 WHERE name = 'a'")
        cursor.execute("UPDATE account SET balance = 1 WHERE name = 'a'")
    if guard.dialect is SqlDialect.SQLITE:  # a transaction begun by hand is one
        connection.execute("BEGIN")
        with guard.transaction(connection, "r", 3) as cursor:
            cursor.execute("UPDATE account SET balance = 3 WHERE name = 'a'")
    connection.close()
    other.close()


def test_an_error_in_the_body_rolls_back(database: tuple[SqlGuard, Connect, str]) -> None:
    """The seal goes with the transaction: a failed body leaves nothing."""
    guard, connect, _ = database
    connection = connect()
    with pytest.raises(KeyError), guard.transaction(connection, "r", 7):
        raise KeyError
    cursor = connection.cursor()
    cursor.execute("SELECT count(*) FROM weir_fence")
    assert cursor.fetchone() == (0,)
    connection.close()


@contextmanager
def _checked_at_the_write(guard: SqlGuard, connection: Any, token: int) -> Iterator[Any]:
    """What a careless guard does: read first, check when writing."""
    cursor = connection.cursor()
    try:
        yield cursor
        guard.seal(cursor, "r", token)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def test_the_seal_at_the_read_loses_no_update(database: tuple[SqlGuard, Connect, str]) -> None:
    """Two holders, one of them late, in many interleavings: every commit shows in the balance."""
    assert _lost_updates(database, seal_first=True) == 0


def test_a_check_at_the_write_loses_updates(database: tuple[SqlGuard, Connect, str]) -> None:
    """The mutation: with the check at the write only, updates are lost."""
    assert _lost_updates(database, seal_first=False) > 0


def _lost_updates(database: tuple[SqlGuard, Connect, str], *, seal_first: bool) -> int:
    guard, connect, mark = database
    committed = 0
    rng = random.Random(7)
    one, two = connect(), connect()
    for turn in range(0, 40, 2):
        barrier = threading.Barrier(2)
        outcomes: list[bool] = []
        turns = threading.Event()

        def holder(
            connection: Any,
            token: int,
            pause: bool,
            outcomes: list[bool] = outcomes,
            turns: threading.Event = turns,
            barrier: threading.Barrier = barrier,
        ) -> None:
            try:
                if seal_first:
                    barrier.wait(30)
                    with guard.transaction(connection, "r", token) as cursor:
                        _increment(cursor, mark)
                else:
                    with _checked_at_the_write(guard, connection, token) as cursor:
                        value = _read(cursor)
                        barrier.wait(30)  # both have read; then the lower token writes first
                        if pause:
                            turns.wait(30)
                        guard.seal(cursor, "r", token)
                        cursor.execute(
                            f"UPDATE account SET balance = {mark} WHERE name = 'a'", (value + 1,)
                        )
                outcomes.append(True)
            except StaleTokenError:
                outcomes.append(False)
            finally:
                turns.set()

        pause = not seal_first or rng.random() < 0.5
        threads = [
            threading.Thread(target=holder, args=(one, turn + 1, False)),
            threading.Thread(target=holder, args=(two, turn + 2, pause)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        committed += sum(outcomes)
    cursor = one.cursor()
    balance = _read(cursor)
    one.rollback()
    one.close()
    two.close()
    return committed - balance


def _read(cursor: Any) -> int:
    cursor.execute("SELECT balance FROM account WHERE name = 'a'")
    return int(cursor.fetchone()[0])


def _increment(cursor: Any, mark: str) -> None:
    value = _read(cursor)
    cursor.execute(f"UPDATE account SET balance = {mark} WHERE name = 'a'", (value + 1,))


def test_names_that_differ_are_different_resources(
    database: tuple[SqlGuard, Connect, str],
) -> None:
    """Also where a database takes capitals and accents for the same letter."""
    guard, connect, _ = database
    connection = connect()
    for token, name in enumerate(("account/é", "account/e", "ACCOUNT/E"), start=1):
        with guard.transaction(connection, name, 10 - token):
            pass
    with pytest.raises(StaleTokenError), guard.transaction(connection, "account/é", 8):
        pass
    connection.close()


def test_a_name_too_long_for_mysql_is_refused(mariadb: dict[str, Any]) -> None:
    """It would be cut short, and then be another resource's."""
    guard, connection = SqlGuard(SqlDialect.MYSQL), pymysql.connect(**mariadb)
    with pytest.raises(InvalidInputError, match="190"):
        guard.seal(connection.cursor(), "r" * 191, 1)
    connection.close()


def test_a_table_must_have_a_plain_name() -> None:
    """Its name is part of the statements."""
    with pytest.raises(InvalidInputError):
        SqlGuard(SqlDialect.MYSQL, table="x; DROP TABLE y")


def test_redis_guard_compares_pairs(redis_server: RedisServer) -> None:
    """Tokens beyond doubles are told apart; a stale token runs nothing."""
    client = redis.Redis(port=redis_server.port)
    guard = RedisGuard(client)
    guard.run("r", BIG + 1, [("SET", "k", "new")])
    with pytest.raises(StaleTokenError):
        guard.run("r", BIG, [("SET", "k", "old")])
    assert guard.run("r", BIG + 1, [("GET", "k"), ("STRLEN", "k")]) == [b"new", 3]
    with pytest.raises(StaleTokenError):
        guard.seal("r", BIG)
    client.script_flush()
    guard.seal("r", BIG + 2)
    client.close()


def test_memory_guard_across_threads() -> None:
    """Whatever the order of arrival, no lower token gets in after a higher one."""
    guard = MemoryGuard()
    accepted: list[int] = []

    def act(token: int) -> None:
        try:
            with guard.transaction("r", token):
                accepted.append(token)
        except StaleTokenError:
            pass

    tokens = list(range(1, 200))
    random.Random(3).shuffle(tokens)
    threads = [threading.Thread(target=act, args=(token,)) for token in tokens]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accepted == sorted(accepted)
    assert accepted[-1] == 199


async def test_decorated_functions_check_their_token() -> None:
    """The decorator seals before the function runs; plain and async; the resource may be
    computed."""
    guard = MemoryGuard()

    @fenced(guard, "r")
    def plain(value: int, *, token: int) -> int:
        return value + token

    @fenced(guard, lambda name, token: f"account:{name}")
    async def computed(name: str, token: int) -> str:
        return f"{name}{token}"

    assert plain(1, token=5) == 6
    assert await computed("x", 3) == "x3"
    assert await computed("y", 1) == "y1"
    with pytest.raises(StaleTokenError):
        plain(1, token=4)
    with pytest.raises(StaleTokenError):
        await computed("x", 2)
    with pytest.raises(TypeError, match="no argument"):
        fenced(guard, "r")(lambda value: value)


async def test_a_late_holder_is_stopped_by_the_guard(lab: Lab, tmp_path: Path) -> None:
    """The whole story: a holder is paused past its time, another one works, the first wakes and is
    refused."""
    locks = await lab.manager()
    guard, connection = SqlGuard(SqlDialect.SQLITE), sqlite3.connect(tmp_path / "a.db")
    guard.create_table(connection.cursor())
    connection.execute("CREATE TABLE account (name TEXT, balance INTEGER)")
    connection.commit()
    late = await locks.acquire("account/a", owner="late", ttl_ms=100)
    other = await locks.acquire("account/a", owner="other", ttl_ms=5_000, wait_ms=20_000)
    with guard.transaction(connection, "account/a", other.token.value) as cursor:
        cursor.execute("INSERT INTO account VALUES ('a', 1)")
    with (
        pytest.raises(StaleTokenError),
        guard.transaction(connection, "account/a", late.token.value) as cursor,
    ):
        cursor.execute("UPDATE account SET balance = 99")
    assert connection.execute("SELECT balance FROM account").fetchall() == [(1,)]
    connection.close()
