"""One run as a picture: payments per half second by who answered, and when what happened (SVG)."""

from __future__ import annotations

from collections import Counter
from html import escape

from tests.fabric.figures import BIN_MS, Run

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 340, 48, 76, 40
COLOURS = {
    "east": "#3b6ea8",
    "north": "#4f9d69",
    "south": "#d9a441",
    "failed": "#c4453c",
    "unknown": "#7d2a8c",
}
MARKS = {"suspect": "suspected", "committed": "weight 0 committed", "applied": "applied by Envoy",
         "failed": "declared failed"}  # fmt: skip


def timeline(run: Run) -> str:
    """Draw a run; the fault is at 0 s."""
    bins: dict[int, Counter[str]] = {}
    for payment in run.payments:
        who = payment.region or payment.outcome
        bins.setdefault(payment.due_ms // BIN_MS, Counter())[who] += 1
    if not bins:
        return ""
    first, last = min(bins), max(bins)
    highest = max(sum(counts.values()) for counts in bins.values())
    step = (WIDTH - LEFT - 10) / (last - first + 1)
    scale = (HEIGHT - TOP - BOTTOM) / highest

    def x(ms: float) -> float:
        return LEFT + (ms / BIN_MS - first) * step

    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        (
            f'<text x="{LEFT}" y="16" font-size="14">{escape(run.scenario)}: payments per half second,'
            " by region that answered</text>"
        ),
    ]
    for number, counts in sorted(bins.items()):
        base = float(HEIGHT - BOTTOM)
        for who, colour in COLOURS.items():
            height = counts[who] * scale
            if height:
                base -= height
                out.append(
                    f'<rect x="{x(number * BIN_MS):.1f}" y="{base:.1f}" width="{step * 0.9:.1f}"'
                    f' height="{height:.1f}" fill="{colour}"/>'
                )
    out += _axis(first, last, x)
    out += _marks(run, x)
    for number, (who, colour) in enumerate(COLOURS.items()):
        at = WIDTH - 330 + number * 66
        out.append(f'<rect x="{at}" y="8" width="10" height="10" fill="{colour}"/>')
        out.append(f'<text x="{at + 14}" y="17">{who}</text>')
    out.append("</svg>\n")
    return "\n".join(out)


def _axis(first: int, last: int, x: object) -> list[str]:
    assert callable(x)
    out = []
    for second in range(first * BIN_MS // 1000, last * BIN_MS // 1000 + 1, 5):
        at = x(second * 1000)
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{second} s</text>')
    return out


def _marks(run: Run, x: object) -> list[str]:
    assert callable(x)
    out = []
    marks = [("fault", 0.0), *((MARKS[k], v) for k, v in run.marks.items() if k in MARKS)]
    marks.sort(key=lambda mark: mark[1])
    for number, (label, at_ms) in enumerate(marks):
        at, y = x(at_ms), TOP - 42 + (number % 4) * 12
        out.append(
            f'<line x1="{at:.1f}" y1="{TOP - 44}" x2="{at:.1f}" y2="{HEIGHT - BOTTOM}"'
            ' stroke="#222" stroke-dasharray="3 2"/>'
        )
        out.append(f'<text x="{at + 3:.1f}" y="{y}">{escape(label)} {at_ms / 1000:.1f}</text>')
    return out
