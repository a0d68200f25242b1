"""Where the Redis primary is: one fixed address, or what a quorum of Sentinels says.

Sentinels are asked in turn, each with a short deadline, and only an answer to
`SENTINEL GET-MASTER-ADDR-BY-NAME` counts; the link itself checks the role of what it then meets, so
a Sentinel that is behind costs one more attempt and never a wrong grant.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import hiredis

from controlplane.model.errors import InvalidInputError, UnavailableError

SENTINEL_TIMEOUT_MS: Final = 300
_DEFAULT_PORT: Final = 6379
_READ: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Address and credentials. `sentinels` (with `service`) wins over `host` and `port`.

    `password_file` is read at every connection, so a rotated secret needs no restart.
    """

    host: str = "127.0.0.1"
    port: int = _DEFAULT_PORT
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = "weir"
    username: str = "default"
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None

    @classmethod
    def from_url(
        cls, url: str, *, password_file: Path | None = None, ca_file: Path | None = None
    ) -> RedisAddress:
        """Parse redis://host:port, rediss://host:port or
        redis+sentinel://host:port,host:port/service."""
        parts = urlsplit(url)
        if parts.password:
            raise InvalidInputError("locks.redis", "no password in the URL: use a password file")
        common = {"username": parts.username or "default", "password_file": password_file}
        if parts.scheme == "redis+sentinel":
            netloc = parts.netloc.rpartition("@")[2]
            hosts = tuple(_host_port(text, 26_379) for text in netloc.split(","))
            service = parts.path.strip("/") or "weir"
            return cls(sentinels=hosts, service=service, **common)  # type: ignore[arg-type]
        if parts.scheme not in {"redis", "rediss"}:
            raise InvalidInputError("locks.redis", f"scheme {parts.scheme!r} is not redis[s]")
        host, port = parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORT
        tls = parts.scheme == "rediss"
        return cls(host=host, port=port, tls=tls, ca_file=ca_file, **common)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.sentinels:
            hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"{self.service} by sentinels {hosts}"
        return f"{self.host}:{self.port}"

    def ssl(self) -> ssl.SSLContext | None:
        """TLS context, or None for plain TCP."""
        return ssl.create_default_context(cafile=self.ca_file) if self.tls else None

    def credentials(self) -> tuple[str, ...]:
        """Arguments of HELLO that authenticate, read from the password file."""
        if self.password_file is None:
            return ()
        password = self.password_file.read_text(encoding="utf-8").strip()
        return ("AUTH", self.username, password)

    async def primary(self) -> tuple[str, int]:
        """Return host and port of the primary; UnavailableError when no Sentinel knows one."""
        if not self.sentinels:
            return self.host, self.port
        for host, port in self.sentinels:
            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT_MS / 1000):
                    found = await _ask(host, port, self.service)
            except (OSError, TimeoutError, hiredis.HiredisError):
                continue
            if found:
                return found
        raise UnavailableError(f"no sentinel knows a primary of {self.service!r}")


def _host_port(text: str, default: int) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port or default)


async def _ask(host: str, port: int, service: str) -> tuple[str, int] | None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        command: Any = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        writer.write(hiredis.pack_command(command))
        parser = hiredis.Reader(encoding="utf-8")
        while (reply := parser.gets()) is False:
            data = await reader.read(_READ)
            if not data:
                return None
            parser.feed(data)
        if not isinstance(reply, list):
            return None
        return str(reply[0]), int(reply[1])
    finally:
        writer.close()
