"""LockService over real gRPC, both clients, and `weir lock`, on a real Redis and etcd."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pymysql
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from lock_lab import PATIENT, Lab, until

from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.lock_client import LockClient, SyncLockClient
from controlplane.adapters.lock_service import LockServiceServicer
from controlplane.locks.audit import AuditLog
from controlplane.locks.errors import LockHeldError, LockLostError, StaleTokenError
from controlplane.locks.grant import Mode
from controlplane.locks.guards import SqlDialect, SqlGuard
from controlplane.locks.manager import LockManager
from controlplane.model.errors import InvalidInputError, UnavailableError
from controlplane.v1 import lock_pb2, lock_pb2_grpc
from tests.support.proxy import Proxy

TTL = 30_000
EXAMPLES = Path(__file__).resolve().parents[2] / "examples/locks"


class Served:
    """A manager behind a gRPC server of this process."""

    def __init__(self, manager: LockManager, audit: AuditLog, address: str) -> None:
        self.manager = manager
        self.audit = audit
        self.address = address


@pytest.fixture
async def served(lab: Lab) -> AsyncIterator[Served]:
    """The service on a free port."""
    manager = await lab.manager(limits=PATIENT)
    audit = AuditLog(await lab.store(), f"/weir/{lab.prefix}/audit/".encode())
    server = grpc.aio.server()
    lock_pb2_grpc.add_LockServiceServicer_to_server(LockServiceServicer(manager, audit), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield Served(manager, audit, f"127.0.0.1:{port}")
    await server.stop(None)


@pytest.fixture
async def stub(served: Served) -> AsyncIterator[Any]:
    """A raw stub."""
    async with grpc.aio.insecure_channel(served.address) as channel:
        yield lock_pb2_grpc.LockServiceStub(channel)


def ask(**fields: Any) -> lock_pb2.AcquireRequest:
    """A good request, changed."""
    good = {"name": "a", "owner": "o", "ttl_ms": TTL, "request_id": str(uuid.uuid4())}
    return lock_pb2.AcquireRequest(**(good | fields))


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The details of an error by type name."""
    found: dict[str, Any] = {}
    for packed in rpc_status.from_call(error).details:
        for kind in (
            error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo,
            error_details_pb2.PreconditionFailure, error_details_pb2.BadRequest,
        ):  # fmt: skip
            message = kind()
            if packed.Unpack(message):
                found[kind.DESCRIPTOR.name] = message
    return found


async def test_a_grant_has_every_field_of_the_contract(stub: Any) -> None:
    """name, owner, token, epoch, counter, expires_in_ms and verified fit together."""
    grant = await stub.Acquire(ask())
    assert (grant.name, grant.owner, grant.verified) == ("a", "o", True)
    assert grant.token == (grant.epoch << 32) + grant.counter
    assert 0 < grant.expires_in_ms <= TTL
    renewed = await stub.Renew(
        lock_pb2.RenewRequest(
            name="a", owner="o", token=grant.token, ttl_ms=TTL, request_id=str(uuid.uuid4())
        )
    )
    assert renewed.token == grant.token


