"""Reload of the configuration on SIGHUP: the whole new file is checked first, the last good one
stays otherwise.

What may change while a daemon runs: regions, channels, policy, log. Everything else (who it is,
where it listens, its stores, its certificates' paths) needs a restart, and a file that changes it
is refused as a whole: half a change is no change. Certificates themselves are followed without a
reload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from controlplane import config
from controlplane.config import ConfigError, WeirConfig

LIVE: Final = frozenset({"regions", "channels", "policy", "log"})
"""Sections that may change without a restart."""
SECRETISH: Final = ("password", "key_file", "secret")


def differences(old: WeirConfig, new: WeirConfig) -> list[str]:
    """Return what changed, one `path: before -> after` a line; nothing that could be a secret."""
    return list(_walk("", old.model_dump(mode="json"), new.model_dump(mode="json")))


def _walk(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _walk(f"{path}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        hidden = any(word in path for word in SECRETISH)
        yield f"{path}: (changed)" if hidden else f"{path}: {old!r} -> {new!r}"


def reload(path: Path, current: WeirConfig) -> tuple[WeirConfig, list[str]]:
    """Read and check the file again; return the new configuration and what changed.

    Raises ConfigError when it is refused: the current one stays in force.
    """
    new = config.load(path)
    changed = differences(current, new)
    frozen = [line for line in changed if line.split(":")[0].split(".")[0] not in LIVE]
    if frozen:
        raise ConfigError(
            str(path), [f"{path}: {line.split(':')[0]} needs a restart" for line in frozen]
        )
    if {*new.replicas()} != {*current.replicas()}:
        raise ConfigError(str(path), [f"{path}: regions.*.replicas needs a restart"])
    return new, changed
