"""A daemon of its own for the campaign, to be stopped with SIGSTOP: a manager that leads, and
workers that hold. Arguments: JSON. Prints "ready", then one JSON line per grant on a file.
"""

# ruff: noqa: ASYNC240 - small files on tmpfs

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog
from lock_history import Granted
from lock_world import LIMITS, Ledger, Worker

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.redis import RedisLink
from controlplane.adapters.redis_address import RedisAddress
from controlplane.locks.grant import Mode
from controlplane.locks.manager import LockManager


async def main(args: dict[str, Any]) -> None:
    """Work until the stop file appears; then say what was granted and committed."""
    store = await EtcdClient.connect(args["etcd"])
    locks = LockManager(
        redis=RedisLink(RedisAddress(port=args["redis"]), call_timeout_ms=400), store=store,
        prefix=args["prefix"], limits=LIMITS, mode=Mode.STRICT, seed=args["seed"],
    )  # fmt: skip
    ledger = Ledger(Path(args["ledger"])).open()
    history: list[Granted] = []
    stop, beat = Path(args["stop"]), Path(args["beat"])

    def go_on() -> bool:
        beat.write_text(str(len(history)))
        return not stop.exists()

    async with locks.running():
        workers = [
            Worker(locks, ledger, history, f"d{args['seed']}-{i}", args["seed"] * 10 + i,
                   Mode.STRICT, 3)
            for i in range(3)
        ]  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.run(go_on))
    ledger.close()
    await store.aclose()
    Path(args["out"]).write_text(
        json.dumps({"history": [asdict(g) for g in history], "committed": ledger.committed,
                    "refused": ledger.refused})
    )  # fmt: skip


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(main(json.loads(sys.argv[1])))
