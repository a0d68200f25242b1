"""What an operator changes (drain, failover, failback, freeze, override, drill) or says.

Each asks the cluster first what the change would do (`--dry-run` stops there), shows it, asks for a
yes on a terminal, and then sends it with a request id, so that a repeat after a lost answer changes
nothing. Exit codes: 0 done, 3 refused by a safety rule, 4 no replica answers, 5 the wait was over
before it was applied everywhere.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controlplane.adapters.jsonview import to_json
from controlplane.cli.client import Client
from controlplane.cli.durations import parse_ms, parse_s
from controlplane.cli.exits import DEADLINE, FAILED, REFUSED, UNREACHABLE, CallError
from controlplane.cli.options import Options
from controlplane.cli.output import Format, Styled, age, bar, percent, print_data, print_table, say
from controlplane.model.errors import InvalidInputError
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc as rpc
from controlplane.v1 import common_pb2

WAIT_DEFAULT = "2m"
HOLD_DEFAULT = "10s"
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
    "replication_lag_ms": "--lag",
}
"""Fields of the API and the options that give them."""
_BASIS_POINTS: Final = re.compile(r"[0-9]{1,5}")


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
    rules: list[str]
    local: bool

    def mutation(self, *, validate_only: bool) -> pb.Mutation:
        """Build what travels with the change."""
        return pb.Mutation(
            request_id=self.request_id,
            reason=self.reason,
            validate_only=validate_only,
            override_rules=self.rules,
            ttl_s=parse_s(self.hold, "--for") if self.hold else 0,
            local=self.local,
        )


REQUESTS: Final[dict[str, tuple[str, Callable[[str, pb.Mutation], Any]]]] = {
    "drain": ("DrainRegion", lambda r, m: pb.DrainRegionRequest(region=r, mutation=m)),
    "undrain": ("UndrainRegion", lambda r, m: pb.UndrainRegionRequest(region=r, mutation=m)),
    "failover": ("StartFailover", lambda r, m: pb.StartFailoverRequest(from_region=r, mutation=m)),
    "failback": ("StartFailback", lambda r, m: pb.StartFailbackRequest(region=r, mutation=m)),
    "freeze": ("Freeze", lambda _, m: pb.FreezeRequest(mutation=m)),
    "unfreeze": ("Unfreeze", lambda _, m: pb.UnfreezeRequest(mutation=m)),
}
"""Changes of one word: the method and its request."""


def change(
    options: Options,
    name: str,
    word: str,
    *,
    reason: str = "",
    dry_run: bool = False,
    yes: bool = False,
    wait: bool = False,
    timeout: str = WAIT_DEFAULT,
    request_id: str = "",
    hold: str = "",
    override_rule: Sequence[str] | None = None,
    local: bool = False,
    weights: str = "",
    clear: bool = False,
    hold_for: str = HOLD_DEFAULT,
    lag: str = "",
) -> None:
    """Ask for a change by the name of its command; `word` is the region or channel."""
    if not reason.strip():
        raise InvalidInputError("--reason", "is required: say why, it is kept in the audit")
    parse_ms(timeout, "--timeout")
    common = Common(
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id or str(uuid.uuid4()),
        hold=hold,
        rules=list(override_rule or ()),
        local=local,
    )
    if name == "override":
        method, make = _override(weights, clear=clear)
    elif name == "readiness":
        method, make = _readiness(lag, clear=clear)
    elif name == "drill":
        hold_s = parse_s(hold_for, "--hold")
        method = "StartDrill"
        make = lambda r, m: pb.StartDrillRequest(region=r, hold_s=hold_s, mutation=m)  # noqa: E731
    else:
        method, make = REQUESTS[name]
    _run(options, common, method, lambda mutation: make(word, mutation))


def _override(weights: str, *, clear: bool) -> tuple[str, Callable[[str, pb.Mutation], Any]]:
    if clear == bool(weights):
        raise InvalidInputError("--weights", "give either --weights … --for 30m, or --clear")
    if clear:
        return "ClearOverride", lambda c, m: pb.ClearOverrideRequest(channel=c, mutation=m)
    parsed = _weights(weights)
    return "SetOverride", lambda c, m: pb.SetOverrideRequest(channel=c, weights=parsed, mutation=m)


def _readiness(lag: str, *, clear: bool) -> tuple[str, Callable[[str, pb.Mutation], Any]]:
    if clear == bool(lag):
        raise InvalidInputError("--lag", "give either --lag 250ms, or --clear")
    lag_ms = None if clear else parse_ms(lag, "--lag")
    return "SetReadiness", lambda r, m: pb.SetReadinessRequest(
        region=r, replication_lag_ms=lag_ms, mutation=m
    )


def _weights(text: str) -> list[common_pb2.RegionWeight]:
    out = []
    for part in text.split(","):
        region, _, weight = part.partition("=")
        if not _BASIS_POINTS.fullmatch(weight.strip()):
            raise InvalidInputError("--weights", f"{part!r} is not REGION=BASISPOINTS")
        out.append(common_pb2.RegionWeight(region=region.strip(), weight_bp=int(weight)))
    return out


def _run(
    options: Options, common: Common, method: str, request: Callable[[pb.Mutation], Any]
) -> None:
    client: Client = options.client()
    fmt: Format = options.format
    preview = _send(client, method, request(common.mutation(validate_only=True)))
    if common.local and not preview.local:
        raise CallError(
            "the replica does not know --local (an older version): it would change the plan for "
            "everybody; nothing was asked of it",
            FAILED,
        )
    blocked = [r for r in preview.effect.refusals if r.rule not in common.rules]
    if common.dry_run:
        _show(preview, fmt)
        if blocked and not preview.effect.unchanged:
            sys.exit(REFUSED)
        return
    if fmt is Format.TABLE and not preview.effect.unchanged:
        _show_effect(preview)
    asking = not common.yes and sys.stdin.isatty() and not preview.effect.unchanged
    if asking and not blocked and not _confirmed():
        sys.exit(FAILED)
    try:
        operation = _send(client, method, request(common.mutation(validate_only=False)))
    except CallError as error:
        if error.exit_code not in {UNREACHABLE, DEADLINE}:
            raise
        raise CallError(
            f"{error}. Whether it was done is not known: repeat the command with --request-id "
            f"{common.request_id}, that does it once at most",
            error.exit_code,
        ) from error
    if common.wait and not operation.done:
        operation = _wait(client, operation, parse_ms(common.timeout, "--timeout"), fmt)
    _show(operation, fmt, effect=False)
    if common.wait and not operation.done:
        sys.exit(DEADLINE)
    if operation.stage == "failed":
        sys.exit(FAILED)


def _confirmed() -> bool:
    try:
        sys.stderr.write("Do it? [y/N]: ")  # stdout is for the answer
        sys.stderr.flush()
        return input().strip().lower() in {"y", "yes"}
    except EOFError:
        return False


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
        unchanged = operation.effect.unchanged
        seen = (unchanged and operation.message) or "dry run, nothing was changed"
        say(f"{operation.kind}{target}: {seen}")
        return
    took = (
        f", applied everywhere in {age(operation.converge_ms)}"
        if operation.converge_ms >= 0
        else ""
    )
    ends = to_json(operation)["expires_at"]
    until = f", until {ends}" if ends else ""
    told = operation.message and not (took and operation.message in took)
    message = f". {operation.message}" if told else ""
    say(f"{operation.kind}{target}: {operation.stage}{took}{until}{message} [{operation.id}]")


def _show_effect(operation: Any) -> None:
    if not operation.effect.regions:  # it moves nothing
        return
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
