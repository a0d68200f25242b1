"""Values to JSON and back, exactly.

The decision's state and log are made of frozen dataclasses, tuples, mappings, enums and numbers.
They are written as compact JSON with sorted keys, so equal values give equal bytes: replay and
takeover compare bytes.

Rules
- A field that holds its default is left out; an unknown field is ignored (an older log stays
  readable).
- Floats travel by `repr`, which round-trips exactly; NaN and infinity are refused.
- Mapping keys are strings or integers; integers become strings in JSON and come back by the type
  hint.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from controlplane.model.errors import InvalidInputError

T = TypeVar("T")


def dumps(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, no spaces, ASCII."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    ).encode()


def to_json(value: Any) -> Any:
    """Turn a value of the model into JSON types; defaults are left out."""
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, Enum) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        out = {}
        for name, default in _defaults(type(value)):
            item = getattr(value, name)
            if item is default or (default is not _REQUIRED and item == default):
                continue
            out[name] = to_json(item)
        return out
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [to_json(item) for item in value]
    raise InvalidInputError(type(value).__name__, "cannot be written; use a value of the model")


def from_json(hint: Any, data: Any) -> Any:
    """Build a value of type `hint` from JSON types; InvalidInputError when it does not fit."""
    try:
        return _build(hint, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError("record", f"does not fit {hint}: {error}") from error


def decode(cls: type[T], data: bytes) -> T:
    """Read canonical JSON as a dataclass."""
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise InvalidInputError("record", f"is no JSON: {error}") from error
    return typing.cast("T", from_json(cls, parsed))


_REQUIRED: Any = object()


@cache
def _defaults(cls: type) -> tuple[tuple[str, Any], ...]:
    out = []
    for field in dataclasses.fields(cls):
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif default is dataclasses.MISSING:
            default = _REQUIRED
        out.append((field.name, default))
    return tuple(out)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(hint: Any, data: Any) -> Any:  # noqa: PLR0911 - one return a kind of hint
    hint = getattr(hint, "__supertype__", hint)
    if hint is Any:
        return data
    origin = typing.get_origin(hint)
    if origin is None:
        return _build_plain(hint, data)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if data is None else _build(_other_than_none(arguments), data)
    if issubclass(origin, tuple):
        if len(arguments) == 2 and arguments[1] is Ellipsis:  # noqa: PLR2004 - tuple[X, ...]
            return tuple(_build(arguments[0], item) for item in data)
        return tuple(_build(kind, item) for kind, item in zip(arguments, data, strict=True))
    if origin is Sequence:
        return tuple(_build(arguments[0], item) for item in data)
    if issubclass(origin, Mapping):
        return {_key(arguments[0], key): _build(arguments[1], item) for key, item in data.items()}
    raise TypeError(f"no rule for {hint}")


def _build_plain(hint: Any, data: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = _hints(hint)
        return hint(**{key: _build(hints[key], item) for key, item in data.items() if key in hints})
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(data)
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        kinds = _hints(hint)
        return hint(*(_build(kinds[n], v) for n, v in zip(hint._fields, data, strict=True)))
    if not isinstance(data, hint):
        raise TypeError(f"expected {hint}, found {data!r}")
    return data


def _other_than_none(arguments: tuple[Any, ...]) -> Any:
    rest = [a for a in arguments if a is not type(None)]
    if len(rest) != 1:
        # `int | str`: JSON keeps the two apart by itself
        return Any
    return rest[0]


def _key(hint: Any, key: str) -> Any:
    return int(key) if getattr(hint, "__supertype__", hint) is int else key