async def test_a_repeated_request_is_answered_as_at_first(stub: Any) -> None:
    """Acquire repeats give the token; a repeated release says what the first said; a request whose
    grant has ended cannot take a lock for nobody."""
    request = ask()
    first, again = await stub.Acquire(request), await stub.Acquire(request)
    assert first.token == again.token
    release = lock_pb2.ReleaseRequest(
        name="a", owner="o", token=first.token, request_id=str(uuid.uuid4())
    )
    assert [(await stub.Release(release)).released for _ in range(2)] == [True, True]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Acquire(request)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(refused.value)["ErrorInfo"].metadata["rule"] == "request_used"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("request_id", {"request_id": "x"}),
        ("name", {"name": ""}),
        ("owner", {"owner": "two words"}),
        ("ttl_ms", {"ttl_ms": -5}),
        ("wait_ms", {"wait_ms": 10**9}),
        ("mode", {"mode": "sure"}),
    ],
)
async def test_bad_requests_name_the_field(stub: Any, field: str, change: dict[str, Any]) -> None:
    """INVALID_ARGUMENT with BadRequest and ErrorInfo of domain weir."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Acquire(ask(**change))
    found = details(refused.value)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert found["ErrorInfo"].domain == "weir"
    assert found["BadRequest"].field_violations[0].field == field


async def test_held_and_down_are_told_apart(stub: Any, lab: Lab) -> None:
    """Held: FAILED_PRECONDITION with the rule. Redis down: UNAVAILABLE with RetryInfo, at once."""
    await stub.Acquire(ask(ttl_ms=30_000))
    with pytest.raises(grpc.aio.AioRpcError) as held:
        await stub.Acquire(ask(owner="p"))
    assert held.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details(held.value)["PreconditionFailure"].violations[0].subject == "lock_held"
    lab.server.kill()
    with pytest.raises(grpc.aio.AioRpcError) as down:
        await stub.Acquire(ask(name="b"))
    assert down.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details(down.value)["RetryInfo"].retry_delay.ToMilliseconds() > 0


async def test_validate_only_changes_nothing(stub: Any) -> None:
    """The request is checked, the lock stays free."""
    assert (await stub.Acquire(ask(validate_only=True))).token == 0
    assert not (await stub.GetLock(lock_pb2.GetLockRequest(name="a"))).holders


async def test_a_cancelled_call_leaves_the_queue(stub: Any) -> None:
    """A client that goes away while it waits does not get the lock later."""
    held = await stub.Acquire(ask(ttl_ms=30_000))
    waiting = stub.Acquire(ask(owner="w", wait_ms=20_000))

    async def waiters() -> int:
        lock = await stub.GetLock(lock_pb2.GetLockRequest(name="a"))
        return int(lock.waiters)

    async with asyncio.timeout(20):
        while await waiters() != 1:
            await asyncio.sleep(0.002)
        waiting.cancel()
        while await waiters() != 0:
            await asyncio.sleep(0.002)
    await stub.Release(
        lock_pb2.ReleaseRequest(name="a", owner="o", token=held.token, request_id=str(uuid.uuid4()))
    )
    assert not (await stub.GetLock(lock_pb2.GetLockRequest(name="a"))).holders


async def test_force_release_is_audited_and_idempotent(stub: Any, served: Served) -> None:
    """The operator's reason is kept in etcd; a repeated request does not take the next holder's
    lock."""
    held = await stub.Acquire(ask(ttl_ms=30_000))
    request = lock_pb2.ForceReleaseRequest(
        name="a", reason="holder is gone", operator="ops", request_id=str(uuid.uuid4())
    )
    first = await stub.ForceRelease(request)
    assert (first.released, first.holders[0].token) == (True, held.token)
    taken = await stub.Acquire(ask(owner="next", ttl_ms=30_000))
    assert taken.token > held.token
    again = await stub.ForceRelease(request)
    assert (again.released, again.holders[0].token) == (True, held.token)
    lock = await stub.GetLock(lock_pb2.GetLockRequest(name="a"))
    assert lock.holders[0].owner == "next"
    (entry,) = await served.audit.list()
    assert (entry.reason, entry.operator, entry.tokens) == ("holder is gone", "ops", (held.token,))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ForceRelease(
            lock_pb2.ForceReleaseRequest(name="a", request_id=request.request_id)
        )
    assert details(refused.value)["BadRequest"].field_violations[0].field == "reason"


async def test_list_pages_through_all_locks(stub: Any) -> None:
    """Every held lock is listed exactly once over the pages."""
    for i in range(30):
        await stub.Acquire(ask(name=f"n{i}", ttl_ms=30_000))
    names: list[str] = []
    page = ""
    while True:
        answer = await stub.ListLocks(lock_pb2.ListLocksRequest(page_size=10, page_token=page))
        names += [lock.name for lock in answer.locks]
        page = answer.next_page_token
        if not page:
            break
    assert sorted(set(names)) == sorted(f"n{i}" for i in range(30))


async def test_watch_streams_changes(stub: Any) -> None:
    """A follower sees the lock taken and given back."""
    stream = stub.WatchLock(lock_pb2.WatchLockRequest(name="a"))
    async with asyncio.timeout(30):
        assert not (await stream.read()).holders
        grant = await stub.Acquire(ask(ttl_ms=30_000))
        assert (await stream.read()).holders[0].token == grant.token
        await stub.Release(
            lock_pb2.ReleaseRequest(
                name="a", owner="o", token=grant.token, request_id=str(uuid.uuid4())
            )
        )
        assert not (await stream.read()).holders
    stream.cancel()


async def test_the_async_client_speaks_errors(served: Served) -> None:
    """Values and errors over the network are those of the manager; a dead replica costs one try."""
    async with (
        grpc.aio.insecure_channel("127.0.0.1:1") as dead,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        locks = LockClient([dead, channel])
        grant = await locks.acquire("a", owner="o", ttl_ms=TTL)
        assert grant.verified
        with pytest.raises(LockHeldError):
            await locks.acquire("a", owner="p", ttl_ms=TTL)
        with pytest.raises(InvalidInputError):
            await locks.acquire("a", owner="p", ttl_ms=1)
        assert (await locks.get("a")).holders[0].owner == "o"
        assert await locks.release("a", owner="o", token=grant.token) == 0
        assert await locks.release("a", owner="o", token=grant.token) is None
        with pytest.raises(LockLostError):
            await locks.renew("a", owner="o", token=grant.token, ttl_ms=TTL)
        with pytest.raises(UnavailableError):
            await LockClient([dead]).acquire("a", owner="o", ttl_ms=TTL)


async def test_the_sync_client_holds_and_renews(served: Served) -> None:
    """A thread holds longer than the TTL, hears of it when the lock is taken away, and waits its
    turn."""

    def work() -> tuple[int, int, bool]:
        with grpc.insecure_channel(served.address) as channel:
            locks = SyncLockClient([channel])
            with locks.hold("a", ttl_ms=4_500, owner="sync") as held:
                first, deadline_ms = held.token, held.grant.deadline_ms
                while held.grant.deadline_ms == deadline_ms:
                    assert not held.lost.wait(0.01)
                held.check()
                served_token = held.grant.token
            with locks.hold("a", ttl_ms=4_500, owner="sync", wait_ms=30_000) as held:
                second = held.token
                taken = asyncio.run_coroutine_threadsafe(
                    served.manager.force("a", (held.grant.token,)), loop
                )
                taken.result(10)
                told = held.lost.wait(20)
                with pytest.raises(LockLostError):
                    held.check()
            assert served_token.value == first
            return first, second, told

    loop = asyncio.get_running_loop()
    first, second, told = await asyncio.to_thread(work)
    assert second > first
    assert told


WEIR = """
import contextlib, io, json, sys
from controlplane.cli import main

