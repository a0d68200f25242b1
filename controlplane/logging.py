"""Logs of every daemon: JSON in production, readable on a terminal, always on stderr.

Rules
- stdout belongs to answers (`-o json`), stderr to logs.
- One line per event: `log.info("plan_applied", epoch=7)`. Event names are snake_case and fixed,
  numbers are fields.
- Secrets never appear: values under telling keys, passwords in URLs, bearer tokens and private
  keys are replaced, in nested values and in tracebacks too. Tracebacks never show local variables.
- Lines of the standard library's `logging` (aiohttp, asyncio, grpc) take the same way, so that one
  parser reads everything.

Failure mode: a closed or full stderr loses lines and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from controlplane.clock import SystemClock, rfc3339

REDACTED: Final = "[redacted]"
MAX_DEPTH: Final = 6
"""Nested values deeper than this are rendered as text; a cyclic value must not stop the daemon."""

_SECRET_KEY: Final = re.compile(
    r"(^|_)(passwords?|passwd|passphrase|secrets?|authorization|cookies?|credentials?|signature"
    r"|api_?key|private_?key|access_?token|bearer)$",
    re.IGNORECASE,
)
_SECRET_TEXT: Final = (
    (re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"), REDACTED),
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
        ),
        REDACTED,
    ),
)
_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: str = "info", format: str = "auto", *, stream: TextIO | None = None) -> None:  # noqa: A002
    """Set up logging for this process; may be called again (reload).

    `level`: debug, info, warning or error. `format`: json, console, or auto (console on a
    terminal). `stream` defaults to stderr.
    """
    out = stream if stream is not None else sys.stderr
    readable = format == "console" or (format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _timestamp,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
    ]
    render: Processor = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if readable
        else structlog.processors.JSONRenderer(default=str, sort_keys=False)
    )
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), _logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # third parties speak up from warnings on: their debug lines would drown ours
    root.setLevel(max(_LEVELS[level], logging.WARNING))


def get(part: str) -> structlog.typing.FilteringBoundLogger:
    """Return a logger whose lines carry `part`, for example "link"."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=part)
    return logger


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace secrets in every value of an event (a structlog processor)."""
    return {key: _clean(key, value, 0) for key, value in event.items()}


def _clean(key: str, value: Any, depth: int) -> Any:
    if value is None or key.startswith("_"):
        return value  # keys with an underscore are structlog's own records
    if _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        return {str(k): _clean(str(k), v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset) and depth < MAX_DEPTH:
        return [_clean("", item, depth + 1) for item in value]
    text = str(value)
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _timestamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["time"] = rfc3339(SystemClock().wall_ms())
    return event


def _logger_name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if record is not None:
        event["part"] = record.name
    return event


class _Lines:
    """Writes whole lines; a stream that is gone never stops the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        """Write one line at once, so that lines of threads do not mix."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(message + "\n")
            self._stream.flush()

    log = debug = info = warn = warning = msg
    error = critical = exception = fatal = failure = msg
