"""How `weir chaos` reaches a running `weir dev`: JSON over the socket in the state directory.

Standard library only: a command that has to be typed in the middle of an outage should not load the
whole topology first.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import socket
from http import HTTPStatus
from pathlib import Path
from typing import Any

from controlplane.dev.statedir import LOCK, socket_path
from controlplane.model.errors import (
    InvalidInputError,
    RefusedError,
    UnavailableError,
    WeirError,
)

ANSWER_S = 90.0
"""How long an action may take; a region that starts again is waited for."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("weir-dev", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(self._path)


def ask(state_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Have an action done by the `weir dev` that runs in `state_dir`.

    Raises the typed error it was refused with; UnavailableError when nobody runs there.
    """
    with socket_path(state_dir) as path:
        connection = _UnixConnection(path)
        try:
            connection.request(
                "POST", "/chaos", json.dumps(request), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            body: dict[str, Any] = json.loads(answer.read())
        except TimeoutError as exc:
            raise UnavailableError(f"weir dev has not answered within {ANSWER_S:g} s") from exc
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise UnavailableError(_why_silent(state_dir)) from exc
        finally:
            connection.close()
    if answer.status != HTTPStatus.OK:
        raise _refusal(answer.status, str(request.get("action")), body)
    return body


def _refusal(status: int, action: str, body: dict[str, Any]) -> WeirError:
    message, field = str(body.get("message", f"status {status}")), str(body.get("field", ""))
    if status == HTTPStatus.BAD_REQUEST:
        return InvalidInputError(field, message.removeprefix(f"{field}: "))
    if status == HTTPStatus.CONFLICT:
        return RefusedError(action, message)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return UnavailableError(message)
    return WeirError(message)


def _why_silent(state_dir: Path) -> str:
    try:
        with (state_dir / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"weir dev in {state_dir} is starting or stopping; try again in a moment"
    except OSError:
        pass
    return f"no weir dev runs in {state_dir}; start it, or name its --state-dir"
