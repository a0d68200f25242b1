"""Logs: one JSON line an event, readable on a terminal, never a secret."""

from __future__ import annotations

import io
import json
import logging as stdlib
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from controlplane import logging
from controlplane.logging import REDACTED, redact


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Return where logs go; the process's set-up is restored afterwards."""
    root = stdlib.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the JSON lines written."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines(stream: io.StringIO) -> None:
    """Event, level, part, time and numbers; below the level nothing; a traceback in its line."""
    logging.configure("info", "json", stream=stream)
    log = logging.get("link")
    log.debug("unheard")
    log.info("plan_applied", epoch=7)
    try:
        int("boom")
    except ValueError:
        log.exception("failed")
    first, second = lines(stream)
    assert (first["event"], first["level"], first["part"]) == ("plan_applied", "info", "link")
    assert first["epoch"] == 7
    assert first["time"].endswith("Z")
    assert len(first["time"]) == len("2023-11-14T22:13:20.123Z")
    assert "invalid literal" in second["exception"]


def test_auto_is_json_without_terminal_and_readable_with(stream: io.StringIO) -> None:
    """`auto` looks at the stream."""
    logging.configure("info", "auto", stream=stream)
    logging.get("x").info("machine")
    assert lines(stream)[0]["event"] == "machine"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    logging.configure("info", "auto", stream=terminal)
    logging.get("x").info("person", epoch=3)
    assert "person" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_third_parties_take_the_same_way(stream: io.StringIO) -> None:
    """Lines of the standard library's logging come out as ours, from warnings on, redacted too."""
    logging.configure("info", "json", stream=stream)
    stdlib.getLogger("aiohttp.server").info("unheard")
    stdlib.getLogger("aiohttp.server").warning("at %s", "https://u:hunter2@host/")
    (line,) = lines(stream)
    assert line["part"] == "aiohttp.server"
    assert line["event"] == f"at https://{REDACTED}@host/"


def test_secrets_never_appear(stream: io.StringIO) -> None:
    """By key, in URLs, bearer tokens and keys; nested; in tracebacks. Fencing tokens are no secret."""
    logging.configure("info", "json", stream=stream)
    log = logging.get("x")
    key = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----"
    log.info(
        "all",
        password="hunter2",
        etcd_password="hunter2",
        api_key=42,
        settings={"redis": [{"secret": "hunter2"}, ("redis://:hunter2@h:1/0",)]},
        header="Bearer hunter2hunter2",
        text=key,
        error=ValueError("https://user:hunter2@host"),
        token=7,
    )
    try:
        local_secret = "hunter2"
        int(f"redis://u:{local_secret}@h")
    except ValueError:
        log.exception("failed")
    assert "hunter2" not in stream.getvalue()
    assert lines(stream)[0]["token"] == 7
    assert lines(stream)[0]["api_key"] == REDACTED


def test_a_dead_stream_stops_nothing() -> None:
    """A closed stderr loses lines and nothing else."""
    stream = io.StringIO()
    lines = logging._Lines(stream)
    stream.close()
    lines.msg("lost")


def test_cycles_end() -> None:
    """A value that contains itself is cut off."""
    cyclic: dict[str, Any] = {}
    cyclic["self"] = cyclic
    assert redact(None, "info", {"event": "x", "value": cyclic})["event"] == "x"


values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(event=st.dictionaries(st.text(), values))
def test_any_event_renders(event: dict[str, Any]) -> None:
    """Property: whatever is logged becomes one JSON line."""
    line = structlog.processors.JSONRenderer(default=str)(
        None, "info", redact(None, "info", {**event, "event": "x"})
    )
    assert json.loads(line)["event"] == "x"
