"""Where the Redis primary is: one fixed address, or what a quorum of Sentinels says.

Sentinels are asked in turn, each with a short deadline, and only an answer to
`SENTINEL GET-MASTER-ADDR-BY-NAME` counts; the link itself checks the role of what it then meets, so
a Sentinel that is behind costs one more attempt and never a wrong grant. With `tls` they are met
over TLS as Redis is, and with `sentinel_password_file` they are told who asks.

Certificates and passwords are read anew for every connection: a rotation needs no restart.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import hiredis

from controlplane.model.errors import InvalidInputError, UnavailableError

SENTINEL_TIMEOUT_MS: Final = 300
_DEFAULT_PORT: Final = 6379
READ: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Address and credentials. `sentinels` (with `service`) wins over `host` and `port`.

    With `cert_file` and `key_file` we show a certificate of our own (Redis asks for one unless it
    runs with `tls-auth-clients no`).
    """

    host: str = "127.0.0.1"
    port: int = _DEFAULT_PORT
    sentinels: tuple[tuple[str, int], ...] = ()
    service: str = "weir"
    username: str = "default"
    password_file: Path | None = None
    sentinel_username: str = "default"
    sentinel_password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        password_file: Path | None = None,
        sentinel_password_file: Path | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> RedisAddress:
        """Parse redis[s]://host:port or redis[s]+sentinel://host:port,host:port/service; with an s
        over TLS."""
        parts = urlsplit(url)
        if parts.password:
            raise InvalidInputError("locks.redis", "no password in the URL: use a password file")
        server, _, sentinel = parts.scheme.partition("+")
        if server not in {"redis", "rediss"} or sentinel not in {"", "sentinel"}:
            raise InvalidInputError(
                "locks.redis", f"scheme {parts.scheme!r} is not redis[s] or redis[s]+sentinel"
            )
        address = cls(
            username=parts.username or "default",
            password_file=password_file,
            sentinel_password_file=sentinel_password_file,
            tls=server == "rediss",
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )
        if not sentinel:
            host, port = parts.hostname or "127.0.0.1", parts.port or _DEFAULT_PORT
            return replace(address, host=host, port=port)
        netloc = parts.netloc.rpartition("@")[2]
        hosts = tuple(_host_port(text, 26_379) for text in netloc.split(","))
        return replace(address, sentinels=hosts, service=parts.path.strip("/") or "weir")

    def __str__(self) -> str:
        if self.sentinels:
            hosts = ",".join(f"{host}:{port}" for host, port in self.sentinels)
            return f"{self.service} by sentinels {hosts}"
        return f"{self.host}:{self.port}"

    def ssl(self) -> ssl.SSLContext | None:
        """Return the TLS context, None for plain TCP; UnavailableError names the files at fault."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file)
        except OSError as error:  # SSLError is one
            files = ", ".join(str(f) for f in (self.ca_file, self.cert_file, self.key_file) if f)
            raise UnavailableError(f"redis {self}: {files}: {error}") from error
        return context

    def credentials(self) -> tuple[str, ...]:
        """Arguments of HELLO that authenticate, read from the password file."""
        return _auth(self.username, self.password_file)

    async def primary(self) -> tuple[str, int]:
        """Return host and port of the primary; UnavailableError: what the last Sentinel said."""
        if not self.sentinels:
            return self.host, self.port
        problem = ""
        for host, port in self.sentinels:
            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT_MS / 1000):
                    return await self._ask(host, port)
            except (OSError, TimeoutError, hiredis.HiredisError, UnavailableError) as error:
                problem = f"{host}:{port}: {error or type(error).__name__}"
        raise self.unknown(problem)

    async def _ask(self, host: str, port: int) -> tuple[str, int]:
        reader, writer = await asyncio.open_connection(host, port, ssl=self.ssl())
        try:
            question = Question(self)
            writer.write(question.sent)
            while (found := question.answered(await reader.read(READ))) is None:
                pass
            return found
        finally:
            writer.close()

    def unknown(self, problem: str) -> UnavailableError:
        """Return the error of an address that no Sentinel told."""
        return UnavailableError(f"no sentinel knows a primary of {self.service!r} ({problem})")


class Question:
    """What one Sentinel is asked, whatever carries it: send `sent`, hand over what comes back."""

    def __init__(self, address: RedisAddress) -> None:
        command: Any = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.service)
        auth: Any = _auth(address.sentinel_username, address.sentinel_password_file)
        self.sent = (hiredis.pack_command(auth) if auth else b"") + hiredis.pack_command(command)
        self._awaited = 2 if auth else 1
        self._parser = hiredis.Reader(encoding="utf-8")

    def answered(self, data: bytes) -> tuple[str, int] | None:
        """Return host and port, None while more must come; UnavailableError when it names none."""
        if not data:
            raise UnavailableError("the sentinel closed the connection")
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            self._awaited -= 1
            if isinstance(reply, hiredis.ReplyError):
                raise UnavailableError(str(reply))
            if not self._awaited:
                if not isinstance(reply, list):
                    raise UnavailableError("the sentinel does not watch it")
                return str(reply[0]), int(reply[1])
        return None


def _auth(username: str, password_file: Path | None) -> tuple[str, ...]:
    if password_file is None:
        return ()
    return ("AUTH", username, password_file.read_text(encoding="utf-8").strip())


def _host_port(text: str, default: int) -> tuple[str, int]:
    host, _, port = text.partition(":")
    return host, int(port or default)
