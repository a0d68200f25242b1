"""Every protective check, removed in turn: with it the history is clean, without it a promise
breaks (`lock_scenarios`).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from lock_history import Verdict, check
from lock_lab import Lab, until
from lock_scenarios import LIMITS, SCENARIOS, TTL, Bench, Scenario, Sources, promoted, without

from controlplane.locks import scripts as script_files
from controlplane.locks.grant import Mode
from controlplane.locks.register import EpochRegister, Record
from controlplane.model.errors import UnavailableError
from controlplane.ports import Put, TxnResult


async def _nothing(*_: object) -> None:
    """Not done."""


def broken(verdict: Verdict) -> bool:
    """Whether any promise was broken, exclusion after a loss included."""
    return not verdict.ok or verdict.overlaps > 0


async def _run(scenario: Scenario, lab: Lab, folder: Path, sources: Sources | None) -> Verdict:
    bench = Bench(lab, folder, sources)
    try:
        await scenario(bench)
    finally:
        for server in bench.servers:
            server.kill()
    return check(bench.history)


def test_every_check_has_a_scenario() -> None:
    """No check is added to a script without a scenario that needs it."""
    marked = {
        line.split("-- check: ")[1]
        for script in script_files.load().values()
        for line in script.source.splitlines()
        if "-- check: " in line and "NAME" not in line
    }
    assert marked == {scenario.__name__ for scenario in SCENARIOS}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
async def test_with_the_check(scenario: Scenario, lab: Lab, folder: Path) -> None:
    """With every check in place the history is clean."""
    verdict = await _run(scenario, lab, folder, None)
    assert not broken(verdict), verdict.examples


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
async def test_without_the_check(scenario: Scenario, lab: Lab, folder: Path) -> None:
    """Without this one check the same events break a promise, and the checker sees it."""
    verdict = await _run(scenario, lab, folder, without(scenario.__name__))
    assert broken(verdict)


@pytest.mark.parametrize("protected", [True, False])
async def test_the_strict_read(lab: Lab, folder: Path, protected: bool) -> None:
    """With two primaries only the read of etcd keeps real-time order: without it the old primary
    grants behind the new one."""
    bench = Bench(lab, folder, None)
    try:
        old, _ = await promoted(bench)
        await bench.quiet(old)
        old.mode = Mode.STRICT
        old.lineage.floor = 0
        if not protected:
            old.confirm_epoch = _nothing
        await bench.take(old)
    finally:
        for server in bench.servers:
            server.kill()
    assert check(bench.history).ok is protected


class Careless:
    """A store that writes whatever the conditions say."""

    def __init__(self, store: Any, *, careful: bool, meet: asyncio.Barrier) -> None:
        self._store = store
        self._careful = careful
        self._meet = meet
        self._first = True

    async def get(self, key: bytes) -> Any:
        """Read, the first time together with the other one."""
        found = await self._store.get(key)
        if self._first:
            self._first = False
            await self._meet.wait()  # both have read before either writes
        return found

    async def txn(self, compares: Any, success: Any, failure: Any = ()) -> TxnResult:
        """Write, with or without the conditions."""
        conditions = compares if self._careful else ()
        outcome: TxnResult = await self._store.txn(conditions, success, failure)
        return outcome


@pytest.mark.parametrize("careful", [True, False])
async def test_the_compare_and_swap(lab: Lab, careful: bool) -> None:
    """Two that believe to lead allocate at once for two lineages: with the condition they get two
    epochs, without it both get the same, and with it the same tokens."""
    key, meet = f"/weir/{lab.prefix}/race".encode(), asyncio.Barrier(2)
    registers = [
        EpochRegister(Careless(await lab.store(), careful=careful, meet=meet), key)
        for _ in range(2)
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(register.allocate(f"n{i}", above=0, floor=0, ttl_usual_ms=TTL))
            for i, register in enumerate(registers)
        ]
    epochs = {task.result().epoch for task in tasks}
    assert len(epochs) == (2 if careful else 1)


async def test_an_interrupted_bump_is_finished_not_repeated(lab: Lab) -> None:
    """Whoever comes second for a lineage gets the epoch that was allocated for it; another lineage
    gets the next."""
    register = EpochRegister(await lab.store(), f"/weir/{lab.prefix}/help".encode())
    first = await register.allocate("n1", above=0, floor=0, ttl_usual_ms=TTL)
    again = await register.allocate("n1", above=0, floor=first.epoch, ttl_usual_ms=TTL)
    other = await register.allocate("n2", above=0, floor=0, ttl_usual_ms=TTL)
    assert (first.epoch, again.epoch, other.epoch) == (1, 1, 2)


async def test_etcd_behind_redis_is_overtaken(lab: Lab) -> None:
    """An etcd restored from an old backup: the next epoch is above what Redis and the replicas
    remember."""
    locks = await lab.manager(limits=LIMITS)
    bench = Bench(lab, Path(), None)
    await lab.redis("FLUSHALL")
    await bench.settled(locks)
    before = locks.lineage.epoch
    assert before == 2
    store = await lab.store()
    key = locks.register._key
    found = await store.get(key)
    assert found is not None
    await store.txn([], [Put(key=key, value=Record(epoch=1, nonce="old").encode())])
    await until(lambda: locks.lineage.epoch == before + 1 and locks.lineage.state == "open")
    await bench.settled(locks)
    assert check(bench.history).ok


async def test_a_follower_never_bumps(lab: Lab) -> None:
    """A replica that does not lead answers UNAVAILABLE with a time to come back until the leader
    has put an epoch in force, and then grants."""
    leads = [False]
    follower = await lab.manager(may_bump=lambda: False, ready=False, limits=LIMITS)
    leader = await lab.manager(may_bump=lambda: leads[0], ready=False, limits=LIMITS)
    await until(lambda: follower.lineage.state == "lost" and leader.lineage.state == "lost")
    with pytest.raises(UnavailableError) as refused:
        await follower.acquire("a", owner="o", ttl_ms=TTL)
    assert refused.value.retry_after_ms > 0
    assert follower.keeper.bumps == leader.keeper.bumps == 0
    leads[0] = True
    grant = await follower.acquire("a", owner="o", ttl_ms=TTL, wait_ms=20_000)
    assert (grant.token.epoch, leader.keeper.bumps, follower.keeper.bumps) == (1, 1, 0)
