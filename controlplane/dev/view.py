"""The live terminal view and the JSON lines of `--headless`: pure functions of a Snapshot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from controlplane.dev.layout import Layout
from controlplane.dev.observe import Snapshot

EVENTS_SHOWN = 8
"""Lines for them."""
_EVENT_FRAME = 13
"""Columns of an event's frame and time."""
BAR_CELLS = 20
ROLES = ("replica", "agent", "gateway", "etcd", "redis", "sentinel")
"""Order in which a region's processes are shown."""
SPARK = "▁▂▃▄▅▆▇█"
SPARK_SECONDS = 60
_FULL_BP = 10_000
_STYLES = {
    "healthy": "green", "running": "green", "closed": "green",
    "suspect": "yellow", "recovering": "yellow", "hung": "yellow", "half_open": "yellow",
    "failed": "bold red", "dead": "bold red", "open": "bold red",
}  # fmt: skip
_DOTS = {"running": "●", "hung": "◐", "dead": "✕"}


def weights(plan: dict[str, Any] | None) -> dict[str, dict[str, int]]:
    """Return channel -> region -> weight in basis points."""
    return {
        route["channel"]: {w["region"]: int(w.get("weight_bp", 0)) for w in route["weights"]}
        for route in (plan or {}).get("routes", [])
    }


