"""What an operator changes: drain, failover, failback, freeze, override, drill.

Each asks the cluster first what the change would do (`--dry-run` stops there), shows it, asks for a
yes on a terminal, and then sends it with a request id, so that a repeat after a lost answer changes
nothing. Exit codes: 0 done, 3 refused by a safety rule, 4 no replica answers, 5 the wait was over
before it was applied everywhere.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from controlplane.adapters.jsonview import to_json
from controlplane.cli.client import Client
from controlplane.cli.durations import parse_ms, parse_s
from controlplane.cli.exits import DEADLINE, FAILED, REFUSED, UNREACHABLE, CallError
from controlplane.cli.output import Format, Styled, age, bar, percent, print_data, print_table, say
from controlplane.model.errors import InvalidInputError
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc as rpc
from controlplane.v1 import common_pb2

WAIT_DEFAULT = "2m"
CALL_S = 5.0
OPTIONS = {
    "mutation.reason": "--reason",
    "mutation.request_id": "--request-id",
    "mutation.ttl_s": "--for",
    "from_region": "--from",
    "weights": "--weights",
    "weights.region": "--weights",
    "weights.weight_bp": "--weights",
    "hold_s": "--hold",
}
"""Fields of the API and the options that give them."""

Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the audit. Required.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would happen.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is applied everywhere.")]
Timeout = Annotated[str, typer.Option("--timeout", help="Longest wait, e.g. 90s.")]
RequestId = Annotated[
    str, typer.Option("--request-id", help="UUID; a repeat changes nothing. Drawn if absent.")
]
For = Annotated[str, typer.Option("--for", help="How long it holds, e.g. 30m.")]
Rules = Annotated[
    list[str] | None, typer.Option("--override-rule", help="Safety rule to override (breakglass).")
]

Local = Annotated[
    bool,
    typer.Option(
        "--local",
        help="Only what the data planes of the replica that answers follow, without a quorum.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """The options that all changes share."""

    reason: str
    dry_run: bool
    yes: bool
    wait: bool
    timeout: str
    request_id: str
    hold: str
    rules: list[str] | None
    local: bool

    def mutation(self, *, validate_only: bool) -> pb.Mutation:
        """Build what travels with the change."""
        return pb.Mutation(
            request_id=self.request_id,
            reason=self.reason,
            validate_only=validate_only,
            override_rules=self.rules or [],
            ttl_s=parse_s(self.hold, "--for") if self.hold else 0,
            local=self.local,
        )


def drain(
    ctx: typer.Context,
    region: str,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    hold: For = "",
    override_rule: Rules = None,
    local: Local = False,
) -> None:
    """Take a region out of service gradually."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, hold, override_rule, local)
    _run(ctx, common, "DrainRegion", lambda m: pb.DrainRegionRequest(region=region, mutation=m))


def undrain(
    ctx: typer.Context,
    region: str,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    override_rule: Rules = None,
    local: Local = False,
) -> None:
    """End a drain; the region returns by ramp."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, "", override_rule, local)
    _run(ctx, common, "UndrainRegion", lambda m: pb.UndrainRegionRequest(region=region, mutation=m))


def failover(
    ctx: typer.Context,
    from_region: Annotated[str, typer.Option("--from", help="Region to leave.")],
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    hold: For = "",
    override_rule: Rules = None,
    local: Local = False,
) -> None:
    """Move all traffic off a region at once."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, hold, override_rule, local)
    _run(
        ctx,
        common,
        "StartFailover",
        lambda m: pb.StartFailoverRequest(from_region=from_region, mutation=m),
    )


def failback(
    ctx: typer.Context,
    region: str,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    override_rule: Rules = None,
) -> None:
    """Let a failed or drained region return now, by ramp."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, "", override_rule)
    _run(ctx, common, "StartFailback", lambda m: pb.StartFailbackRequest(region=region, mutation=m))


def freeze(
    ctx: typer.Context,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    hold: For = "",
) -> None:
    """Forbid automatic change of the plan."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, hold, None)
    _run(ctx, common, "Freeze", lambda m: pb.FreezeRequest(mutation=m))


def unfreeze(
    ctx: typer.Context,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
) -> None:
    """Allow automatic change again."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, "", None)
    _run(ctx, common, "Unfreeze", lambda m: pb.UnfreezeRequest(mutation=m))


def override(
    ctx: typer.Context,
    channel: str,
    weights: Annotated[
        str, typer.Option("--weights", help="east=5000,north=5000; sum 10000.")
    ] = "",
    clear: Annotated[bool, typer.Option("--clear", help="End the override.")] = False,
    hold: For = "",
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    override_rule: Rules = None,
    local: Local = False,
) -> None:
    """Fix one channel's weights until the override expires, or end it."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, hold, override_rule, local)
    if clear == bool(weights):
        raise InvalidInputError("--weights", "give either --weights … --for 30m, or --clear")
    if clear:
        _run(
            ctx,
            common,
            "ClearOverride",
            lambda m: pb.ClearOverrideRequest(channel=channel, mutation=m),
        )
        return
    parsed = _weights(weights)
    _run(
        ctx,
        common,
        "SetOverride",
        lambda m: pb.SetOverrideRequest(channel=channel, weights=parsed, mutation=m),
    )


