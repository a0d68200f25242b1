"""The agent's page: which plan is in force here, readable without a script.

The console is at the replicas; this page is what is left when all of them are gone. The browser
draws it anew every five seconds, and it needs nothing but HTML.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, Final

from controlplane.model.plan import Plan

STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;"
    "color-scheme:light dark}table{border-collapse:collapse;margin:1rem 0}"
    "th,td{padding:.25rem .75rem;border-bottom:1px solid #8888;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
)
_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page(status: Mapping[str, Any], plan: Plan | None) -> str:
    """Return the HTML for an agent's status (as at /api/status) and the plan it has."""
    name = escape(f"{status['region']}/{status['agent']}")
    facts = _table(("", "now"), ((key, value) for key, value in status.items()))
    shares = "<p>No plan yet, neither from a replica nor on disk.</p>"
    if plan is not None:
        regions = [region.name for region in plan.regions]
        shares = _table(
            ("channel", *regions),
            (
                (route.channel, *(f"{dict(route.weights).get(r, 0) / 100:g} %" for r in regions))
                for route in plan.routes
            ),
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="5">'
        f"<title>{name} · Weir agent</title><style>{STYLE}</style></head><body>"
        f"<h1>Weir agent {name}</h1>{facts}<h2>Plan in force</h2>{shares}"
        '<p><a href="/api/plan">plan</a> · <a href="/api/status">status</a> · '
        '<a href="/metrics">metrics</a>. The console is at <code>/</code> of every replica.</p>'
        "</body></html>\n"
    )


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(head, "th") + "".join(line(row, "td") for row in rows) + "</table>"