for args in json.loads(sys.argv[1]):
    sys.argv = ["weir", "-o", "json", "lock", *args]
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            main.run()
        except SystemExit as ended:
            code = ended.code or 0
    print(json.dumps([code, out.getvalue()]), flush=True)
"""
"""Runs many commands in one process: what they import takes longer than what they do."""


async def weir(served: Served, *commands: tuple[str, ...]) -> list[tuple[int, Any]]:
    """Run command lines one after the other; exit code and JSON of each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WEIR, json.dumps(commands), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "WEIR_SERVER": served.address},
    )  # fmt: skip
    out, _ = await process.communicate()
    answers = [json.loads(line) for line in out.splitlines()]
    return [(code, json.loads(text) if text else None) for code, text in answers]


async def test_the_command_line(served: Served) -> None:
    """acquire, renew, get, list, release and force-release print the contract's JSON and exit
    codes."""
    ((code, grant),) = await weir(served, ("acquire", "nightly", "--owner", "job", "--ttl", "60s"))
    assert code == 0
    assert {
        "name", "owner", "token", "epoch", "counter", "expires_in_ms", "verified",
    } <= grant.keys()  # fmt: skip
    token = str(grant["token"])
    held, renewed, kept, shown, listed, bad, dry, forced, released, lost = await weir(
        served,
        ("acquire", "nightly", "--owner", "other", "--ttl", "2s"),
        ("renew", "nightly", "--owner", "job", "--token", token, "--ttl", "60s"),
        ("renew", "nightly", "--owner", "job", "--token", token),
        ("get", "nightly"),
        ("list",),
        ("acquire", "nightly", "--owner", "job", "--ttl", "soon"),
        ("force-release", "nightly", "--reason", "gone", "--dry-run"),
        ("force-release", "nightly", "--reason", "gone", "--yes"),
        ("release", "nightly", "--owner", "job", "--token", token),
        ("renew", "nightly", "--owner", "job", "--token", token, "--ttl", "60s"),
    )
    assert held == (3, None)
    assert (renewed[0], renewed[1]["token"]) == (0, grant["token"])
    assert (kept[0], kept[1]["token"]) == (0, grant["token"])
    assert 10_000 < kept[1]["expires_in_ms"] <= 60_000  # not the default: that would shorten it
    assert shown[1]["holders"][0]["owner"] == "job"
    assert [lock["name"] for lock in listed[1]["locks"]] == ["nightly"]
    assert bad[0] == 2
    assert (dry[1]["released"], dry[1]["holders"][0]["owner"]) == (False, "job")
    assert forced[1]["released"] is True
    assert (released[0], released[1]["released"]) == (0, False)
    assert lost[0] == 3


