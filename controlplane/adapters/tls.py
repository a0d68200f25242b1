"""Mutual TLS from files, reloaded when they change.

The server asks for the newest files at every handshake (they are read again only when one has
changed), so that a renewed certificate needs no restart; a half-written or broken renewal keeps the
last good one and says so. Clients read the files whenever they dial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from cryptography import x509

from controlplane.model.errors import InvalidInputError

log = structlog.get_logger(__name__)

_KEPT: list[Any] = []
"""Server credentials of this process. gRPC's core holds a bare pointer to them and asks for the
certificate at every handshake, also at one that ends after its server: they are never freed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """CA bundle, certificate chain and private key."""

    ca: Path
    cert: Path
    key: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Read ca, cert and key; InvalidInputError names the file that cannot be read."""
        out = []
        for field, path in (("ca_file", self.ca), ("cert_file", self.cert), ("key_file", self.key)):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InvalidInputError(f"tls.{field}", f"{path}: {error.strerror}") from error
            if b"-----BEGIN" not in data:
                raise InvalidInputError(f"tls.{field}", f"{path} is not in PEM format")
            out.append(data)
        return out[0], out[1], out[2]

    def stamp(self) -> tuple[int, ...]:
        """Return a value that changes when a file does."""
        return tuple(
            value
            for path in (self.ca, self.cert, self.key)
            for value in (path.stat().st_mtime_ns, path.stat().st_ino)
        )


def server_credentials(
    files: TlsFiles, on_reload: Callable[[bool], None] = lambda _ok: None
) -> Any:
    """Return server credentials that demand a client certificate and follow the files."""
    last = files.stamp()

    def configuration(data: tuple[bytes, bytes, bytes]) -> Any:
        ca, cert, key = data
        return grpc.ssl_server_certificate_configuration([(key, cert)], ca)

    def fetch() -> Any:
        nonlocal last
        try:
            stamp = files.stamp()
            if stamp == last:
                return None
            fresh = configuration(files.read())
        except (OSError, InvalidInputError) as error:
            log.error("certificate_reload_refused", error=str(error))
            on_reload(False)
            return None
        last = stamp
        log.info("certificate_reloaded", file=str(files.cert))
        on_reload(True)
        return fresh

    credentials = grpc.dynamic_ssl_server_credentials(
        configuration(files.read()), fetch, require_client_authentication=True
    )
    _KEPT.append(credentials)
    return credentials


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Return client credentials from the files as they are now."""
    ca, cert, key = files.read()
    return grpc.ssl_channel_credentials(ca, key, cert)


def validity_s(path: Path) -> tuple[float, float] | None:
    """Return from when until when the first certificate of a PEM file holds, in Unix s; None when
    unreadable."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def expires_at_s(path: Path) -> float | None:
    """Return when the first certificate of a PEM file ends, in Unix s; None when unreadable."""
    span = validity_s(path)
    return span and span[1]
