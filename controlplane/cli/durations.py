"""Durations on the command line: `500ms`, `2s`, `30m`, `1h`."""

from __future__ import annotations

import re
from typing import Final

from controlplane.model.errors import InvalidInputError

_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_FORM: Final = re.compile(r"(\d{1,9})(ms|s|m|h)")


def parse_ms(text: str, option: str) -> int:
    """Return a duration in ms; InvalidInputError names the option."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise InvalidInputError(option, f"{text!r} is no duration; write 500ms, 2s, 30m or 1h")
    return int(match[1]) * _UNITS_MS[match[2]]


def parse_s(text: str, option: str) -> int:
    """Return a duration in whole seconds, at least 1."""
    ms = parse_ms(text, option)
    if ms < _UNITS_MS["s"] or ms % _UNITS_MS["s"]:
        raise InvalidInputError(option, f"{text!r} must be whole seconds, at least 1s")
    return ms // _UNITS_MS["s"]
