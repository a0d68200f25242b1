"""The agent over HTTP: /livez, /readyz, /metrics, /api/plan.

Ready means that there is a plan to follow, from a replica or from disk: with the whole control
plane gone the agent is still ready, and Kubernetes must not restart or hide it. Alive means that
the event loop answers.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from agents.apply import Applier
from controlplane.adapters.jsonview import to_json


def application(
    applier: Applier, render: Callable[[str], tuple[bytes, str]], stopping: Callable[[], bool]
) -> web.Application:
    """Return the HTTP application. `render` gives the metrics for an Accept header."""

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

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
    app.router.add_get("/api/plan", plan)
    return app
