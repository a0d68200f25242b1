"""Patroni on the same etcd, for comparison: how long until the next primary takes writes.

    python bench/etcd_patroni.py [--runs 10] [--members 3] [--venv DIR] [--append FILE]

Two Patroni nodes with a real PostgreSQL each, at Patroni's smallest settings (ttl 20, loop_wait 1,
retry_timeout 3), on an etcd as in the other benches. Patroni and the postmaster of the primary get
SIGKILL; the time runs until an INSERT succeeds on the other node. Needs PostgreSQL's server
(--pg-bin), psql and the user `postgres`, run as root. Patroni is installed into a scratch
environment by uv (or give one with --venv) and touches nothing of this project's.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.etcd_results import record
from controlplane.dev.process import Child, free_ports
from controlplane.dev.servers import EtcdCluster, http_get, scratch_root
from tests.support.replicas import until

USER = "postgres"
PATRONI = "patroni[etcd3]==4.1.5"
DRIVER = "psycopg[binary]"
SYSTEM_PYTHON = "/usr/bin/python3"
"""Patroni runs as another user, who must be able to execute it: not one in root's home."""
SETTINGS = {"ttl": 20, "loop_wait": 1, "retry_timeout": 3}
WAIT_S = 120.0
"""Cloning a node or a failover takes a fraction of this."""
ROOT = Path(__file__).resolve().parents[1]


def install(directory: Path) -> Path:
    """Make an environment with Patroni; return it."""
    uv = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bootstrap_uv.py"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    venv = directory / "venv"
    subprocess.run([uv, "venv", "--quiet", "--python", SYSTEM_PYTHON, venv], check=True)
    python = venv / "bin" / "python"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, PATRONI, DRIVER], check=True
    )
    return venv


class Node:
    """One Patroni node: its daemon, its PostgreSQL."""

    def __init__(
        self, name: str, directory: Path, venv: Path, pg_bin: Path, endpoints: list[str]
    ) -> None:
        self.name = name
        self.directory = directory / name
        self.data = self.directory / "data"
        self.rest_port, self.pg_port = free_ports(2)
        self.directory.mkdir()
        shutil.chown(self.directory, USER)
        open_to_all = [f"host {what} all 127.0.0.1/32 trust" for what in ("all", "replication")]
        users = {"superuser": USER, "replication": "replicator"}
        config = {
            "scope": "bench",
            "name": name,
            "restapi": {
                "listen": f"127.0.0.1:{self.rest_port}",
                "connect_address": f"127.0.0.1:{self.rest_port}",
            },
            "etcd3": {"hosts": endpoints},
            "bootstrap": {
                "dcs": {**SETTINGS, "maximum_lag_on_failover": 1 << 30},
                "initdb": [{"encoding": "UTF8"}, "data-checksums"],
                "pg_hba": ["local all all trust", *open_to_all],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.pg_port}",
                "connect_address": f"127.0.0.1:{self.pg_port}",
                "data_dir": str(self.data),
                "bin_dir": str(pg_bin),
                "pgpass": str(self.directory / "pgpass"),
                "pg_hba": ["local all all trust", *open_to_all],
                "authentication": {
                    key: {"username": user, "password": "bench"} for key, user in users.items()
                },
                "parameters": {"unix_socket_directories": str(self.directory)},
            },
        }
        path = self.directory / "patroni.yml"  # JSON is YAML
        path.write_text(json.dumps(config))
        argv = [
            "setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "--pdeathsig=SIGKILL",
            str(venv / "bin" / "patroni"), str(path),
        ]  # fmt: skip
        env = {"HOME": str(self.directory)}
        self.child = Child(name, argv, directory / f"{name}.log", env=env, cwd=self.directory)

    def says(self, path: str) -> bool:
        """Whether Patroni's REST interface says yes."""
        answer = http_get(self.rest_port, path)
        return bool(answer and answer[0] == http.client.OK)

    def writes(self) -> bool:
        """Whether an INSERT succeeds now."""
        done = subprocess.run(
            ["psql", "-h", "127.0.0.1", "-p", str(self.pg_port), "-U", USER, "-qc",
             "CREATE TABLE IF NOT EXISTS t (at timestamptz); INSERT INTO t VALUES (now())"],
            capture_output=True, check=False, env={**os.environ, "PGCONNECT_TIMEOUT": "2"},
        )  # fmt: skip
        return done.returncode == 0

    def kill(self) -> None:
        """SIGKILL Patroni and the postmaster, whose children follow it."""
        postmaster = self.data / "postmaster.pid"
        pid = int(postmaster.read_text().split()[0]) if postmaster.exists() else 0
        self.child.kill()
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def start_anew(self) -> None:
        """Start with an empty directory: the node clones whoever leads."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.child.start()


async def one(nodes: list[Node], rng: random.Random) -> float:
    """One failover in ms, from the kill to the first INSERT elsewhere."""
    await until(lambda: any(node.says("/primary") for node in nodes), "a primary", WAIT_S)
    primary = next(node for node in nodes if node.says("/primary"))
    other = next(node for node in nodes if node is not primary)
    await until(primary.writes, "the primary writes", WAIT_S)
    await until(lambda: other.says("/replica"), "the replica streams", WAIT_S)
    await asyncio.sleep(2 + rng.random())  # a random part of Patroni's loop
    begun = time.perf_counter()
    primary.kill()
    await until(other.writes, "the other node takes writes", WAIT_S)
    took = (time.perf_counter() - begun) * 1000
    primary.start_anew()
    return took


async def main() -> None:
    """Bring two nodes up and fail over again and again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--pg-bin", type=Path, default=Path("/usr/lib/postgresql/15/bin"))
    parser.add_argument("--append", type=Path)
    args = parser.parse_args()
    if os.geteuid() or not (args.pg_bin / "postgres").exists() or not shutil.which("psql"):
        print("Patroni is not measured: needs root, PostgreSQL's server below --pg-bin, and psql")
        return
    with tempfile.TemporaryDirectory(dir=scratch_root(), prefix="weir-bench-") as name:
        directory = Path(name)
        os.chmod(directory, 0o755)  # noqa: PTH101 - before anything runs
        venv = args.venv or install(directory)
        cluster = EtcdCluster(directory / "etcd", size=args.members).start()
        nodes = [Node(n, directory, venv, args.pg_bin, cluster.endpoints) for n in ("a", "b")]
        try:
            for node in nodes:
                node.child.start()
            rng = random.Random(4)
            took = [await one(nodes, rng) for _ in range(args.runs)]
            part = {"what": "Patroni, primary killed", "members": args.members}
            record(args.append, {**part, "gap": {"takeover": took}})
        except BaseException:
            for node in nodes:
                print(node.child.tail(30), file=sys.stderr)
            raise
        finally:
            for node in nodes:
                node.kill()
            cluster.stop()


if __name__ == "__main__":
    asyncio.run(main())
