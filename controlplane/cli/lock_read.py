"""`weir lock get` and `weir lock list`: who holds what, for how long, and who waits."""

from __future__ import annotations

from typing import Any

from controlplane.adapters.jsonview import to_json
from controlplane.cli.options import Options
from controlplane.cli.output import Format, age, print_data, print_table
from controlplane.v1 import lock_pb2 as pb
from controlplane.v1 import lock_pb2_grpc as rpc

PAGE = 1000
COLUMNS = ("LOCK", "HOLDER", ">TOKEN", ">AGE", ">LEFT", "", ">WAITING")


def get(options: Options, name: str) -> None:
    """Show one lock: holders, ages, waiters, statistics."""
    answer = _ask(options, "GetLock", pb.GetLockRequest(name=name))
    if not _machine(options, to_json(answer)):
        _print([answer])


def list_held(options: Options, *, limit: int = 1000) -> None:
    """Show the locks that are held, by name."""
    locks: dict[str, Any] = {}
    page = ""
    while len(locks) < limit:
        answer = _ask(options, "ListLocks", pb.ListLocksRequest(page_size=PAGE, page_token=page))
        locks |= {lock.name: lock for lock in answer.locks}
        page = answer.next_page_token
        if not page:
            break
    found = [locks[name] for name in sorted(locks)][:limit]
    if not _machine(options, {"locks": [to_json(lock) for lock in found]}):
        _print(found)


def _ask(options: Options, method: str, request: Any) -> Any:
    return options.client().call(rpc.LockServiceStub, method, request)


def _machine(options: Options, data: Any) -> bool:
    if options.format is Format.TABLE:
        return False
    print_data(data, options.format)
    return True


def _print(locks: list[Any]) -> None:
    print_table(COLUMNS, [_row(lock, h) for lock in locks for h in lock.holders or [None]])


def _row(lock: Any, holder: Any) -> tuple[str, ...]:
    shared, waiting = "shared" if lock.shared else "", str(lock.waiters)
    if holder is None:
        return (lock.name, "free", "", "", "", shared, waiting)
    left = f"{holder.expires_in_ms} ms"
    return (
        lock.name, holder.owner, str(holder.token), age(holder.age_ms), left, shared, waiting,
    )  # fmt: skip
