"""The read side: status, regions, channels, routes, breakers, agents, events, failovers,
explain."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from controlplane import __version__
from controlplane.adapters.jsonview import to_json
from controlplane.cli.options import Options
from controlplane.cli.output import (
    Format,
    Styled,
    age,
    bar,
    percent,
    print_data,
    print_table,
    say,
    word,
)
from controlplane.clock import SystemClock
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc as rpc

STAGES = ("suspect", "decide", "commit", "converge")
HEARTBEAT_OLD_MS: Final = 3_000
"""Age of the leader's last write that is worth a word: six ticks."""
DIGEST_OLD_MS: Final = 5_000
"""Age of a replica's last digest at which it counts as not heard."""
DAY_S: Final = 86_400
SOON_S: Final = 600
"""An order that ends within ten minutes is marked, as the alert OverrideExpiring does."""
EXPLAINED_ABOVE = ("base_share:", "region_", "drained:", "frozen:", "panic:")
"""Reasons that the lines above the channels tell already."""


def _ask(options: Options, method: str, request: Any) -> Any:
    return options.client().call(rpc.AdminServiceStub, method, request)


def _machine(options: Options, data: Any) -> bool:
    """Print for machines if that was asked for; tell whether it was."""
    if options.format is Format.TABLE:
        return False
    print_data(data, options.format)
    return True


def old(answer: Any) -> str:
    """Say that etcd did not answer and how old what is shown is; empty when it is confirmed."""
    if not answer.HasField("last_known"):
        return ""
    ms = answer.last_known.age_ms
    return "last known good, " + (f"read {age(ms)} ago" if ms >= 0 else "not read since its start")


def _say_old(answer: Any) -> None:
    if text := old(answer):
        say(Styled(f"ETCD DOES NOT ANSWER: {text}", "bold red"))


def status(options: Options) -> None:
    """Show everything needed in the first five seconds."""
    answer = _ask(options, "GetStatus", pb.GetStatusRequest())
    if _machine(options, to_json(answer)):
        return
    flags = [name for name in ("frozen", "panic") if getattr(answer, name)]
    if not answer.coordinated:
        flags.append(f"NO ETCD QUORUM: {old(answer) or 'last known good'}")
    if answer.plan.local.left_ms:
        flags.append("LOCAL OVERRIDE")
    leader = f"{answer.leader} (term {answer.term})" if answer.leader else "none known"
    if not 0 <= answer.heartbeat_age_ms <= HEARTBEAT_OLD_MS:
        seen = answer.heartbeat_age_ms
        leader += f", heartbeat {age(seen)} ago" if seen >= 0 else ", no heartbeat seen"
    say(
        Styled(answer.cluster or "weir", "bold"),
        f"  epoch {answer.plan_epoch}  leader {leader}  ",
        Styled("  ".join(flags), "bold red"),
    )
    for alarm in answer.alarms:
        say(Styled(f"! {alarm}", "yellow"))
    if answer.HasField("failover"):
        say(_failover_line(answer.failover))
    _regions_table(answer.plan, answer.load_bp or _load(answer.plan))
    say()
    _shares_table(answer.plan.routes)
    say()
    if answer.orders:
        _orders_table(answer.orders, SystemClock().wall_ms() / 1000)
        say()
    if answer.laggards:
        say(Styled(f"not yet applied by {', '.join(map(_behind, answer.laggards))}", "yellow"))
    else:
        say(Styled(f"applied by all {answer.subscribers} live subscribers", "dim"))
    if answer.silent:
        names = ", ".join(map(_behind, answer.silent))
        say(Styled(f"not heard of, and behind when last seen: {names}", "yellow"))
    for line in _replicas_amiss(answer):
        say(Styled(line, "yellow"))


def _orders_table(orders: Iterable[pb.Order], now_s: float) -> None:
    """Show what stands by somebody's word: who, why and until when; `now_s` is Unix s."""
    rows = []
    for order in orders:
        what = " ".join(part for part in (order.kind, order.target) if part)
        here = " (here only)" if order.local else ""
        rows.append((f"{what}{here}", _until(order, now_s), order.by, order.reason))
    print_table(["ORDER", "UNTIL", "BY", "WHY"], rows)


