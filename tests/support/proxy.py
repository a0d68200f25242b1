"""A TCP proxy that does to a link what networks do: delay it, lose replies, go silent, cut it.

It runs in the test's own loop, on a port of its own before one real server.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

CHUNK = 65_536


@dataclass(slots=True)
class Proxy:
    """One proxy. Change `delay_ms`, `lose_replies` and `lose_requests` while it runs; what is lost
    is lost for good, as behind a dead router. With a `gate`, requests that arrive are held until it
    is set, even if their client has gone by then."""

    target_port: int
    delay_ms: float = 0
    lose_replies: bool = False
    lose_requests: bool = False
    gate: asyncio.Event | None = None
    server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> Proxy:
        """Listen on a free port of the loopback interface."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    @property
    def endpoint(self) -> str:
        """Where clients connect, host:port."""
        assert self.server
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._tasks)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        """Close everything."""
        assert self.server
        self.server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(up_writer)
            with contextlib.suppress(OSError):
                await asyncio.gather(
                    self._pump(reader, up_writer, replies=False),
                    self._pump(up_reader, writer, replies=True),
                )
            self._writers.discard(up_writer)
            up_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool
    ) -> None:
        while data := await reader.read(CHUNK):
            if self.delay_ms:
                await asyncio.sleep(self.delay_ms / 1000)
            if not replies and self.gate:
                await self.gate.wait()
            if self.lose_replies if replies else self.lose_requests:
                continue
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
