"""The Lua scripts: files in the wheel, run by SHA with the source as fallback."""

from __future__ import annotations

import hashlib
import importlib.resources
from dataclasses import dataclass
from functools import cache
from typing import Final

NAMES: Final = (
    "acquire", "cancel", "force", "inspect", "install", "open", "prepare", "raise", "release",
    "renew", "status", "watch",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Script:
    """One script with what they all share in front, and its SHA-1 as EVALSHA wants it."""

    name: str
    source: str
    sha: str


def script_of(name: str, source: str) -> Script:
    """Name a source; the SHA is Redis's address for it, not a protection."""
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@cache
def load() -> dict[str, Script]:
    """Read every script of the package."""
    folder = importlib.resources.files(__package__) / "lua"
    common = (folder / "common.lua").read_text("utf-8")
    return {
        name: script_of(name, common + (folder / f"{name}.lua").read_text("utf-8"))
        for name in NAMES
    }
