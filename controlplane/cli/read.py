"""The read side: status, regions, channels, routes, breakers, agents, events, failovers,
explain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.text import Text

from controlplane.adapters.jsonview import to_json
from controlplane.cli.client import Client
from controlplane.cli.output import (
    Format,
    age,
    bar,
    console,
    percent,
    print_data,
    print_table,
    word,
)
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc as rpc

Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most this many.")]
STAGES = ("suspect", "decide", "commit", "converge")


def _ask(ctx: typer.Context, method: str, request: Any) -> Any:
    client: Client = ctx.obj.client()
    return client.call(rpc.AdminServiceStub, method, request)


def _machine(ctx: typer.Context, data: Any) -> bool:
    """Print for machines if that was asked for; tell whether it was."""
    fmt: Format = ctx.obj.format
    if fmt is Format.TABLE:
        return False
    print_data(data, fmt)
    return True


def status(ctx: typer.Context) -> None:
    """Show everything needed in the first five seconds."""
    answer = _ask(ctx, "GetStatus", pb.GetStatusRequest())
    if _machine(ctx, to_json(answer)):
        return
    out = console()
    flags = [name for name in ("frozen", "panic") if getattr(answer, name)]
    if not answer.coordinated:
        flags.append("NO ETCD QUORUM: last known good")
    leader = f"{answer.leader} (term {answer.term})" if answer.leader else "none known"
    head = Text.assemble(
        (answer.cluster or "weir", "bold"), f"  epoch {answer.plan_epoch}  leader {leader}  "
    )
    head.append("  ".join(flags), style="bold red")
    out.print(head)
    for alarm in answer.alarms:
        out.print(Text(f"! {alarm}", style="yellow"))
    if answer.HasField("failover"):
        out.print(_failover_line(answer.failover))
    _regions_table(answer.plan)
    _routes_table(answer.plan.routes)
    if answer.laggards:
        names = ", ".join(f"{s.subscriber} (at {s.applied_epoch})" for s in answer.laggards)
        out.print(Text(f"not yet applied by {names}", style="yellow"))
    else:
        out.print(Text(f"applied by all {answer.subscribers} live subscribers", style="dim"))


def _failover_line(failover: pb.Failover) -> Text:
    stages = "  ".join(
        f"{stage} {age(ms) if (ms := getattr(failover, stage + '_ms')) >= 0 else '…'}"
        for stage in STAGES
    )
    return Text(
        f"failover {failover.id} from {failover.from_region} ({failover.kind}): {stages}  "
        f"budget left {age(max(0, failover.budget_remaining_ms))}",
        style="bold yellow",
    )


def _regions_table(plan: Any) -> None:
    load = _load(plan)
    print_table(
        ["REGION", "PHASE", "VERDICT", ">LOAD", "", "CAUSE"],
        [
            (
                region.name,
                word("drained" if region.drained else region.phase),
                word(region.verdict),
                percent(load.get(region.name, 0)),
                bar(load.get(region.name, 0)),
                region.cause,
            )
            for region in plan.regions
        ],
    )


def _load(plan: Any) -> dict[str, int]:
    """Mean weight of each region over the routes, in bp."""
    totals: dict[str, int] = {}
    for route in plan.routes:
        for weight in route.weights:
            totals[weight.region] = totals.get(weight.region, 0) + weight.weight_bp
    return {name: total // max(1, len(plan.routes)) for name, total in totals.items()}


def _routes_table(routes: Iterable[Any]) -> None:
    rows = [
        (
            route.channel,
            "  ".join(f"{w.region} {percent(w.weight_bp)}" for w in route.weights),
            percent(route.shed_bp) if route.shed_bp else "",
            route.reasons[0] if route.reasons else "",
        )
        for route in routes
    ]
    print_table(["CHANNEL", "WEIGHTS", ">SHED", "WHY"], rows)


def regions(ctx: typer.Context) -> None:
    """List the regions with verdict, evidence, load and capacity."""
    answer = _ask(ctx, "ListRegions", pb.ListRegionsRequest())
    if _machine(ctx, to_json(answer)):
        return
    print_table(
        [
            "REGION",
            "ROLE",
            "PHASE",
            "VERDICT",
            ">LOAD",
            ">CAPACITY",
            "AGENTS",
            "REPORT",
            "VOTES",
            "CAUSE",
        ],
        [
            (
                r.name,
                r.role,
                word("drained" if r.drained else r.phase),
                word(r.verdict),
                percent(r.load_bp),
                f"{r.capacity_tps}/s",
                f"{r.agents_live}/{r.agents_expected}",
                age(r.report_age_ms),
                " ".join(f"{v.vantage}:{v.opinion}" for v in r.votes),
                r.cause,
            )
            for r in answer.regions
        ],
    )


def channels(ctx: typer.Context) -> None:
    """List the channels with weights and breakers."""
    answer = _ask(ctx, "ListChannels", pb.ListChannelsRequest())
    if _machine(ctx, to_json(answer)):
        return
    print_table(
        ["CHANNEL", "REGIONS", "WEIGHTS", "BREAKERS", ">SHED"],
        [
            (
                c.name,
                " ".join(c.regions),
                "  ".join(f"{w.region} {percent(w.weight_bp)}" for w in c.route.weights),
                " ".join(f"{b.region}:{b.state}" for b in c.breakers if b.state != "closed")
                or "all closed",
                percent(c.route.shed_bp) if c.route.shed_bp else "",
            )
            for c in answer.channels
        ],
    )


def routes(ctx: typer.Context) -> None:
    """Show the weights in force and the rules that shaped them."""
    answer = _ask(ctx, "GetStatus", pb.GetStatusRequest())
    if _machine(ctx, to_json(answer.plan)):
        return
    _routes_table(answer.plan.routes)


def breakers(ctx: typer.Context) -> None:
    """Show the breaker of every cell."""
    answer = _ask(ctx, "GetStatus", pb.GetStatusRequest())
    if _machine(ctx, {"breakers": to_json(answer.plan)["breakers"]}):
        return
    print_table(
        ["REGION", "CHANNEL", "STATE", "SINCE", "OPEN UNTIL", "CAUSE"],
        [
            (
                b["region"],
                b["channel"],
                word(b["state"]),
                b["since"],
                b.get("open_until", ""),
                b["cause"],
            )
            for b in to_json(answer.plan)["breakers"]
        ],
    )


def agents(ctx: typer.Context, limit: Limit = 100) -> None:
    """List the agents that report."""
    answer = _ask(ctx, "ListAgents", pb.ListAgentsRequest(page_size=limit))
    if _machine(ctx, to_json(answer)):
        return
    print_table(
        ["REGION", "AGENT", "REPLICA", ">EPOCH", ">AGE"],
        [(a.region, a.id, a.replica, str(a.applied_epoch), age(a.age_ms)) for a in answer.agents],
    )


def _event_row(event: Any) -> tuple[str, Text, str, str, str]:
    item = to_json(event)
    where = "/".join(part for part in (item["region"], item["channel"]) if part)
    kind = Text(item["kind"], style="bold red" if item["severity"] == "critical" else "")
    return item["at"], kind, where, str(item["epoch"]), item["message"]


def events(
    ctx: typer.Context,
    limit: Limit = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones.")] = False,
) -> None:
    """Show what happened and why; the newest last."""
    if follow:
        _follow(ctx, limit)
        return
    answer = _ask(ctx, "ListEvents", pb.ListEventsRequest(page_size=limit))
    if _machine(ctx, to_json(answer)):
        return
    print_table(
        ["AT", "EVENT", "WHERE", ">EPOCH", "WHAT"],
        [_event_row(event) for event in reversed(answer.events)],
    )


def _follow(ctx: typer.Context, limit: int) -> None:
    client: Client = ctx.obj.client()
    seen = 0
    for event in client.stream(
        rpc.AdminServiceStub, "WatchEvents", lambda: pb.WatchEventsRequest(backlog=limit)
    ):
        if event.id <= seen:
            continue
        seen = event.id
        if ctx.obj.format is Format.TABLE:
            at, kind, where, epoch, what = _event_row(event)
            console().print(Text(f"{at}  "), kind, Text(f"  {where}  epoch {epoch}  {what}"))
        else:
            sys.stdout.write(json.dumps(to_json(event)) + "\n")
            sys.stdout.flush()


def failovers(ctx: typer.Context, limit: Limit = 20) -> None:
    """List failovers with the time of every stage against the budget."""
    answer = _ask(ctx, "ListFailovers", pb.ListFailoversRequest(page_size=limit))
    if _machine(ctx, to_json(answer)):
        return
    print_table(
        [
            "ID",
            "FROM",
            "KIND",
            "OUTCOME",
            ">SUSPECT",
            ">DECIDE",
            ">COMMIT",
            ">CONVERGE",
            ">LEFT",
            "CAUSE",
        ],
        [
            (
                f.id,
                f.from_region,
                f.kind,
                word(f.outcome),
                *(age(v) if (v := getattr(f, s + "_ms")) >= 0 else "—" for s in STAGES),
                age(max(0, f.budget_remaining_ms)),
                f.cause,
            )
            for f in answer.failovers
        ],
    )


def explain(ctx: typer.Context, channel: str) -> None:
    """Tell why a channel's weights are what they are, rule by rule."""
    answer = _ask(ctx, "ExplainRoute", pb.ExplainRouteRequest(channel=channel))
    if _machine(ctx, to_json(answer)):
        return
    console().print(Text(f"{channel} at epoch {answer.epoch}", style="bold"))
    print_table(
        ["RULE", "WEIGHTS", "WHAT IT DID"],
        [
            (
                step.rule,
                "  ".join(f"{w.region} {percent(w.weight_bp)}" for w in step.weights),
                step.detail,
            )
            for step in answer.steps
        ],
    )
