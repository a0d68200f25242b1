"""The changes as typer sees them: their options and help. What they do is in `cli.change`."""

from __future__ import annotations

from typing import Annotated

import typer

from controlplane.cli.change import WAIT_DEFAULT, change

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
    change(
        ctx.obj,
        "drain",
        region,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        hold=hold,
        override_rule=override_rule,
        local=local,
    )


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
    change(
        ctx.obj,
        "undrain",
        region,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        override_rule=override_rule,
        local=local,
    )


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
    change(
        ctx.obj,
        "failover",
        from_region,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        hold=hold,
        override_rule=override_rule,
        local=local,
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
    change(
        ctx.obj,
        "failback",
        region,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        override_rule=override_rule,
    )


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
    change(
        ctx.obj,
        "freeze",
        "",
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        hold=hold,
    )


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
    change(
        ctx.obj,
        "unfreeze",
        "",
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
    )


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
    change(
        ctx.obj,
        "override",
        channel,
        weights=weights,
        clear=clear,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        hold=hold,
        override_rule=override_rule,
        local=local,
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
    change(
        ctx.obj,
        "drill",
        region,
        hold_for=hold_for,
        reason=reason,
        dry_run=dry_run,
        yes=yes,
        wait=wait,
        timeout=timeout,
        request_id=request_id,
        override_rule=override_rule,
    )
