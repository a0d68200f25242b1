"""HTTP of a replica: metrics, probes of Kubernetes, JSON for people and scripts, the console.

Liveness says that the event loop turns; it never depends on etcd or Redis, because restarting
every replica is no cure for a sick store. Readiness says that this replica can serve a plan; it is
not leadership.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from aiohttp import web

from controlplane.adapters.console import Console
from controlplane.adapters.jsonview import to_json
from controlplane.adapters.wire import encode_plan
from controlplane.model.plan import Plan

STREAMS_MAX: Final = 200
"""Most consoles (event streams) at once; each holds one connection."""
EVENT_WRITE_S: Final = 5.0
"""A console that does not take an event for this long is dropped and reconnects by itself."""
BODY_MAX: Final = 64 * 1024
"""Larger requests are refused."""
SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Exposition(Protocol):
    """Where /metrics comes from."""

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """Return the body and its content type."""
        ...


class HttpServer:
    """The HTTP edge. Everything it shows is passed in as a callable."""

    def __init__(
        self,
        *,
        metrics: Exposition,
        plan: Callable[[], Plan | None],
        status: Callable[[], Awaitable[dict[str, Any]]],
        ready: Callable[[], str],
        console: Console,
        before_scrape: Callable[[], None] = lambda: None,
    ) -> None:
        self._metrics = metrics
        self._plan = plan
        self._status = status
        self._ready = ready
        self._console = console
        self._before_scrape = before_scrape
        self._streams = 0
        self._runner: web.AppRunner | None = None
        self.app = web.Application(middlewares=[self._headers], client_max_size=BODY_MAX)
        self._policy = console.security_policy()
        self.app.add_routes(
            [
                web.get("/metrics", self._get_metrics),
                web.get("/livez", self._get_live),
                web.get("/readyz", self._get_ready),
                web.get("/api/plan", self._get_plan),
                web.get("/api/status", self._get_status),
                web.get("/api/events", self._get_events),
                *console.routes(),
            ]
        )

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError when the port is taken."""
        self._runner = web.AppRunner(
            self.app, access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    async def stop(self) -> None:
        """Close every connection."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _get_metrics(self, request: web.Request) -> web.Response:
        self._before_scrape()
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _get_live(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_ready(self, _: web.Request) -> web.Response:
        reason = self._ready()
        return web.Response(text=(reason or "ok") + "\n", status=503 if reason else 200)

    async def _get_plan(self, _: web.Request) -> web.Response:
        plan = self._plan()
        if plan is None:
            return web.json_response({"error": "no plan yet"}, status=503)
        return web.json_response(to_json(encode_plan(plan)))

    async def _get_status(self, _: web.Request) -> web.Response:
        return web.json_response(await self._status())

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events as described in console_feed."""
        if self._console.feed.streams >= STREAMS_MAX:
            return web.json_response(
                {"error": f"this replica serves at most {STREAMS_MAX} consoles; use another one"},
                status=503,
                headers={"Retry-After": "5"},
            )
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        self._add_headers(request, response)
        try:
            await response.prepare(request)
            async with contextlib.aclosing(self._console.feed.stream()) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(EVENT_WRITE_S):
                        await response.write(chunk)
        except (TimeoutError, ConnectionError):
            pass
        return response

    @web.middleware
    async def _headers(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as error:
            self._add_headers(request, error)
            raise
        if not response.prepared:
            self._add_headers(request, response)
        return response

    def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what protects the page, and let the other replicas' pages read /api/*."""
        headers = response.headers
        headers.update(SECURITY_HEADERS)
        headers["Content-Security-Policy"] = self._policy
        headers.setdefault("Cache-Control", "no-store")
        if request.method == "GET" and request.path.startswith("/api/"):
            headers["Vary"] = "Origin"
            origin = request.headers.get("Origin", "")
            if origin in self._console.readers:
                headers["Access-Control-Allow-Origin"] = origin
