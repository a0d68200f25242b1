"""The desk of the demo's payment gateway: carries out payments at simulated providers, once each.

Rules
- A payment is charged at most once per idempotency key and region: the first answer is kept and
  given again, a repetition in flight waits for the first, and the same key with another payment is
  refused. Across regions nobody but the payer prevents a second charge, which is what the ledgers
  are counted for.
- A provider's technical error (502) charges nothing. A provider's timeout (504) has `status`
  unknown, and the charge stands: as with a real provider, asking is the only way to know.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from http import HTTPStatus

from controlplane.clock import SystemClock, fresh_boot_id, seeded
from controlplane.dev.content import load_content
from controlplane.dev.ledger import Charge, Ledger
from controlplane.dev.provider import Outcome, OutcomeCounts, Provider
from controlplane.model.errors import InvalidInputError

KEY_CHARS_MAX = 128
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


def error_body(code: str, field_name: str, message: str) -> dict[str, object]:
    """Return how every refusal looks in JSON."""
    return {"error": code, "field": field_name, "message": message}


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
            return Answer(
                status=503, body=error_body("overloaded", "", "nothing was charged")
            ), False
        entry = _Entry(payment)
        self._remember(entry)
        self._in_flight += 1
        try:
            answer = await self._carry_out(payment)
        except OSError:  # the ledger cannot be written: the charge is not on record
            told = self._told(payment, "unknown")
            reason = error_body("ledger_unavailable", payment.channel, "ask before paying again")
            answer = Answer(status=500, body=told | reason)
        except BaseException:
            self._entries.pop(payment.key, None)
            entry.answer.cancel()
            raise
        finally:
            self._in_flight -= 1
        entry.answer.set_result(answer)
        if answer.status == HTTPStatus.BAD_GATEWAY:
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
                | error_body("provider_error", payment.channel, "nothing was charged"),
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
                | error_body("provider_timeout", payment.channel, "ask before paying again"),
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
