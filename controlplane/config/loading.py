"""Reading the file: what is wrong with it, in which line, and what was probably meant."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from controlplane.config.sections import PolicySection
from controlplane.config.whole import CLI_ENV, ENV_PREFIX, WeirConfig
from controlplane.model.errors import InvalidInputError
from controlplane.model.topology import Policy

# Kubernetes puts these into every pod for a Service named weir or weir-…; they are not ours
_SERVICE_LINK: Final = re.compile(
    r"[A-Z0-9_]+(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)"
)


class ConfigError(InvalidInputError):
    """The configuration is refused. The message has file, line, key and remedy, one line per
    fault."""

    def __init__(self, source: str, faults: list[str]) -> None:
        super().__init__(source, "\n".join(faults))
        self.faults = faults

    def __str__(self) -> str:
        """One line per fault."""
        return "\n".join(self.faults)


def load(path: Path) -> WeirConfig:
    """Read, check and return the configuration; ConfigError names file, line, key and remedy."""
    try:
        text = path.read_text()
    except OSError as exc:
        raise ConfigError(
            str(path), [f"{path}: {exc.strerror}; pass --config FILE or set WEIR_CONFIG"]
        ) from exc
    return parse(text, str(path))


def parse(text: str, source: str = "<config>") -> WeirConfig:
    """Check a configuration given as text."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(exc, "problem", None) or "not valid YAML"
        raise ConfigError(source, [f"{source}:{line}: {problem}"]) from exc
    if not isinstance(data, dict):
        raise ConfigError(source, [f"{source}:1: must be a mapping with sections such as regions"])
    _check_environment(source)
    try:
        return WeirConfig(**data)
    except ValidationError as exc:
        faults = [_fault(source, root, error) for error in exc.errors()]
        raise ConfigError(source, faults) from exc
    except ValueError as exc:  # pydantic-settings: an environment value that is no JSON
        raise ConfigError(source, [f"environment: {exc}"]) from exc


def _check_environment(source: str) -> None:
    sections = WeirConfig.model_fields
    for key in os.environ:
        upper = key.upper()
        if not upper.startswith(ENV_PREFIX) or upper in CLI_ENV:
            continue
        if "__" not in upper and _SERVICE_LINK.fullmatch(upper):
            continue
        section = upper.removeprefix(ENV_PREFIX).split("__")[0].lower()
        if section not in sections:
            near = difflib.get_close_matches(section, sections, 1)
            hint = f"; did you mean {ENV_PREFIX}{near[0].upper()}?" if near else ""
            raise ConfigError(source, [f"environment: {key}: unknown section{hint}"])


def _fault(source: str, root: yaml.Node | None, error: Any) -> str:
    loc = tuple(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    key = ".".join(loc)
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(loc[-1], _known_keys(loc[:-1]), 1)
        message = "unknown key" + (f"; did you mean {near[0]}?" if near else "")
    elif error["type"] == "missing":
        message = "is required"
    elif "pattern" in error["type"]:
        message = f"{error['input']!r} is not valid here (expected {error['ctx']['pattern']})"
    if not loc:
        head = message.split(":", 1)[0]
        return f"{source}:{_line(root, tuple(head.split('.')))}: {message}"
    return f"{source}:{_line(root, loc)}: {key}: {message}"


def _known_keys(loc: tuple[str, ...]) -> list[str]:
    model: Any = WeirConfig
    for part in loc:
        fields = getattr(model, "model_fields", None)
        if fields is None or part not in fields:
            continue  # the key of a mapping such as regions.east
        model = _model_of(fields[part].annotation)
    if model is PolicySection:
        return list(Policy.__dataclass_fields__)
    return list(getattr(model, "model_fields", {}))


def _model_of(annotation: Any) -> Any:
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
        inner = [a for a in getattr(candidate, "__args__", ()) if isinstance(a, type)]
        for item in inner:
            if issubclass(item, BaseModel):
                return item
    return None


def _line(node: yaml.Node | None, loc: tuple[str, ...]) -> int:
    """Return the line of the deepest part of `loc` that stands in the file."""
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit():
            if int(part) >= len(node.value):
                break
            node = node.value[int(part)]
            line = node.start_mark.line + 1
        else:
            break
    return line
