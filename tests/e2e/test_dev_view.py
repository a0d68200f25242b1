"""The view: what stands on the screen and in the JSON lines, from a snapshot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from controlplane.dev import view
from controlplane.dev.content import load_content
from controlplane.dev.layout import Layout, plan_layout
from controlplane.dev.observe import Process, Snapshot

PLAN = {
    "epoch": 7,
    "term": 3,
    "routes": [
        {"channel": channel, "weights": [
            {"region": "east", "weight_bp": 0}, {"region": "north", "weight_bp": 10_000},
        ]}
        for channel in ("alipay", "wechatpay", "unionpay", "bank_direct")
    ],
    "regions": [{"name": "east", "phase": "failed"}, {"name": "north", "phase": "healthy"}],
    "breakers": [{"region": "north", "channel": "alipay", "state": "open"}],
}  # fmt: skip
PAID = {
    "sent": 30,
    "in_flight": 1,
    "totals": {"succeeded": 20, "unknown": 9},
    "regions": {"north": 20},
    "recent": {
        "window_s": 10, "counts": {"succeeded": 20, "unknown": 9}, "regions": {"north": 20},
        "p50_ms": 200.0, "p99_ms": 800.0,
    },
    "seconds": [{"succeeded": 10}, {}, {"succeeded": 10, "unknown": 9}],
}  # fmt: skip


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Return a layout; nothing is started."""
    return plan_layout(tmp_path, load_content(), None)


def snapshot(plan: Any = PLAN, paid: Any = PAID, doubles: int = 0) -> Snapshot:
    """Make a snapshot of East lost."""
    return Snapshot(
        at="2026-01-01T00:00:00.000Z",
        plan=plan,
        status={"leader": "north-0", "alarms": ["east is gone"]} if plan else None,
        epochs={"north-0": 7} if plan else {},
        payments=paid,
        charges=20,
        double_charges=doubles,
        processes=[
            Process(name="east-0", region="east", role="replica", state="dead"),
            Process(name="etcd-east-0", region="east", role="etcd", state="hung"),
            Process(name="north-0", region="north", role="replica", state="running"),
        ],
        events=[{"at": "2026-01-01T00:00:00.000Z", "kind": "region_failed", "message": "gone"}],
    )


def drawn(layout: Layout, shot: Snapshot, width: int = 100) -> str:
    """Return the screen as plain text."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=60)
    console.print(view.render(layout, shot, {"console": "http://127.0.0.1:1/"}))
    return out.getvalue()


def test_line_tells_what_counts(layout: Layout) -> None:
    """A JSON line has epoch, leader, shares, phases, open breakers, payments, double charges and
    what does not run."""
    line = view.tick_line(layout, snapshot(doubles=1))
    assert (line["epoch"], line["leader"], line["double_charges"]) == (7, "north-0", 1)
    assert line["load_bp"] == {"east": 0, "north": 10_000, "south": 0}
    assert line["phases"]["east"] == "failed"
    assert line["open_breakers"] == ["north/alipay open"]
    assert line["payments"]["unknown"] == 9
    assert line["not_running"] == {"east-0": "dead", "etcd-east-0": "hung"}


def test_screen_tells_what_counts(layout: Layout) -> None:
    """An operator sees the failed region, the open breaker, the success rate of the last seconds,
    double charges, the alarm and the last event."""
    screen = drawn(layout, snapshot(doubles=1))
    for said in (
        "leader north-0", "east failed", "✕ replica", "◐ etcd", "● 1 running", "100.0 %", "north open",
        "68.97 %",
        "charged twice 1", "east is gone", "region_failed", "http://127.0.0.1:1/",
    ):  # fmt: skip
        assert said in screen, said
    assert view.success_rates(PAID) == [1.0, None, pytest.approx(10 / 19)]


def test_the_newest_cause_is_whole_on_a_narrow_terminal(layout: Layout) -> None:
    """On 80 columns the last event is never cut; older ones give way to it."""
    cause = "east failed 8.4 s after the first symptom: no report, no answered probe, all say DOWN"
    shot = snapshot()
    old = [{"at": "2026-01-01T00:00:00.000Z", "kind": "region_failed", "message": "old " * 20}] * 9
    shot.events[:] = [*old, {**old[0], "message": cause}]
    screen = drawn(layout, shot, 80)
    assert "DOWN" in screen
    assert "…" not in screen


def test_nothing_known_is_shown_as_that(layout: Layout) -> None:
    """Without plan, status and payer the view still draws and says so, also on 60 columns."""
    for width in (60, 200):
        screen = drawn(layout, snapshot(plan=None, paid=None), width)
        assert "leader none" in screen
        assert "the payer does not answer" in screen
    assert view.tick_line(layout, snapshot(plan=None, paid=None))["epoch"] is None
