"""The socket through which `weir chaos` reaches a running `weir dev`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from controlplane.dev.chaos import Chaos, Request
from controlplane.dev.statedir import socket_path
from controlplane.model.errors import (
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)

ANSWER_S = 90.0
"""How long an action may take; a region that starts again is waited for."""
# HTTP status of each kind of refusal, so that the caller gets the same exception back
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


async def ask(state_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Have an action done by the `weir dev` that runs in `state_dir`.

    Raises the typed error it was refused with; UnavailableError when nobody runs there.
    """
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    with socket_path(state_dir) as path:
        connector = aiohttp.UnixConnector(path)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.post("http://weir-dev/chaos", json=request) as answer,
            ):
                body: dict[str, Any] = await answer.json()
        except (aiohttp.ClientError, OSError) as exc:
            raise UnavailableError(
                f"no weir dev runs in {state_dir}; start it, or name its --state-dir"
            ) from exc
    match answer.status:
        case 200:
            return body
        case 400:
            message = str(body["message"]).removeprefix(f"{body['field']}: ")
            raise InvalidInputError(str(body["field"]), message)
        case 409:
            raise RefusedError(str(request["action"]), str(body["message"]))
        case 503:
            raise UnavailableError(str(body["message"]))
        case _:
            raise WeirError(str(body.get("message", f"status {answer.status}")))