def drill(
    ctx: typer.Context,
    region: str,
    hold_for: Annotated[str, typer.Option("--hold", help="How long it stays out.")] = "10s",
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = False,
    timeout: Timeout = WAIT_DEFAULT,
    request_id: RequestId = "",
    override_rule: Rules = None,
) -> None:
    """Fail a region over as an exercise, timed against the budget, and bring it back."""
    common = _common(reason, dry_run, yes, wait, timeout, request_id, "", override_rule)
    hold_s = parse_s(hold_for, "--hold")
    _run(
        ctx,
        common,
        "StartDrill",
        lambda m: pb.StartDrillRequest(region=region, hold_s=hold_s, mutation=m),
    )


def _common(
    reason: str,
    dry_run: bool,
    yes: bool,
    wait: bool,
    timeout: str,
    request_id: str,
    hold: str,
    rules: list[str] | None,
    local: bool = False,
) -> Common:
    if not reason.strip():
        raise InvalidInputError("--reason", "is required: say why, it is kept in the audit")
    parse_ms(timeout, "--timeout")
    return Common(
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id or str(uuid.uuid4()),
        hold=hold,
        rules=rules,
        local=local,
    )


def _weights(text: str) -> list[common_pb2.RegionWeight]:
    out = []
    for part in text.split(","):
        region, _, weight = part.partition("=")
        if not weight.strip().isdigit():
            raise InvalidInputError("--weights", f"{part!r} is not REGION=BASISPOINTS")
        out.append(common_pb2.RegionWeight(region=region.strip(), weight_bp=int(weight)))
    return out


def _run(
    ctx: typer.Context, common: Common, method: str, request: Callable[[pb.Mutation], Any]
) -> None:
    client: Client = ctx.obj.client()
    fmt: Format = ctx.obj.format
    preview = _send(client, method, request(common.mutation(validate_only=True)))
    blocked = [r for r in preview.effect.refusals if r.rule not in (common.rules or [])]
    if common.dry_run:
        _show(preview, fmt)
        if blocked and not preview.effect.unchanged:
            raise typer.Exit(REFUSED)
        return
    if fmt is Format.TABLE and not preview.effect.unchanged:
        _show_effect(preview)
    asking = not common.yes and sys.stdin.isatty() and not preview.effect.unchanged
    if asking and not blocked and not typer.confirm("Do it?"):
        raise typer.Exit(FAILED)
    operation = _send(client, method, request(common.mutation(validate_only=False)))
    if common.wait and not operation.done:
        operation = _wait(client, operation, parse_ms(common.timeout, "--timeout"), fmt)
    _show(operation, fmt, effect=False)
    if common.wait and not operation.done:
        raise typer.Exit(DEADLINE)
    if operation.stage == "failed":
        raise typer.Exit(FAILED)


def _send(client: Client, method: str, request: Any) -> Any:
    """Call a change; a field that is refused is named as the option it was given by."""
    try:
        return client.call(rpc.AdminServiceStub, method, request, CALL_S)
    except CallError as error:
        field, colon, rest = str(error).partition(": ")
        option = OPTIONS.get(field)
        if not colon or option is None:
            raise
        raise CallError(f"{option}: {rest}", error.exit_code) from error


def _wait(client: Client, operation: Any, timeout_ms: int, fmt: Format) -> Any:
    """Follow an operation until it is done, telling each new stage."""
    end = time.perf_counter() + timeout_ms / 1000
    said = ("", "")
    while not operation.done and time.perf_counter() < end:
        if fmt is Format.TABLE and (operation.stage, operation.message) != said:
            said = (operation.stage, operation.message)
            say(Styled(f"… {operation.stage}: {operation.message}", "dim"))
            sys.stdout.flush()
        request = pb.WaitOperationRequest(id=operation.id, timeout_ms=800)
        try:
            operation = client.call(rpc.AdminServiceStub, "WaitOperation", request)
        except CallError as error:
            if error.exit_code not in {UNREACHABLE, DEADLINE}:
                raise
            time.sleep(0.2)
    return operation


def _show(operation: Any, fmt: Format, *, effect: bool = True) -> None:
    if fmt is not Format.TABLE:
        print_data(to_json(operation), fmt)
        return
    if effect:
        _show_effect(operation)
    target = f" {operation.target}" if operation.target else ""
    if operation.validate_only:
        seen = "already so" if operation.effect.unchanged else "dry run, nothing was changed"
        say(f"{operation.kind}{target}: {seen}")
        return
    took = (
        f", applied everywhere in {age(operation.converge_ms)}"
        if operation.converge_ms >= 0
        else ""
    )
    say(f"{operation.kind}{target}: {operation.stage}{took}. {operation.message} [{operation.id}]")


def _show_effect(operation: Any) -> None:
    print_table(
        ["REGION", ">NOW", ">THEN", "", ">UTILISATION"],
        [
            (
                r.region,
                percent(r.load_before_bp),
                percent(r.load_after_bp),
                bar(r.load_after_bp),
                percent(r.utilisation_after_bp),
            )
            for r in operation.effect.regions
        ],
    )
    for refusal in operation.effect.refusals:
        say(Styled(f"blocked by {refusal.rule}: {refusal.message}. {refusal.remedy}", "bold red"))