def _until(order: pb.Order, now_s: float) -> Styled:
    if not order.HasField("expires_at"):
        return Styled("opened" if order.kind == "gate" else "", "")
    end_s = order.expires_at.seconds + order.expires_at.nanos / 1e9
    left_s = end_s - now_s
    at = datetime.fromtimestamp(end_s, tz=UTC)
    day = "" if 0 <= left_s < DAY_S / 2 else "%m-%d "  # an hour alone would be taken for today's
    text = at.strftime(f"{day}%H:%MZ")
    if left_s < 0:
        return Styled(f"{text} (over)", "bold red")
    soon = "bold yellow" if left_s < SOON_S else ""
    return Styled(f"{text} (in {_left(left_s)})", soon)


def _left(seconds: float) -> str:
    """Write a time that is left: rounded down, in one unit."""
    for size, unit in ((DAY_S, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _replicas_amiss(answer: Any) -> Iterable[str]:
    """Yield a line for the replicas not heard and one for those whose plan is old, if any are."""
    silent = [r for r in answer.replicas if not 0 <= r.digest_age_ms <= DIGEST_OLD_MS]
    if silent:
        yield "not heard: " + ", ".join(f"{r.id} ({age(r.digest_age_ms)})" for r in silent)
    old = [r for r in answer.replicas if r not in silent and r.plan_epoch < answer.plan_epoch]
    if old:
        yield "older plan at " + ", ".join(f"{r.id} (epoch {r.plan_epoch})" for r in old)


def _behind(subscriber: Any) -> str:
    """Name a subscriber that has not applied the plan, with what it has and why."""
    words = [f"at {subscriber.applied_epoch}"]
    if subscriber.error:
        words.append(f"refuses {subscriber.error}")
    elif subscriber.age_ms > 0:
        words.append(f"silent for {age(subscriber.age_ms)}")
    return f"{subscriber.subscriber} ({', '.join(words)})"


def _failover_line(failover: pb.Failover) -> Styled:
    stages = "  ".join(
        f"{stage} {age(ms) if (ms := getattr(failover, stage + '_ms')) >= 0 else '…'}"
        for stage in STAGES
    )
    return Styled(
        f"failover {failover.id} from {failover.from_region} ({failover.kind}): {stages}  "
        f"budget left {age(max(0, failover.budget_remaining_ms))}",
        "bold yellow",
    )


def _regions_table(plan: Any, load: Mapping[str, int]) -> None:
    print_table(
        ["REGION", "PHASE", "VERDICT", ">LOAD", "", "CAUSE"],
        [
            (
                region.name,
                word("drained" if region.drained else region.phase),
                word(region.verdict),
                f"{load.get(region.name, 0) / 100:.1f}%",
                bar(load.get(region.name, 0)),
                region.cause,
            )
            for region in plan.regions
        ],
    )


def _load(plan: Any) -> dict[str, int]:
    """Mean weight of each region over the routes, in bp: for a replica of an older version."""
    totals: dict[str, int] = {}
    for route in plan.routes:
        for weight in route.weights:
            totals[weight.region] = totals.get(weight.region, 0) + weight.weight_bp
    return {name: total // max(1, len(plan.routes)) for name, total in totals.items()}


def _shares_table(routes: Sequence[Any]) -> None:
    """One column per region, so that the eye runs down; only what the regions do not explain."""
    names = sorted({weight.region for route in routes for weight in route.weights})
    rows = []
    for route in routes:
        share = {weight.region: f"{weight.weight_bp / 100:.1f}%" for weight in route.weights}
        special = [r for r in route.reasons if not r.startswith(EXPLAINED_ABOVE)]
        shed = percent(route.shed_bp) if route.shed_bp else ""
        rows.append(
            (route.channel, *(share.get(name, "-") for name in names), shed, "; ".join(special))
        )
    print_table(["CHANNEL", *(f">{name}" for name in names), ">SHED", "WHY"], rows)


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


def regions(options: Options) -> None:
    """List the regions with verdict, evidence, load and capacity."""
    answer = _ask(options, "ListRegions", pb.ListRegionsRequest())
    if _machine(options, to_json(answer)):
        return
    _say_old(answer)
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
            "LAG",
            ">CLOCK",
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
                age(r.replication_lag_ms) if r.HasField("replication_lag_ms") else "",
                f"{r.clock_offset_ms:+.0f} ms" if r.HasField("clock_offset_ms") else "",
                " ".join(f"{v.vantage}:{v.opinion}" for v in r.votes),
                r.cause,
            )
            for r in answer.regions
        ],
    )


