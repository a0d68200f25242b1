"""Exit codes of the contract, and the error that carries one."""

from __future__ import annotations

from controlplane.model.errors import WeirError

OK, FAILED, USAGE, REFUSED, UNREACHABLE, DEADLINE = range(6)
CLOSED_PIPE = 141
"""As a process that SIGPIPE ends (`weir events | head`): nothing failed, nobody reads on."""


class CallError(WeirError):
    """A call failed. `exit_code` is the contract's; the message is for a person."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
