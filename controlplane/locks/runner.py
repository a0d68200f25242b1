"""Scripts over a link: by SHA, with the source as fallback, and errors in our words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from controlplane.locks.codec import Keys
from controlplane.locks.scripts import Script, load
from controlplane.model.errors import UnavailableError, WeirError


class Link(Protocol):
    """A connection to the primary (controlplane.adapters.redis.RedisLink)."""

    def call(self, *args: str | bytes | int) -> Any:
        """Send a command; awaitable for the reply."""
        ...

    def post(
        self,
        args: Sequence[str | bytes | int],
        otherwise: Sequence[str | bytes | int] = (),
        lost: Callable[[], None] = ...,
    ) -> None:
        """Send a command for whose outcome nobody waits; `otherwise` if its script is not known,
        `lost` is called when what became of it is not known."""
        ...

    def on_connect(self, handler: Callable[[], None]) -> None:
        """Call `handler` on every new connection, before anybody else can use it."""
        ...

    def leave(self, why: str) -> None:
        """Look for another server."""
        ...

    def subscribe(self, channel: bytes, handler: Callable[[bytes], None]) -> None:
        """Hear a channel."""
        ...

    def unsubscribe(self, channel: bytes) -> None:
        """Stop hearing it."""
        ...

    async def run(self) -> None:
        """Keep connected."""
        ...


class Scripts:
    """The scripts of one prefix on one link. `sources` lets tests run altered ones."""

    def __init__(
        self, link: Link, prefix: str, sources: Mapping[str, Script] | None = None
    ) -> None:
        self.link = link
        self.keys = Keys(prefix)
        self._scripts = sources or load()
        self._fence = (self.keys.fence,)

    async def run(self, script: str, name: str | None, *argv: str | int) -> Any:
        """Run a script on one lock, or on the fence alone, and return its reply.

        Raises UnavailableError when Redis does not answer or refuses to work (no memory, too few
        replicas, still loading, read-only).
        """
        keys = self.keys.of(name) if name is not None else self._fence
        found = self._scripts[script]
        try:
            return await self.link.call("EVALSHA", found.sha, len(keys), *keys, *argv)
        except UnavailableError:
            raise
        except WeirError as error:
            if not str(error).startswith("NOSCRIPT"):
                raise UnavailableError(f"redis: {error}") from error
        try:
            return await self.link.call("EVAL", found.source, len(keys), *keys, *argv)
        except UnavailableError:
            raise
        except WeirError as error:
            raise UnavailableError(f"redis: {error}") from error

    def post(self, script: str, name: str, *argv: str | int, lost: Callable[[], None]) -> None:
        """Run a script on one lock without waiting for its outcome; `lost` when that is unknown."""
        keys, found = self.keys.of(name), self._scripts[script]
        tail = (len(keys), *keys, *argv)
        self.link.post(("EVALSHA", found.sha, *tail), ("EVAL", found.source, *tail), lost)
