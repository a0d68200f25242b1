"""Clock offset against an SNTP server (RFC 4330 client, one packet a query).

Signatures of payments are valid for some minutes around the provider's clock; an agent whose clock
is off says by how much. Of the last `KEEP` answers the one with the shortest round trip counts: its
error is at most half of that trip. Queries are rare after the start, as public servers demand, and
an offset older than `STALE_MS` is not reported any more.

Answers are checked: from the server asked, echoing our random number, synchronised, no kiss of
death. Anything else is dropped as if lost.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from controlplane.clock import Clock, precise_ms
from controlplane.logging import get
from controlplane.model.errors import UnavailableError

TIMEOUT_S: Final = 1.0
KEEP: Final = 8
QUICK_QUERIES: Final = 4
QUICK_MS: Final = 2_000
SLOW_MS: Final = 64_000
STALE_MS: Final = 10 * 60_000
_PACKET: Final = struct.Struct("!BBbbII4s8s8s8s8s")
_EPOCH_1900_S: Final = 2_208_988_800
_MODE_CLIENT: Final = 3
_MODE_SERVER: Final = 4
_UNSYNCHRONISED: Final = 3
_VERSION: Final = 4
_MAX_STRATUM: Final = 15

log = get("sntp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer: our clock minus the server's, the round trip, and when; in ms."""

    offset_ms: float
    round_trip_ms: float
    at_ms: int


class ClockOffset:
    """Keeps the offset fresh; `offset_ms` is None until the first answer and when it is stale."""

    def __init__(self, host: str, port: int, clock: Clock, rng: random.Random) -> None:
        self._server = (host, port)
        self._clock = clock
        self._rng = rng
        self._samples: deque[Sample] = deque(maxlen=KEEP)

    @property
    def offset_ms(self) -> float | None:
        """Our clock minus the reference, in ms."""
        now_ms = self._clock.monotonic_ms()
        fresh = [s for s in self._samples if now_ms - s.at_ms <= STALE_MS]
        return min(fresh, key=lambda s: s.round_trip_ms).offset_ms if fresh else None

    async def run(self) -> None:
        """Ask for ever."""
        asked = 0
        while True:
            try:
                self._samples.append(await self.query())
            except (OSError, UnavailableError) as error:
                log.warning("clock_reference_silent", server=self._server[0], error=str(error))
            asked += 1
            pause_ms = QUICK_MS if asked < QUICK_QUERIES else SLOW_MS
            await self._clock.sleep_ms(pause_ms * self._rng.uniform(0.8, 1.2))

    async def query(self) -> Sample:
        """Ask once; UnavailableError when no valid answer came in time."""
        loop = asyncio.get_running_loop()
        nonce = self._rng.randbytes(8)
        answer: asyncio.Future[bytes] = loop.create_future()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Exchange(nonce, answer), remote_addr=self._server
        )
        try:
            sent_wall_ms, sent_ms = self._clock.wall_ms(), precise_ms()
            first = _VERSION << 3 | _MODE_CLIENT
            transport.sendto(struct.pack("!B39x8s", first, nonce))
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    packet = await answer
            except TimeoutError as error:
                raise UnavailableError(f"no valid answer in {TIMEOUT_S:g} s") from error
            # the wall clock is read once: it may be set while we wait
            took_ms = precise_ms() - sent_ms
            return self._evaluate(packet, sent_wall_ms, took_ms)
        finally:
            transport.close()

    def _evaluate(self, packet: bytes, sent_wall_ms: int, took_ms: float) -> Sample:
        fields = _PACKET.unpack_from(packet)
        received_ms, answered_ms = _unix_ms(fields[9]), _unix_ms(fields[10])
        back_ms = sent_wall_ms + took_ms
        ahead_ms = ((received_ms - sent_wall_ms) + (answered_ms - back_ms)) / 2
        return Sample(
            offset_ms=-ahead_ms,
            round_trip_ms=max(0.0, took_ms - (answered_ms - received_ms)),
            at_ms=self._clock.monotonic_ms(),
        )


class _Exchange(asyncio.DatagramProtocol):
    def __init__(self, nonce: bytes, answer: asyncio.Future[bytes]) -> None:
        self._nonce = nonce
        self._answer = answer

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        if not self._answer.done() and valid(data, self._nonce):
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


def valid(data: bytes, nonce: bytes) -> bool:
    """Tell whether `data` answers the query that carried `nonce` and may be believed."""
    if len(data) < _PACKET.size:
        return False
    fields = _PACKET.unpack_from(data)
    leap, mode, stratum = fields[0] >> 6, fields[0] & 7, fields[1]
    return bool(
        leap != _UNSYNCHRONISED
        and mode == _MODE_SERVER
        and 1 <= stratum <= _MAX_STRATUM
        and fields[8] == nonce
        and fields[10] != bytes(8)
    )


def _unix_ms(stamp: bytes) -> float:
    seconds, fraction = (int.from_bytes(half, "big") for half in (stamp[:4], stamp[4:]))
    if seconds < 1 << 31:  # the second NTP era begins in 2036
        seconds += 1 << 32
    return (seconds - _EPOCH_1900_S) * 1000.0 + fraction * 1000.0 / (1 << 32)