def channels(options: Options) -> None:
    """List the channels with weights and breakers."""
    answer = _ask(options, "ListChannels", pb.ListChannelsRequest())
    if _machine(options, to_json(answer)):
        return
    _say_old(answer)
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


def routes(options: Options) -> None:
    """Show the weights in force and the rules that shaped them."""
    answer = _ask(options, "GetStatus", pb.GetStatusRequest())
    if _machine(options, _with_age(to_json(answer.plan), answer)):
        return
    _say_old(answer)
    _routes_table(answer.plan.routes)


def _with_age(data: dict[str, Any], answer: Any) -> dict[str, Any]:
    """Add how old it is, when etcd did not confirm it, to a part of an answer."""
    if answer.HasField("last_known"):
        data["last_known"] = to_json(answer.last_known)
    return data


def breakers(options: Options) -> None:
    """Show the breaker of every cell."""
    answer = _ask(options, "GetStatus", pb.GetStatusRequest())
    if _machine(options, _with_age({"breakers": to_json(answer.plan)["breakers"]}, answer)):
        return
    _say_old(answer)
    print_table(
        ["REGION", "CHANNEL", "STATE", "SINCE", "OPEN UNTIL", "CAUSE"],
        [
            (
                b["region"],
                b["channel"],
                word(b["state"]),
                b["since"],
                b["open_until"] or "",
                b["cause"],
            )
            for b in to_json(answer.plan)["breakers"]
        ],
    )


def agents(options: Options, *, limit: int = 100) -> None:
    """List the agents that report."""
    answer = _ask(options, "ListAgents", pb.ListAgentsRequest(page_size=limit))
    if _machine(options, to_json(answer)):
        return
    print_table(
        ["REGION", "AGENT", "REPLICA", ">EPOCH", ">AGE", "VERSION"],
        [
            (a.region, a.id, a.replica, str(a.applied_epoch), age(a.age_ms), a.version)
            for a in answer.agents
        ],
    )


def _event_row(event: Any) -> tuple[str, Styled, str, str, str]:
    item = to_json(event)
    where = "/".join(part for part in (item["region"], item["channel"]) if part)
    kind = Styled(item["kind"], "bold red" if item["severity"] == "critical" else "")
    return item["at"], kind, where, str(item["epoch"]), item["message"]


def events(options: Options, *, limit: int = 20, follow: bool = False) -> None:
    """Show what happened and why; the newest last."""
    if follow:
        _follow(options, limit)
        return
    answer = _ask(options, "ListEvents", pb.ListEventsRequest(page_size=limit))
    if _machine(options, to_json(answer)):
        return
    _say_old(answer)
    print_table(
        ["AT", "EVENT", "WHERE", ">EPOCH", "WHAT"],
        [_event_row(event) for event in reversed(answer.events)],
    )


def _follow(options: Options, limit: int) -> None:
    seen = 0
    for event in options.client().stream(
        rpc.AdminServiceStub, "WatchEvents", lambda: pb.WatchEventsRequest(backlog=limit)
    ):
        if event.id <= seen:
            continue
        seen = event.id
        if options.format is Format.TABLE:
            at, kind, where, epoch, what = _event_row(event)
            say(f"{at}  ", kind, f"  {where}  epoch {epoch}  {what}")
            sys.stdout.flush()
        else:
            sys.stdout.write(json.dumps(to_json(event)) + "\n")
            sys.stdout.flush()


def failovers(options: Options, *, limit: int = 20) -> None:
    """List failovers with the time of every stage against the budget."""
    answer = _ask(options, "ListFailovers", pb.ListFailoversRequest(page_size=limit))
    if _machine(options, to_json(answer)):
        return
    _say_old(answer)
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


def explain(options: Options, channel: str) -> None:
    """Tell why a channel's weights are what they are, rule by rule."""
    answer = _ask(options, "ExplainRoute", pb.ExplainRouteRequest(channel=channel))
    if _machine(options, to_json(answer)):
        return
    _say_old(answer)
    say(Styled(f"{channel} at epoch {answer.epoch}", "bold"))
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


def version(options: Options) -> None:
    """Print the version."""
    if not _machine(options, {"version": __version__}):
        print(f"weir {__version__}")