def load_bp(layout: Layout, plan: dict[str, Any] | None) -> dict[str, int]:
    """Share of the whole payment mix that the plan sends to each region, in basis points."""
    shares: Counter[str] = Counter(dict.fromkeys(layout.regions, 0))
    table = weights(plan)
    for channel in layout.content.channels:
        for region, weight_bp in table.get(channel.name, {}).items():
            shares[region] += channel.mix_pct * weight_bp
    return {region: share // 100 for region, share in shares.items()}


def success_rates(payments: dict[str, Any] | None) -> list[float | None]:
    """Share of answered payments for each of the last seconds; None where none ended."""
    rates: list[float | None] = []
    for second in (payments or {}).get("seconds", [])[-SPARK_SECONDS:]:
        total = sum(second.values())
        good = second.get("succeeded", 0) + second.get("declined", 0)
        rates.append(good / total if total else None)
    return rates


def tick_line(layout: Layout, snapshot: Snapshot) -> dict[str, Any]:
    """Return one JSON line of `--headless`."""
    plan, status, paid = snapshot.plan or {}, snapshot.status or {}, snapshot.payments or {}
    recent = paid.get("recent", {})
    return {
        "type": "tick",
        "at": snapshot.at,
        "epoch": plan.get("epoch"),
        "term": plan.get("term"),
        "leader": status.get("leader"),
        "load_bp": load_bp(layout, snapshot.plan),
        "weights_bp": weights(snapshot.plan),
        "phases": {r["name"]: r["phase"] for r in plan.get("regions", [])},
        "open_breakers": _open_breakers(plan),
        "payments": {
            **paid.get("totals", {}),
            "sent": paid.get("sent", 0),
            "p50_ms": recent.get("p50_ms"),
            "p99_ms": recent.get("p99_ms"),
            "last_10s": recent.get("counts", {}),
        },
        "charges": snapshot.charges,
        "double_charges": snapshot.double_charges,
        "not_running": {p.name: p.state for p in snapshot.processes if p.state != "running"},
    }


def _open_breakers(plan: dict[str, Any]) -> list[str]:
    return [
        f"{b['region']}/{b['channel']} {b['state']}"
        for b in plan.get("breakers", [])
        if b["state"] != "closed"
    ]


def render(layout: Layout, snapshot: Snapshot, where: dict[str, str]) -> RenderableType:
    """Draw the whole screen."""
    return Group(
        _headline(snapshot),
        _regions(layout, snapshot),
        _channels(layout, snapshot),
        _payments(snapshot),
        _Events(snapshot.events),
        _where(where),
    )


def _word(text: str) -> Text:
    return Text(text, style=_STYLES.get(text, ""))


def _headline(snapshot: Snapshot) -> Text:
    plan, status = snapshot.plan or {}, snapshot.status or {}
    line = Text.assemble(("Weir ", "bold cyan"))
    regions = plan.get("regions", [])
    ill = [(r["name"], phase) for r in regions if (phase := _phase(r)) != "healthy"]
    for name, phase in ill:
        line.append(f"{name} {phase}", style=_STYLES.get(phase, "bold")).append(" · ")
    if regions and not ill:
        line.append("all healthy", style="green").append(" · ")
    line.append(f"plan {plan.get('epoch', '-')} · term {plan.get('term', '-')}")
    line.append(f" · leader {status.get('leader') or 'none'} · ").append_text(_served(snapshot))
    for flag in ("frozen", "panic"):
        if plan.get(flag):
            line.append(f" · {flag}", style="bold red")
    for alarm in status.get("alarms", [])[:2]:
        line.append(f"\n  ! {alarm}", style="yellow")
    return line


def _served(snapshot: Snapshot) -> Text:
    """Say how many replicas serve the plan, and which plans when they differ."""
    epochs = sorted(set(snapshot.epochs.values()))
    if not epochs:
        return Text("served by nobody", style="bold red")
    if len(epochs) > 1:
        return Text(f"replicas serve {', '.join(map(str, epochs))}", style="yellow")
    count = len(snapshot.epochs)
    return Text(f"served by {count} replica{'s' if count > 1 else ''}")


def _phase(region: dict[str, Any]) -> str:
    return "drained" if region.get("drained") else str(region.get("phase", "-"))


def _regions(layout: Layout, snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name, width in (("region", 6), ("phase", 9), ("planned", BAR_CELLS + 8), ("actual", 7)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("processes")
    phases = {r["name"]: r for r in (snapshot.plan or {}).get("regions", [])}
    planned = load_bp(layout, snapshot.plan)
    served = (snapshot.payments or {}).get("recent", {}).get("regions", {})
    total = sum(served.values()) or 1
    for region in layout.regions:
        state = phases.get(region, {})
        phase = _phase(state)
        table.add_row(
            Text(region, style="bold"),
            _word(phase),
            _bar(planned[region]),
            f"{100 * served.get(region, 0) / total:5.1f} %",
            _processes(snapshot, region),
        )
    return table


def _processes(snapshot: Snapshot, region: str) -> Text:
    """Name what does not run; what does is a number."""
    mine = [process for process in snapshot.processes if process.region == region]
    states = {process.state for process in mine}
    if len(states) == 1:
        (state,) = states
        words = f"{len(mine)} running" if state == "running" else f"all {len(mine)} {state}"
        return Text(f"{_DOTS[state]} {words}", style=_STYLES[state])
    text = Text()
    for process in sorted(mine, key=lambda process: ROLES.index(process.role)):
        if process.state != "running":
            text.append(f"{_DOTS[process.state]} {process.role}  ", style=_STYLES[process.state])
    running = sum(process.state == "running" for process in mine)
    return text.append(f"{_DOTS['running']} {running}", style="green") if running else text


def _bar(weight_bp: int) -> Text:
    cells = round(weight_bp * BAR_CELLS / _FULL_BP)
    return Text.assemble(
        ("█" * cells, "cyan"), ("░" * (BAR_CELLS - cells), "dim"), f" {weight_bp / 100:5.1f} %"
    )


def _channels(layout: Layout, snapshot: Snapshot) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("\nchannel", min_width=12)
    for region in layout.regions:
        table.add_column("\n" + region, justify="right", min_width=8)
    table.add_column("\nbreakers")
    planned = weights(snapshot.plan)
    opened = _open_breakers(snapshot.plan or {})
    for channel in layout.content.channels:
        row = planned.get(channel.name, {})
        cells = [
            f"{row[region] / 100:.1f} %" if region in row else "-" for region in layout.regions
        ]
        broken = [b.replace(f"/{channel.name}", "") for b in opened if f"/{channel.name} " in b]
        words = ", ".join(broken).replace("_", "-")
        text = Text(words, style="bold red") if broken else _word("closed")
        table.add_row(channel.name, *cells, text)
    return table


def _payments(snapshot: Snapshot) -> Text:
    paid = snapshot.payments
    if paid is None:
        return Text("payments: the payer does not answer", style="yellow")
    counts = Counter(paid["recent"]["counts"])
    total = sum(counts.values())
    good = counts["succeeded"] + counts["declined"]
    rate = good / total if total else 1.0
    totals = Counter(paid["totals"])
    line = Text("\npayments ", style="bold")
    line.append(f"{100 * rate:6.2f} % ", style="green" if rate > 0.999 else "bold red")  # noqa: PLR2004
    for value in success_rates(paid):
        if value is None:
            line.append("·", style="dim")
        else:
            style = "green" if value >= 1 else "yellow" if value > 0.5 else "red"  # noqa: PLR2004
            line.append(SPARK[int(value * (len(SPARK) - 1))], style=style)
    p50, p99 = paid["recent"]["p50_ms"], paid["recent"]["p99_ms"]
    style = "bold red" if snapshot.double_charges else "green"
    line.append(f"\n  charged twice {snapshot.double_charges}", style=style)
    for kind in ("failed", "unknown"):
        line.append(f" · {kind} {totals[kind]}", style="red" if totals[kind] else "")
    line.append(f" · p50 {p50 or 0:.0f} ms · p99 {p99 or 0:.0f} ms · sent {paid['sent']}")
    return line


class _Events:
    """The newest events that fit, whole: a cause that is cut off explains nothing."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        self._events = events

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 1, 0, 0))
        rows: list[tuple[Text, Text]] = []
        left = EVENTS_SHOWN
        for event in reversed(self._events):
            what = Text.assemble(
                (str(event.get("kind", "")), "cyan"), " ", event.get("message", "")
            )
            left -= len(what.wrap(console, max(20, options.max_width - _EVENT_FRAME)))
            if left < 0 and rows:
                break
            rows.append((Text(str(event.get("at", ""))[11:19], style="dim"), what))
        for row in reversed(rows):
            table.add_row(*row)
        yield Panel(
            table if rows else "nothing has happened yet",
            title="last events",
            title_align="left",
            border_style="dim",
            height=EVENTS_SHOWN + 2,
        )


def _where(where: dict[str, str]) -> Text:
    text = Text()
    for label, value in where.items():
        text.append(f"{label:<10}", style="dim")
        text.append(f"{value}\n")
    return text
