"""A guard for data in Redis: the token is checked and the commands run in one script.

The guarded data and its fence are lost together when that Redis loses data, so a guard there
protects the data it stands beside and nothing else. Money belongs behind a SQL guard.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Sequence
from typing import Any, Final, Protocol

from controlplane.locks.errors import StaleTokenError
from controlplane.locks.metrics import LockMetrics, NoMetrics
from controlplane.locks.token import Token

COMMANDS_MAX: Final = 100
"""Commands in one step: Redis does nothing else meanwhile."""


class RedisClient(Protocol):
    """What is needed of a redis-py client (the synchronous one)."""

    def execute_command(self, *args: Any) -> Any:
        """Send one command."""
        ...


class RedisGuard:
    """Tokens beside the data, in `{resource}:fence` style keys below `prefix`."""

    def __init__(
        self,
        client: RedisClient,
        *,
        prefix: str = "weir-guard",
        metrics: LockMetrics | None = None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._metrics = metrics or NoMetrics()
        folder = importlib.resources.files("controlplane.locks") / "lua"
        self._source = (folder / "guard.lua").read_text("utf-8")
        self._sha = hashlib.sha1(self._source.encode(), usedforsecurity=False).hexdigest()

    def run(
        self,
        resource: str,
        token: int,
        commands: Sequence[Sequence[str | bytes | int | float]],
        *,
        keys: Sequence[str] = (),
    ) -> list[Any]:
        """Seal `resource` at `token` and run `commands` at once; return their replies.

        Begin with the read: `run(r, t, [("GET", k)])`, then `run(r, t, [("SET", k, v)])`; after the
        first nobody with a lower token can write. `keys` names the keys used, for clusters.
        Raises StaleTokenError when a higher token was seen; nothing has run then.
        """
        if len(commands) > COMMANDS_MAX:
            raise ValueError(f"at most {COMMANDS_MAX} commands in one step")
        pair = Token.of(token)
        argv: list[Any] = [pair.epoch, pair.counter, len(commands)]
        for command in commands:
            argv += [len(command), *command]
        all_keys = [f"{self._prefix}:{resource}", *keys]
        reply = self._call(len(all_keys), *all_keys, *argv)
        if reply[0] in {b"stale", "stale"}:
            self._metrics.lock_token_rejected()
            raise StaleTokenError(resource, token)
        return list(reply[1:])

    def seal(self, resource: str, token: int) -> None:
        """Seal without running anything."""
        self.run(resource, token, [])

    def _call(self, *args: Any) -> Any:
        try:
            return self._client.execute_command("EVALSHA", self._sha, *args)
        except Exception as error:
            if "NOSCRIPT" not in f"{type(error).__name__} {error}".upper():
                raise
        return self._client.execute_command("EVAL", self._source, *args)
