"""`weir lock ...`: take, keep, give back and look at locks from a shell.

    token=$(weir -o json lock acquire nightly --owner job-7 --ttl 30s --wait 10s | jq .token)
    weir lock renew nightly --owner job-7 --token "$token" --ttl 30s
    weir lock release nightly --owner job-7 --token "$token"

Exit codes: 0 ok, 1 failed, 2 usage, 3 held by somebody else or lost, 4 no replica could vouch for a
grant, 5 deadline passed.
"""

from __future__ import annotations

import getpass
import re
import uuid
from typing import Annotated, Any, Final

import typer

from controlplane.adapters.jsonview import to_json
from controlplane.cli import lock_read
from controlplane.cli.client import ATTEMPT_S, Client
from controlplane.cli.output import Format, print_data
from controlplane.model.errors import InvalidInputError
from controlplane.v1 import lock_pb2 as pb
from controlplane.v1 import lock_pb2_grpc as rpc

app = typer.Typer(
    name="lock", help="Locks whose fencing tokens never go back.", no_args_is_help=True
)

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000}
RENEW_TTL_MS: Final = 10_000
VOUCHED_S: Final = 4.0
"""How long one replica may take for a strict grant: above what it gives Redis and etcd (1 + 2.5 s),
so that its refusal, which names the ill one, arrives before our own deadline."""
MODES: Final = ("", "strict", "lineage")


def duration_ms(text: str, option: str) -> int:
    """Return the milliseconds of 500ms, 2s, 30m, 1h; InvalidInputError for anything else."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidInputError(option, f"{text!r} is no duration; write 500ms, 2s, 30m or 1h")
    return round(float(found[1]) * _UNIT_MS[found[2]])


Name = Annotated[str, typer.Argument(help="Name of the lock.")]
Owner = Annotated[
    str, typer.Option("--owner", help="Who holds it: unique to one thread of control.")
]
TokenOption = Annotated[int, typer.Option("--token", help="Token of the grant.")]
Ttl = Annotated[str, typer.Option("--ttl", help="How long it lasts without renewal: 500ms, 2s.")]
ModeOption = Annotated[
    str, typer.Option("--mode", help="strict or lineage; the service's default when left out.")
]
RequestId = Annotated[
    str | None, typer.Option("--request-id", help="UUID; repeat it to repeat a call safely.")
]


@app.command()
def acquire(
    ctx: typer.Context,
    name: Name,
    owner: Owner,
    ttl: Ttl,
    wait: Annotated[str, typer.Option("--wait", help="How long to wait in the queue.")] = "0s",
    mode: ModeOption = "",
    shared: Annotated[bool, typer.Option("--shared", help="Share it with others.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for people.")] = "",
    request_id: RequestId = None,
) -> None:
    """Acquire a lock and print its grant."""
    wait_ms = duration_ms(wait, "--wait")
    request = pb.AcquireRequest(
        name=name, owner=owner, ttl_ms=duration_ms(ttl, "--ttl"), wait_ms=wait_ms,
        mode=_mode(mode), shared=shared, reason=reason, request_id=_request(request_id),
    )  # fmt: skip
    _print_grant(ctx, _call(ctx, "Acquire", request, VOUCHED_S + wait_ms / 1000))


@app.command()
def renew(
    ctx: typer.Context,
    name: Name,
    owner: Owner,
    token: TokenOption,
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", help="How long it lasts from now; 10s, or what is left, if unset."),
    ] = None,
    mode: ModeOption = "",
    request_id: RequestId = None,
) -> None:
    """Extend a lock that is still held, and print its grant."""
    request = pb.RenewRequest(
        name=name, owner=owner, token=token, mode=_mode(mode), request_id=_request(request_id),
        ttl_ms=_default_ttl_ms(ctx, name, token) if ttl is None else duration_ms(ttl, "--ttl"),
    )  # fmt: skip
    _print_grant(ctx, _call(ctx, "Renew", request, VOUCHED_S))


@app.command()
def release(
    ctx: typer.Context, name: Name, owner: Owner, token: TokenOption, request_id: RequestId = None
) -> None:
    """Give a lock back; giving back what is not held any more succeeds."""
    request = pb.ReleaseRequest(
        name=name, owner=owner, token=token, request_id=_request(request_id)
    )
    answer = _call(ctx, "Release", request)
    if not _machine(ctx, to_json(answer)):
        print(f"{name}: released" if answer.released else f"{name}: was not held by {token}")


@app.command("get", help=lock_read.get.__doc__)
def get_lock(ctx: typer.Context, name: Name) -> None:
    """Show one lock."""
    lock_read.get(ctx.obj, name)


@app.command("list", help=lock_read.list_held.__doc__)
def list_locks(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most.")] = 1000,
) -> None:
    """List the locks."""
    lock_read.list_held(ctx.obj, limit=limit)


@app.command("force-release")
def force_release(
    ctx: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the audit record.")],
    token: Annotated[int, typer.Option("--token", help="Only if this token holds it.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say who would lose it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    request_id: RequestId = None,
) -> None:
    """Take a lock from whoever holds it. The holder is not told: only guards stop it."""
    if not yes and not dry_run:
        typer.confirm(f"Take {name} from its holder, who may still be acting?", abort=True)
    request = pb.ForceReleaseRequest(
        name=name, reason=reason, operator=getpass.getuser(), token=token,
        validate_only=dry_run, request_id=_request(request_id),
    )  # fmt: skip
    answer = _call(ctx, "ForceRelease", request)
    if _machine(ctx, to_json(answer)):
        return
    owners = ", ".join(f"{h.owner} (token {h.token})" for h in answer.holders) or "nobody"
    print(f"{name}: {'taken from' if answer.released else 'held by'} {owners}")


def _default_ttl_ms(ctx: typer.Context, name: str, token: int) -> int:
    """Return what a renewal without --ttl asks for, in ms: never less than is left, because a
    renewal that shortens a lease would end it under its holder."""
    lock = _call(ctx, "GetLock", pb.GetLockRequest(name=name))
    left_ms = (int(holder.expires_in_ms) for holder in lock.holders if holder.token == token)
    return max(RENEW_TTL_MS, *left_ms, 0)


def _call(ctx: typer.Context, method: str, request: Any, timeout_s: float = ATTEMPT_S) -> Any:
    client: Client = ctx.obj.client()
    return client.call(rpc.LockServiceStub, method, request, timeout_s)


def _machine(ctx: typer.Context, data: Any) -> bool:
    fmt: Format = ctx.obj.format
    if fmt is Format.TABLE:
        return False
    print_data(data, fmt)
    return True


def _print_grant(ctx: typer.Context, grant: Any) -> None:
    if _machine(ctx, to_json(grant)):
        return
    vouched = "verified against etcd" if grant.verified else "lineage only"
    print(
        f"{grant.name}: held by {grant.owner}, token {grant.token} "
        f"(epoch {grant.epoch}, counter {grant.counter}), {grant.expires_in_ms} ms left, {vouched}"
    )


def _mode(text: str) -> str:
    if text not in MODES:
        raise InvalidInputError("--mode", f"{text!r} is not strict or lineage")
    return text


def _request(text: str | None) -> str:
    if text is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidInputError("--request-id", f"{text!r} is no UUID") from None
