"""The demo's payment gateway: HTTP in front of the desk, one process per region.

Rules
- Bad input is answered 4xx with `{"error", "field", "message"}` and never reaches a provider.
- A caller that goes away does not stop a payment under way.
- Faults are set on a second, loopback-only port, so that no payment traffic can reach them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from controlplane.dev.desk import Gateway, error_body, parse_payment
from controlplane.dev.ledger import Ledger
from controlplane.dev.provider import Faults
from controlplane.model.errors import InvalidInputError

BODY_BYTES_MAX = 4096

_GATEWAY = web.AppKey("gateway", Gateway)


def _channel(request: web.Request) -> str:
    channel = request.match_info["channel"]
    gateway = request.app[_GATEWAY]
    if channel not in gateway.providers:
        known = ", ".join(sorted(gateway.providers))
        body = error_body("unknown_channel", "channel", f"{gateway.region} serves {known}")
        raise web.HTTPNotFound(text=json.dumps(body), content_type="application/json")
    return channel


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except ValueError as exc:  # also bytes that are no text
        raise InvalidInputError("body", "must be JSON") from exc


async def _pay(request: web.Request) -> web.Response:
    channel = _channel(request)
    payment = parse_payment(channel, request.headers.get("Idempotency-Key"), await _body(request))
    answer, repeated = await request.app[_GATEWAY].pay(payment)
    headers = {"Idempotent-Replayed": "true"} if repeated else {}
    return web.json_response(answer.body, status=answer.status, headers=headers)


async def _probe(request: web.Request) -> web.Response:
    answer = await request.app[_GATEWAY].probe(_channel(request))
    return web.json_response(answer.body, status=answer.status)


async def _healthz(request: web.Request) -> web.Response:
    return web.json_response({"region": request.app[_GATEWAY].region, "status": "ok"})


async def _outcomes(request: web.Request) -> web.Response:
    return web.json_response(request.app[_GATEWAY].outcomes())


async def _queues(request: web.Request) -> web.Response:
    return web.json_response({"callbacks": request.app[_GATEWAY].queue_lag_s})


async def _set_faults(request: web.Request) -> web.Response:
    body = await _body(request)
    faults = Faults.parse(body if isinstance(body, dict) else {})
    request.app[_GATEWAY].providers[_channel(request)].faults = faults
    return web.json_response({"channel": request.match_info["channel"], "errors": faults.errors})


@web.middleware
async def _plain_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
        return response
    except InvalidInputError as exc:
        conflict = "another payment" in exc.reason
        body = error_body("invalid", exc.field, exc.reason)
        return web.json_response(body, status=422 if conflict else 400)
    except web.HTTPException as exc:
        if exc.content_type == "application/json":
            raise
        body = error_body(exc.reason.lower().replace(" ", "_"), "", exc.text or exc.reason)
        return web.json_response(body, status=exc.status)


def payment_app(gateway: Gateway) -> web.Application:
    """Build what Envoy and the agents reach."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_plain_errors])
    app[_GATEWAY] = gateway
    app.router.add_post("/v1/channels/{channel}/payments", _pay)
    app.router.add_get("/v1/channels/{channel}/probe", _probe)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/outcomes", _outcomes)
    app.router.add_get("/queues", _queues)
    return app


def fault_app(gateway: Gateway) -> web.Application:
    """Build what only chaos reaches."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_plain_errors])
    app[_GATEWAY] = gateway
    app.router.add_put("/faults/{channel}", _set_faults)
    return app


async def serve(gateway: Gateway, host: str, port: int, fault_port: int) -> None:
    """Serve until SIGTERM or SIGINT; faults are set on the loopback interface only."""
    gateway.recall()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runners = [
        web.AppRunner(app, access_log=None, handle_signals=False)
        for app in (payment_app(gateway), fault_app(gateway))
    ]
    wheres = ((host, port), ("127.0.0.1", fault_port))
    for runner, (address, listen_port) in zip(runners, wheres, strict=True):
        await runner.setup()
        await web.TCPSite(runner, address, listen_port, shutdown_timeout=1.0).start()
    await stop.wait()
    for runner in runners:
        await runner.cleanup()


def main() -> None:
    """Run one gateway process."""
    parser = argparse.ArgumentParser(description="Demo payment gateway of one region")
    parser.add_argument("--region", required=True)
    parser.add_argument("--host", default="127.0.0.1", help="where payments are taken")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fault-port", type=int, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    args = parser.parse_args()
    ledger = Ledger(args.ledger)
    uvloop.run(_main(args, ledger))


async def _main(args: argparse.Namespace, ledger: Ledger) -> None:
    await serve(Gateway(args.region, ledger), args.host, args.port, args.fault_port)


if __name__ == "__main__":
    main()
