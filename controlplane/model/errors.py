"""Two kinds of trouble, kept apart.

A `WeirError` is expected: the world said no, or a caller asked for what may not be. An `Alarm` is
a broken invariant:
it should be impossible, it is never retried, and it is always worth a person's attention.
"""

from __future__ import annotations


class WeirError(Exception):
    """Expected failure with a plain message that names the field and the remedy."""


class InvalidInputError(WeirError):
    """Input refused; nothing was changed. `field` is the path of the offending field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.reason = message


class ReusedRequestIdError(InvalidInputError):
    """A request id that came before with another content: the caller's mistake, not a repeat."""

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "mutation.request_id",
            f"{request_id} was used for another request; draw a new UUID, or repeat that request "
            "unchanged",
        )


class RefusedError(WeirError):
    """A safety rule forbids what was asked. `rule` names it, the message gives numbers and the way
    around."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class UnavailableError(WeirError):
    """A dependency does not answer; safe to retry after `retry_after_ms`."""

    def __init__(self, message: str, retry_after_ms: int = 1000) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class NotSentError(UnavailableError):
    """The request never left, so nothing can have come of it."""


class AmbiguousError(WeirError):
    """A write may or may not have happened; read before doing anything else."""


class CompactedError(WeirError):
    """The history asked for is gone (compacted, or etcd was restored): list again."""


class DeposedError(WeirError):
    """The leader key is no longer ours: nothing was written, and nothing more may be."""


class Alarm(Exception):  # noqa: N818 - the vocabulary keeps alarms apart from errors
    """A broken invariant. Never caught to go on; the supervisor logs it, counts it and stops the
    part."""
