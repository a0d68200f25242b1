"""The agent over HTTP: /livez, /readyz, /metrics, /api/plan, /api/status, /api/events and a page.

Ready means that there is a plan to follow, from a replica or from disk: with the whole control
plane gone the agent is still ready, and Kubernetes must not restart or hide it. Alive means that
the event loop answers. Events are the status as server-sent events: at once, and whenever a newer
plan is in force; a comment every few seconds shows that the stream lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from agents.apply import Applier
from agents.page import HEADERS, page
from agents.report import Identity
from controlplane.adapters.jsonview import to_json

STREAMS_MAX: Final = 20
"""Most event streams at once; each holds one connection."""
EVENT_WAIT_S: Final = 5.0
"""Longest silence of a stream, and the longest that a reader may take for one event."""


def application(
    applier: Applier,
    identity: Identity,
    render: Callable[[str], tuple[bytes, str]],
    stopping: Callable[[], bool],
) -> web.Application:
    """Return the HTTP application. `render` gives the metrics for an Accept header."""

    def now() -> dict[str, Any]:
        return {
            "agent": identity.agent,
            "region": identity.region,
            "plan_epoch": applier.accepted_epoch,
            "applied_epoch": applier.applied_epoch,
            "highest_epoch": applier.highest_epoch,
            "disk_well": applier.disk_well,
            "stopping": stopping(),
        }

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        if stopping():
            return web.Response(status=503, text="stopping\n")
        if applier.accepted_epoch == 0:
            return web.Response(
                status=503, text="no plan yet, neither from a replica nor on disk\n"
            )
        return web.Response(text=f"ok, plan {applier.accepted_epoch}\n")

    async def exposition(request: web.Request) -> web.Response:
        body, content_type = render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def plan(_: web.Request) -> web.Response:
        if applier.message is None:
            return web.json_response({"error": "no plan yet"}, status=503)
        return web.json_response(to_json(applier.message))

    async def status(_: web.Request) -> web.Response:
        return web.json_response(now())

    async def front(_: web.Request) -> web.Response:
        text = page(now(), applier.plan)
        return web.Response(text=text, content_type="text/html", headers=HEADERS)

    app = web.Application()
    app.router.add_get("/", front)
    app.router.add_get("/api/status", status)
    app.router.add_get("/api/events", _Events(applier, now, stopping).get)
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/api/plan", plan)
    return app


class _Events:
    """The status as server-sent events, for a bounded number of readers."""

    def __init__(
        self, applier: Applier, now: Callable[[], dict[str, Any]], stopping: Callable[[], bool]
    ) -> None:
        self._applier = applier
        self._now = now
        self._stopping = stopping
        self._streams = 0

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Answer until the reader leaves, is too slow, or the agent stops."""
        if self._streams >= STREAMS_MAX:
            told = {"error": f"this agent serves at most {STREAMS_MAX} event streams"}
            return web.json_response(told, status=503, headers={"Retry-After": "5"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._streams += 1
        try:
            await response.prepare(request)
            await self._tell(response)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self._streams -= 1
        return response

    async def _tell(self, response: web.StreamResponse) -> None:
        told: dict[str, Any] = {}
        while not self._stopping():
            shown = self._now()
            line = f"event: status\ndata: {json.dumps(shown)}\n\n" if shown != told else ":\n\n"
            async with asyncio.timeout(EVENT_WAIT_S):
                await response.write(line.encode())
            told = shown
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVENT_WAIT_S):
                    await self._applier.wait_above(shown["plan_epoch"])
