"""The socket on which a running `weir dev` takes what `weir chaos` asks for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from controlplane.dev.chaos import Chaos, Request
from controlplane.dev.statedir import socket_path
from controlplane.model.errors import (
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)

# HTTP status of each kind of refusal, so that the caller gets the same exception back (remote.py)
_KINDS: dict[type[WeirError], int] = {
    InvalidInputError: 400,
    RefusedError: 409,
    UnavailableError: 503,
    WeirError: 500,
}


@contextlib.asynccontextmanager
async def serve(state_dir: Path, chaos: Chaos) -> AsyncIterator[None]:
    """Take actions on the control socket while the block runs."""

    async def act(request: web.Request) -> web.Response:
        try:
            answer = await chaos.act(Request.parse(await request.json()))
        except WeirError as exc:
            kind = next(kind for kind in _KINDS if isinstance(exc, kind))
            body = {"message": str(exc), "field": getattr(exc, "field", "")}
            return web.json_response(body, status=_KINDS[kind])
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/chaos", act)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    with socket_path(state_dir) as path:
        await web.UnixSite(runner, path).start()
        try:
            yield
        finally:
            await runner.cleanup()
