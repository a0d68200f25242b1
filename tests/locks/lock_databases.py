"""Real PostgreSQL and MariaDB for the tests of the guards: children on free ports, never as root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pymysql

from controlplane.dev.process import Child, free_port
from controlplane.dev.servers import wait_until


def _program(name: str, folder: str, package: str) -> Path:
    """Where a server is: on PATH, or where Debian puts it."""
    if found := shutil.which(name):
        return Path(found).resolve()
    found_there = sorted(Path("/").glob(f"{folder}/{name}"))
    assert found_there, f"{name} is needed: apt-get install {package}"
    return found_there[-1]


@contextmanager
def _server(
    user: str,
    prepare: Callable[[Path, dict[str, Any]], None],
    command: Callable[[Path], Sequence[str]],
    connect: Callable[[], Any],
    pid_file: str,
) -> Iterator[None]:
    """Prepare a folder, run a server in it as `user` (if we are root) until the block ends."""
    base = Path(tempfile.mkdtemp(prefix="weir-sql-"))
    as_user: dict[str, Any] = {}
    argv = list(command(base))
    if not os.geteuid():
        ids = pwd.getpwnam(user)
        os.chown(base, ids.pw_uid, ids.pw_gid)
        as_user = {"user": ids.pw_uid, "group": ids.pw_gid, "extra_groups": []}
        argv = ["runuser", "-u", user, "--", *argv]
    prepare(base, as_user)
    server = Child(argv[-1], argv, base / "log", cwd=Path("/")).start()

    def answers() -> bool:
        try:
            connect().close()
        except (psycopg.OperationalError, pymysql.err.OperationalError):
            return False
        return True

    wait_until(answers, user)
    yield
    pid = int((base / pid_file).read_text().split()[0])
    os.kill(pid, signal.SIGINT if user == "postgres" else signal.SIGTERM)
    wait_until(lambda: not (base / pid_file).exists(), f"{user} to stop")
    server.stop()
    shutil.rmtree(base, ignore_errors=True)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Connection string of a PostgreSQL of its own."""
    binary, port = _program("postgres", "usr/lib/postgresql/*/bin", "postgresql"), free_port()
    dsn = f"host=127.0.0.1 port={port} user=weir dbname=postgres"

    def prepare(base: Path, as_user: dict[str, Any]) -> None:
        initdb = [binary.with_name("initdb"), "-D", base / "data", "-A", "trust", "-U", "weir",
                  "--no-sync"]  # fmt: skip
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **as_user)

    def command(base: Path) -> list[str]:
        return [
            str(binary), "-D", str(base / "data"), "-p", str(port), "-k", str(base), "-c",
            "listen_addresses=127.0.0.1", "-c", "fsync=off",
        ]  # fmt: skip

    def connect() -> Any:
        return psycopg.connect(dsn, connect_timeout=1)

    with _server("postgres", prepare, command, connect, "data/postmaster.pid"):
        yield dsn


@contextmanager
def mariadb_server() -> Iterator[dict[str, Any]]:
    """Arguments of `pymysql.connect` for a MariaDB of its own.

    Without grant tables it needs no installation step, and starts on an empty folder in a second.
    """
    binary, port = _program("mariadbd", "usr/sbin", "mariadb-server-core"), free_port()
    arguments = {"host": "127.0.0.1", "port": port, "user": "root", "database": "payments"}

    def prepare(base: Path, as_user: dict[str, Any]) -> None:
        for folder in (base / "data", base / "data/payments"):
            folder.mkdir()
            os.chown(folder, as_user.get("user", -1), as_user.get("group", -1))

    def command(base: Path) -> list[str]:
        return [
            str(binary), "--no-defaults", "--skip-grant-tables", "--skip-networking=0",
            "--bind-address=127.0.0.1", f"--port={port}", f"--datadir={base / 'data'}",
            f"--socket={base / 'sock'}", f"--pid-file={base / 'pid'}",
            "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M",
        ]  # fmt: skip

    def connect() -> Any:
        return pymysql.connect(**arguments, connect_timeout=1)

    with _server("nobody", prepare, command, connect, "pid"):
        yield arguments
