"""A payer that asks a DNS balancer for every payment: the best case for DNS, which has caches.

python -m tests.fabric.dns_payer DNS_HOST DNS_PORT NAME PORT RATE FILE
"""

from __future__ import annotations

import asyncio
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from controlplane.clock import SystemClock, seeded
from controlplane.dev.content import DemoChannel
from controlplane.dev.payer import MARGIN_S, classify
from tests.fabric.payer import LabPayer

LOOKUP_S = 1.0
_A, _IN = 1, 1
_HEADER = struct.Struct(">HHHHHH")


def question(number: int, name: str) -> bytes:
    """Return a query for an A record."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return _HEADER.pack(number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", _A, _IN)


def first_address(answer: bytes) -> str:
    """Return the first A record of an answer; empty when there is none."""
    _, _, questions, answers, _, _ = _HEADER.unpack_from(answer)
    at = _HEADER.size
    for _ in range(questions):
        at = answer.index(b"\0", at) + 5
    for _ in range(answers):
        at = at + 2 if answer[at] & 0xC0 else answer.index(b"\0", at) + 1
        kind, _, _, length = struct.unpack_from(">HHIH", answer, at)
        at += 10
        if kind == _A:
            return ".".join(str(part) for part in answer[at : at + 4])
        at += length
    return ""


class _Lookups(asyncio.DatagramProtocol):
    """Answers by number."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[str]] = {}

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Hand an answer to who asked."""
        future = self.waiting.pop(int.from_bytes(data[:2], "big"), None)
        if future is not None and not future.done():
            future.set_result(first_address(data))


class DnsPayer(LabPayer):
    """Looks up, connects, pays."""

    lookups: _Lookups
    transport: asyncio.DatagramTransport
    name: str
    port: int
    _number = 0

    async def _address(self) -> str:
        self._number = (self._number + 1) % 0xFFFF
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.lookups.waiting[self._number] = future
        self.transport.sendto(question(self._number, self.name))
        try:
            async with asyncio.timeout(LOOKUP_S):
                return await future
        except TimeoutError:
            return ""

    async def _send(
        self, session: aiohttp.ClientSession, channel: DemoChannel, key: str
    ) -> tuple[str, str, str]:
        address = await self._address()
        if not address:
            return "failed", "", "no address"
        url = f"http://{address}:{self.port}/v1/channels/{channel.name}/payments"
        body = {"amount": self._rng.randrange(100, 100_000), "currency": "CNY"}
        timeout = aiohttp.ClientTimeout(total=channel.timeout_ms / 1000 + MARGIN_S)
        headers = {"Idempotency-Key": key}
        try:
            async with session.post(url, json=body, headers=headers, timeout=timeout) as answer:
                return classify(answer.status, answer.headers, await answer.read())
        except aiohttp.ClientConnectorError as error:
            return "failed", "", f"never sent: {type(error).__name__}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return "unknown", "", type(error).__name__


async def main(host: str, port: int, name: str, target: int, rate: float, path: Path) -> None:
    """Pay until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    transport, lookups = await loop.create_datagram_endpoint(_Lookups, remote_addr=(host, port))
    with path.open("w", buffering=1) as journal:
        payer = DnsPayer("", rate, journal, clock=SystemClock(), rng=seeded())
        payer.everywhere()
        payer.lookups, payer.transport, payer.name, payer.port = lookups, transport, name, target
        await payer.run(stop)
    transport.close()


if __name__ == "__main__":
    uvloop.run(
        main(
            sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]),
            Path(sys.argv[6]),
        )
    )  # fmt: skip
