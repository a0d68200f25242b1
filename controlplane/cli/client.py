"""How the CLI reaches a replica: any of them answers, so a dead or hung one costs one short
attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from controlplane import __version__
from controlplane.cli.exits import DEADLINE, FAILED, REFUSED, UNREACHABLE, USAGE, CallError
from controlplane.model.errors import InvalidInputError

ATTEMPT_S: Final = 1.5
"""Deadline of one attempt at one replica: a hung replica accepts connections and never answers."""

# CANCELLED, since we cancel nothing: a server that stops says so of calls that it had not begun
_RETRY_ELSEWHERE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
_NO_TLS: Final = ("handshake failed", "Socket closed")
"""How gRPC tells of a server that is there and wants another, or any, certificate."""
_OUR_DEADLINE: Final = "Deadline Exceeded"
"""What gRPC says when nobody has said anything."""
_EXIT = {
    grpc.StatusCode.INVALID_ARGUMENT: USAGE,
    grpc.StatusCode.NOT_FOUND: FAILED,
    grpc.StatusCode.FAILED_PRECONDITION: REFUSED,
    grpc.StatusCode.UNAVAILABLE: UNREACHABLE,
    grpc.StatusCode.CANCELLED: UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: DEADLINE,
}
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Files of mutual TLS; all None for plaintext."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None

    def over(self, others: Credentials) -> Credentials:
        """Return these, and of `others` what is not given here.

        A key belongs to its certificate: of the two, both are taken or none.
        """
        own = self if self.cert_file or self.key_file else others
        return Credentials(
            ca_file=self.ca_file or others.ca_file,
            cert_file=own.cert_file,
            key_file=own.key_file,
            server_name=self.server_name or others.server_name,
        )

    def checked(self) -> Credentials:
        """Return these; InvalidInputError when they would be left unused or do not make a pair."""
        for option, have, other, miss in (
            ("--cert-file", self.cert_file, "--key-file", self.key_file),
            ("--key-file", self.key_file, "--cert-file", self.cert_file),
            ("--cert-file", self.cert_file, "--ca-file", self.ca_file),
        ):
            if have and not miss:
                raise InvalidInputError(
                    option, f"needs {other} beside it: mutual TLS has three files"
                )
        return self

    def channel(self, address: str) -> grpc.Channel:
        """Open a channel to one replica."""
        options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
        if self.ca_file is None:
            return grpc.insecure_channel(address, options)
        if self.server_name:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        credentials = grpc.ssl_channel_credentials(
            _pem("--ca-file", self.ca_file),
            _pem("--key-file", self.key_file),
            _pem("--cert-file", self.cert_file),
        )
        return grpc.secure_channel(address, credentials, options)


def _pem(option: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InvalidInputError(option, f"{path}: {error.strerror}") from error


class Client:
    """Calls any replica; the next one when an attempt is refused or too slow."""

    def __init__(self, addresses: Sequence[str], credentials: Credentials) -> None:
        self._addresses = list(addresses)
        self._credentials = credentials

    def call(
        self,
        stub: Callable[[grpc.Channel], Any],
        method: str,
        request: Any,
        timeout_s: float = ATTEMPT_S,
    ) -> Any:
        """Call a unary method on the first replica that answers.

        Raises CallError with the exit code of the contract.
        """
        last: grpc.RpcError | None = None
        for address in tuple(self._addresses):
            with self._credentials.channel(address) as channel:
                try:
                    answer = getattr(stub(channel), method)(request, timeout=timeout_s)
                    # a hung one before it costs its attempt once, not at every call
                    self._addresses.sort(key=lambda other: other != address)
                    return answer
                except grpc.RpcError as error:
                    last = error
                    if error.code() not in _RETRY_ELSEWHERE:
                        break
        if last is not None and last.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise CallError(
                f"the replica does not know {method}: another version than this weir "
                f"{__version__} (weir doctor tells which)",
                FAILED,
            )
        raise _explain(last, self._addresses)

    def stream(
        self, stub: Callable[[grpc.Channel], Any], method: str, request: Callable[[], Any]
    ) -> Iterator[Any]:
        """Follow a server stream, moving to the next replica when one goes away."""
        failures = 0
        while failures < len(self._addresses):
            for address in self._addresses:
                with self._credentials.channel(address) as channel:
                    try:
                        for item in getattr(stub(channel), method)(request()):
                            failures = 0
                            yield item
                    except grpc.RpcError as error:
                        failures += 1
                        if error.code() not in _RETRY_ELSEWHERE:
                            raise _explain(error, self._addresses) from error
        raise CallError(f"no replica answers at {', '.join(self._addresses)}", UNREACHABLE)


def _explain(error: Any, addresses: Sequence[str]) -> CallError:
    code = error.code()
    exit_code = _EXIT.get(code, FAILED)
    message = error.details() or code.name
    if message == _OUR_DEADLINE:
        return CallError(
            f"no answer in time from {', '.join(addresses)}: hung, overloaded or cut off; name "
            "others with --server HOST:PORT",
            exit_code,
        )
    unmet = code in _RETRY_ELSEWHERE and "failed to connect" in message.lower()
    if unmet and any(sign in message for sign in _NO_TLS):
        return CallError(
            f"{', '.join(addresses)} hangs up during the handshake: mutual TLS needs --ca-file, "
            f"--cert-file and --key-file that it trusts ({message.rpartition('last error: ')[2]})",
            UNREACHABLE,
        )
    if unmet:
        return CallError(
            f"no replica answers at {', '.join(addresses)}; pass --server HOST:PORT, set "
            "WEIR_SERVER, or start a local topology with `weir dev`",
            UNREACHABLE,
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return CallError(
            f"{message}; use a certificate that may: --cert-file and --key-file", FAILED
        )
    rules = _rules(error.trailing_metadata() or ())
    return CallError(f"refused by {rules}: {message}" if rules else message, exit_code)


def _rules(metadata: Sequence[tuple[str, Any]]) -> str:
    """Return the safety rules that refused a call, from the details of its status."""
    from google.rpc import error_details_pb2, status_pb2  # noqa: PLC0415 - only when a call failed

    rules: list[str] = []
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                refusal = error_details_pb2.PreconditionFailure()
                if detail.Unpack(refusal):
                    rules += [violation.subject for violation in refusal.violations]
    return ", ".join(rules)
