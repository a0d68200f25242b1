"""The demo's payment gateway: one process per region, in front of simulated providers.

Rules
- A payment is charged at most once per idempotency key and region: the first answer is kept and
  given again, a repetition in flight waits for the first, and the same key with another payment is
  refused. Across regions nobody but the payer prevents a second charge, which is what the ledgers
  are counted for.
- Bad input is answered 4xx with `{"error", "field", "message"}` and never reaches a provider.
- A provider's technical error (502) charges nothing. A provider's timeout (504) has `status`
  unknown, and the charge stands: as with a real provider, asking is the only way to know.
- A caller that goes away does not stop a payment under way.
- Faults are set on a second, loopback-only port, so that no payment traffic can reach them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from controlplane.clock import SystemClock, fresh_boot_id, seeded
from controlplane.dev.content import load_content
from controlplane.dev.ledger import Charge, Ledger
from controlplane.dev.provider import Faults, Outcome, OutcomeCounts, Provider
from controlplane.model.errors import InvalidInputError

KEY_CHARS_MAX = 128
BODY_BYTES_MAX = 4096
AMOUNT_MAX = 10**12
"""Largest payment in minor units: beyond it a typing error is likelier than a payment."""
REMEMBERED_KEYS_MAX = 200_000
"""Answers kept for repeated keys; the oldest are forgotten first."""
IN_FLIGHT_MAX = 2000
"""Payments under way at once; more are refused before anything is charged."""
CALLBACK_LAG_S = 0.4
"""Usual age of the oldest callback that waits."""
_CURRENCY_LETTERS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One payment asked for. `amount` is in minor units."""

    channel: str
    key: str
    amount: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the gateway says, kept for repetitions."""

    status: int
    body: dict[str, object]


@dataclass(slots=True)
class _Entry:
    """A key: what was asked, and the answer once it is there."""

    payment: Payment
    answer: asyncio.Future[Answer] = field(default_factory=asyncio.Future)


def parse_payment(channel: str, key: str | None, body: object) -> Payment:
    """Check one request; InvalidInputError names the field."""
    if key is None or not key.strip():
        raise InvalidInputError("Idempotency-Key", "header is required: one unique key a payment")
    if len(key) > KEY_CHARS_MAX or not key.isprintable():
        raise InvalidInputError(
            "Idempotency-Key", f"must be 1 to {KEY_CHARS_MAX} printable characters"
        )
    if not isinstance(body, dict):
        raise InvalidInputError("body", 'must be a JSON object like {"amount": 100, ...}')
    amount = body.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int):
        raise InvalidInputError("amount", "must be a whole number of minor units (1 yuan is 100)")
    if not 0 < amount <= AMOUNT_MAX:
        raise InvalidInputError("amount", f"must be 1 to {AMOUNT_MAX} minor units")
    currency = body.get("currency")
    if (
        not isinstance(currency, str)
        or len(currency) != _CURRENCY_LETTERS
        or not (currency.isascii() and currency.isalpha() and currency.isupper())
    ):
        raise InvalidInputError("currency", "must be three capital letters like CNY")
    return Payment(channel=channel, key=key, amount=amount, currency=currency)


class Gateway:
    """The gateway of one region."""

    def __init__(self, region: str, ledger: Ledger, *, seed: int | None = None) -> None:
        content = load_content()
        rng = seeded(seed)
        self.region = region
        self.boot = fresh_boot_id()
        self.queue_lag_s = CALLBACK_LAG_S
        self.providers = {
            channel.name: Provider(channel, content.region(region), rng)
            for channel in content.channels
            if region in channel.regions
        }
        self.counts = {name: OutcomeCounts() for name in self.providers}
        self._clock = SystemClock()
        self._ledger = ledger
        self._in_flight = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def recall(self) -> None:
        """Take the answers of an earlier life from the ledger; call inside the loop."""
        for charge in self._ledger.charges():
            payment = Payment(
                channel=charge.channel,
                key=charge.key,
                amount=charge.amount,
                currency=charge.currency,
            )
            entry = _Entry(payment)
            entry.answer.set_result(Answer(status=200, body=self._receipt(charge)))
            self._remember(entry)

    async def pay(self, payment: Payment) -> tuple[Answer, bool]:
        """Carry out a payment once; the flag tells whether the answer is a repeated one."""
        known = self._entries.get(payment.key)
        if known is not None:
            if known.payment != payment:
                raise InvalidInputError(
                    "Idempotency-Key", "was used for another payment; use a fresh key"
                )
            return await asyncio.shield(known.answer), True
        if self._in_flight >= IN_FLIGHT_MAX:
            return Answer(status=503, body=_error("overloaded", "", "nothing was charged")), False
        entry = _Entry(payment)
        self._remember(entry)
        self._in_flight += 1
        try:
            answer = await self._carry_out(payment)
        except BaseException:
            self._entries.pop(payment.key, None)
            entry.answer.cancel()
            raise
        finally:
            self._in_flight -= 1
        entry.answer.set_result(answer)
        if answer.status == web.HTTPBadGateway.status_code:
            self._entries.pop(payment.key, None)  # nothing was charged: the key may be used again
        return answer, False

    async def _carry_out(self, payment: Payment) -> Answer:
        call = self.providers[payment.channel].call()
        await self._clock.sleep_ms(call.latency_ms)
        self.counts[payment.channel].add(call)
        if call.outcome is Outcome.ERROR:
            return Answer(
                status=502,
                body=self._told(payment, "failed")
                | _error("provider_error", payment.channel, "nothing was charged"),
            )
        if call.outcome is Outcome.DECLINED:
            return Answer(status=200, body=self._told(payment, "declined"))
        charge = Charge(
            key=payment.key,
            payment_id=f"p-{uuid.uuid4()}",
            region=self.region,
            channel=payment.channel,
            amount=payment.amount,
            currency=payment.currency,
            at_ms=self._clock.wall_ms(),
        )
        self._ledger.append(charge)
        if call.outcome is Outcome.TIMEOUT:
            return Answer(
                status=504,
                body=self._told(payment, "unknown")
                | _error("provider_timeout", payment.channel, "ask before paying again"),
            )
        return Answer(status=200, body=self._receipt(charge))

    def _told(self, payment: Payment, status: str) -> dict[str, object]:
        return {
            "region": self.region,
            "channel": payment.channel,
            "payment_id": f"p-{uuid.uuid4()}",
            "status": status,
        }

    def _receipt(self, charge: Charge) -> dict[str, object]:
        return {
            "region": self.region,
            "channel": charge.channel,
            "payment_id": charge.payment_id,
            "status": "succeeded",
            "amount": charge.amount,
            "currency": charge.currency,
        }

    def _remember(self, entry: _Entry) -> None:
        self._entries[entry.payment.key] = entry
        while len(self._entries) > REMEMBERED_KEYS_MAX:
            self._entries.popitem(last=False)

    async def probe(self, channel: str) -> Answer:
        """Ask the provider without charging."""
        call = self.providers[channel].call()
        await self._clock.sleep_ms(call.latency_ms)
        body: dict[str, object] = {"region": self.region, "channel": channel}
        body["status"] = str(call.outcome)
        healthy = call.outcome in {Outcome.OK, Outcome.DECLINED}
        return Answer(status=200 if healthy else 502, body=body)

    def outcomes(self) -> dict[str, object]:
        """Cumulative counts per channel since this boot."""
        channels = {name: counts.as_json() for name, counts in self.counts.items()}
        return {"boot": self.boot, "channels": channels}


def _error(code: str, field_name: str, message: str) -> dict[str, object]:
    return {"error": code, "field": field_name, "message": message}


_GATEWAY = web.AppKey("gateway", Gateway)


def _channel(request: web.Request) -> str:
    channel = request.match_info["channel"]
    gateway = request.app[_GATEWAY]
    if channel not in gateway.providers:
        known = ", ".join(sorted(gateway.providers))
        body = _error("unknown_channel", "channel", f"{gateway.region} serves {known}")
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
        body = _error("invalid", exc.field, exc.reason)
        return web.json_response(body, status=422 if conflict else 400)
    except web.HTTPException as exc:
        if exc.content_type == "application/json":
            raise
        body = _error(exc.reason.lower().replace(" ", "_"), "", exc.text or exc.reason)
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
