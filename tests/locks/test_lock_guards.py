"""Guards: the check that makes a lock more than advice, on real databases."""

from __future__ import annotations

import os
import pwd
import random
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from lock_lab import Lab

from controlplane.dev.process import Child, free_port
from controlplane.dev.servers import RedisServer, wait_until
from controlplane.locks.errors import StaleTokenError
from controlplane.locks.guards import MemoryGuard, RedisGuard, SqlDialect, SqlGuard, fenced
from controlplane.model.errors import InvalidInputError

BIG = (1 << 53) + 1
"""A token that no double can hold."""


def postgres_bin() -> Path:
    """Where PostgreSQL's programs are: on PATH, or where Debian puts them."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    assert versions, "PostgreSQL is needed: apt-get install postgresql"
    return versions[-1]


def _as_postgres() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid():
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """Connection string of a real PostgreSQL of this module."""
    import tempfile  # noqa: PLC0415

    binaries, port = postgres_bin(), free_port()
    base = Path(tempfile.mkdtemp(prefix="weir-pg-"))
    data = base / "data"
    if not os.geteuid():
        shutil.chown(base, "postgres", "postgres")
    subprocess.run(
        [binaries / "initdb", "-D", data, "-A", "trust", "-U", "weir", "--no-sync"],
        check=True,
        capture_output=True,
        cwd="/",
        **_as_postgres(),
    )
    command = [
        str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(base),
        "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
    ]  # fmt: skip
    if not os.geteuid():
        command = ["runuser", "-u", "postgres", "--", *command]
    server = Child("postgres", command, base / "log", cwd=Path("/")).start()
    dsn = f"host=127.0.0.1 port={port} user=weir dbname=postgres"

    def answers() -> bool:
        try:
            psycopg.connect(dsn, connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(answers, "postgres")
    yield dsn
    pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, 2)
    wait_until(lambda: not (data / "postmaster.pid").exists(), "postgres to stop")
    server.stop()
    shutil.rmtree(base, ignore_errors=True)


Connect = Callable[[], Any]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[SqlGuard, Connect, str]]:
    """A guard, a way to connect, and the parameter mark, for each database that is here."""
    dialect = SqlDialect(request.param)
    if dialect is SqlDialect.SQLITE:
        path = tmp_path / "guard.db"

        def connect() -> Any:
            return sqlite3.connect(path, timeout=30, check_same_thread=False)

        mark = "?"
    else:
        dsn = request.getfixturevalue("postgres")

        def connect() -> Any:
            return psycopg.connect(dsn)

        mark = "%s"
    guard = SqlGuard(dialect)
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("DROP TABLE IF EXISTS weir_fence")
    cursor.execute("DROP TABLE IF EXISTS account")
    guard.create_table(cursor)
    cursor.execute("CREATE TABLE account (name TEXT PRIMARY KEY, balance BIGINT)")
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


def test_mysql_statements_say_what_mysql_understands() -> None:
    """MySQL has no ON CONFLICT, and reports changed rows: the row always changes."""
    guard = SqlGuard(SqlDialect.MYSQL)
    assert guard._first.startswith("INSERT IGNORE INTO weir_fence")
    assert "seals = seals + 1" in guard._raise
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