async def test_the_command_line_names_etcd_when_it_is_silent(lab: Lab) -> None:
    """A strict grant that etcd does not vouch for ends as unreachable and says that it was etcd,
    not as a bare deadline of the command line's own."""
    proxies = [await Proxy(int(e.rpartition(":")[2])).start() for e in lab.etcd.endpoints]
    store = await EtcdClient.connect([proxy.endpoint for proxy in proxies])
    manager = await lab.manager(limits=PATIENT, store=store)
    audit = AuditLog(store, f"/weir/{lab.prefix}/audit/".encode())
    server = grpc.aio.server()
    lock_pb2_grpc.add_LockServiceServicer_to_server(LockServiceServicer(manager, audit), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    for proxy in proxies:
        proxy.lose_replies = True
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controlplane.cli.main", "lock", "acquire", "a", "--owner", "o",
        "--ttl", "2s", stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "WEIR_SERVER": f"127.0.0.1:{port}"},
    )  # fmt: skip
    _, told = await process.communicate()
    for proxy in proxies:
        proxy.lose_replies = False
        await proxy.stop()
    await server.stop(None)
    await store.aclose()
    assert (process.returncode, b"etcd" in told) == (4, True), told


async def test_the_examples_run(
    served: Served, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the documentation points to does what it says."""
    redis_url = f"redis://127.0.0.1:{lab.server.port}"
    for name, *args in (
        ("in_process",), ("sqlite_guard", served.address),
        ("redis_guard", served.address, redis_url),
    ):  # fmt: skip
        example = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        await asyncio.to_thread(example["main"], *args)
    told = capsys.readouterr().out
    assert told.count("refused:") == 2
    assert "balance: 90" in told
    assert "now 1" in told


@pytest.mark.parametrize("kind", ["postgres", "mysql"])
async def test_the_examples_with_a_database_run(
    served: Served, request: pytest.FixtureRequest, kind: str
) -> None:
    """Each debits an account in a real database; again under the next token, never under an old
    one."""
    arguments: list[str]
    connection: Any
    if kind == "postgres":
        arguments = [request.getfixturevalue("postgres")]
        connection, dialect = psycopg.connect(arguments[0]), SqlDialect.POSTGRESQL
    else:
        where = request.getfixturevalue("mariadb")
        arguments = [f"{key}={value}" for key, value in where.items()]
        connection, dialect = pymysql.connect(**where), SqlDialect.MYSQL
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS account")
        cursor.execute("DROP TABLE IF EXISTS weir_fence")
        connection.commit()
        for _ in range(2):
            command = [sys.executable, str(EXAMPLES / f"{kind}_guard.py"), served.address]
            process = await asyncio.create_subprocess_exec(
                *command, *arguments, stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
        assert process.returncode == 0
        cursor.execute("SELECT balance FROM account WHERE id = 42")
        assert cursor.fetchone() == (80,)
        connection.rollback()
        late, guard = int(out.split()[-1]) - 1, SqlGuard(dialect)
        with pytest.raises(StaleTokenError), guard.transaction(connection, "account/42", late):
            pass


async def test_modes_can_be_asked_for(served: Served) -> None:
    """Lineage grants say that they are not verified."""
    async with grpc.aio.insecure_channel(served.address) as channel:
        locks = LockClient([channel])
        grant = await locks.acquire("a", owner="o", ttl_ms=TTL, mode=Mode.LINEAGE)
        assert not grant.verified
        waiter = asyncio.ensure_future(
            locks.acquire("a", owner="w", ttl_ms=TTL, wait_ms=20_000, mode=Mode.LINEAGE)
        )
        await until(lambda: served.manager.hand_offs)
        await locks.release("a", owner="o", token=grant.token)
        assert (await waiter).token > grant.token
