"""The batched read of a strict grant: shared by those who asked before it began, by nobody else."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.locks.register import READS_MAX, EpochRegister, Record
from controlplane.model.errors import UnavailableError
from controlplane.ports import KeyValue


class Store:
    """Reads begin and wait until a test answers them; what is read is what was there at the
    beginning, as the worst linearizable read may have it."""

    def __init__(self) -> None:
        self.epoch = 1
        self.answers: list[asyncio.Future[None]] = []

    async def get(self, key: bytes) -> KeyValue:
        """Begin a read."""
        value = Record(epoch=self.epoch).encode()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        await answer
        return KeyValue(key=key, value=value, mod_revision=1, create_revision=1, version=1, lease=0)

    def answer(self) -> None:
        """Answer the read that began first, unless who began it has gone."""
        answer = self.answers.pop(0)
        if not answer.done():
            answer.set_result(None)


@pytest.fixture
def store() -> Store:
    """An etcd under control."""
    return Store()


@pytest.fixture
def register(store: Store) -> EpochRegister:
    """What reads it."""
    return EpochRegister(store, b"epoch")


def ask(register: EpochRegister, count: int = 1) -> list[asyncio.Task[Record]]:
    """So many grants that want to be vouched for, in one turn of the loop."""
    return [asyncio.ensure_future(register.current()) for _ in range(count)]


async def turns(count: int = 10) -> None:
    """Let everything happen that can without another answer."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_grants_of_one_answer_share_one_read(store: Store, register: EpochRegister) -> None:
    """Sixteen grants that came together wait for one read."""
    grants = ask(register, 16)
    await turns()
    assert len(store.answers) == register.reads == 1
    store.answer()
    assert {record.epoch for record in await asyncio.gather(*grants)} == {1}


async def test_a_read_that_has_begun_vouches_for_nobody_else(
    store: Store, register: EpochRegister
) -> None:
    """It may have seen etcd before an epoch that the later grant has to hear of."""
    (early,) = ask(register)
    await turns()
    store.epoch = 2  # allocated after the read
    (late,) = ask(register)
    await turns()
    store.answer()
    assert (await early).epoch == 1
    assert not late.done()
    store.answer()
    assert (await late).epoch == 2


async def test_few_reads_are_under_way_at_once(store: Store, register: EpochRegister) -> None:
    """Who comes meanwhile waits for the next one, all together."""
    grants = []
    for _ in range(5):
        grants += ask(register)
        await turns()
    assert len(store.answers) == READS_MAX
    for _ in range(READS_MAX + 1):
        store.answer()
        await turns()
    assert all(grant.done() for grant in grants)
    assert register.reads == READS_MAX + 1


@pytest.mark.parametrize("waits", [0, 10])
async def test_whoever_began_the_read_may_go(
    store: Store, register: EpochRegister, waits: int
) -> None:
    """Cancelled before or while its read is under way: those who share it begin another."""
    leader, *others = ask(register, 3)
    await turns(1 + waits)
    leader.cancel()
    await turns()
    while store.answers:
        store.answer()
        await turns()
    assert [record.epoch for record in await asyncio.gather(*others)] == [1, 1]
    assert leader.cancelled()


async def test_a_read_that_fails_fails_for_all(store: Store, register: EpochRegister) -> None:
    """Nothing is vouched for without an answer; the next one begins anew."""
    grants = ask(register, 2)
    await turns()
    while store.answers:
        store.answers.pop().set_exception(UnavailableError("etcd is away"))
    results = await asyncio.gather(*grants, return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError] * 2
    (again,) = ask(register)
    await turns()
    store.answer()
    assert (await again).epoch == 1
