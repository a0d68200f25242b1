"""Plot: the weights of a run over time as a small hand-written SVG, faults as bands behind them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from controlplane.model.ids import FULL_BP
from controlplane.simulation.faults import Fault
from controlplane.simulation.run import Result

WIDTH: Final = 960
HEIGHT: Final = 360
LEFT: Final = 60
TOP: Final = 40
RIGHT: Final = 20
BOTTOM: Final = 50
COLOURS: Final = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5", "#64473a")
MARKS: Final = {
    "region_suspect": "#d9730d",
    "region_failed": "#e03e3e",
    "breaker_opened": "#e03e3e",
    "provider_outage": "#e03e3e",
    "region_recovering": "#0f7b6c",
}


def svg(
    title: str,
    names: Sequence[str],
    result: Result,
    faults: Sequence[Fault],
    duration_ms: int,
) -> str:
    """Draw the weights of the first channel, one stepped line a region."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(at_ms: float) -> float:
        return LEFT + wide * min(at_ms, duration_ms) / max(1, duration_ms)

    def y(weight_bp: float) -> float:
        return TOP + high * (1 - weight_bp / FULL_BP)

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for fault in faults:
        start, end = x(fault.start_ms), x(fault.end_ms)
        label = escape(" ".join(v for v in (fault.kind, fault.region, fault.channel) if v))
        parts.append(
            f'<rect x="{start:.1f}" y="{TOP}" width="{max(0.5, end - start):.1f}" '
            f'height="{high}" fill="#e03e3e" opacity="0.08"><title>{label}</title></rect>'
        )
    parts.extend(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(weight_bp):.1f}" '
        f'y2="{y(weight_bp):.1f}" stroke="#dddddd"/>'
        f'<text x="{LEFT - 8}" y="{y(weight_bp) + 4:.1f}" text-anchor="end">'
        f"{weight_bp // 100} %</text>"
        for weight_bp in range(0, FULL_BP + 1, FULL_BP // 4)
    )
    for at_ms, event in result.events:
        if event.kind in MARKS:
            parts.append(
                f'<line x1="{x(at_ms):.1f}" x2="{x(at_ms):.1f}" y1="{TOP}" y2="{TOP + high}" '
                f'stroke="{MARKS[event.kind]}" stroke-dasharray="3 3">'
                f"<title>{at_ms / 1000:.1f} s {escape(event.message)}</title></line>"
            )
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(_line(result, i, colour, x, y, duration_ms))
        parts.append(
            f'<text x="{LEFT + 110 * i}" y="{HEIGHT - 12}" fill="{colour}">'
            f"{escape(str(name))}</text>"
        )
    parts.append(
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">'
        f"0 to {duration_ms / 1000:g} s</text></svg>\n"
    )
    return "\n".join(parts)


def _line(result: Result, place: int, colour: str, x: object, y: object, duration_ms: int) -> str:
    across, down = x, y
    assert callable(across)
    assert callable(down)
    points: list[str] = []
    last = 0
    for at_ms, row in result.weights:
        if place >= len(row):
            continue
        points.append(f"{across(at_ms):.1f},{down(last):.1f}")
        last = row[place]
        points.append(f"{across(at_ms):.1f},{down(last):.1f}")
    points.append(f"{across(duration_ms):.1f},{down(last):.1f}")
    joined = " ".join(points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
