"""Connections to replicas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

from controlplane.config import TlsSection

MAX_PLAN_BYTES: Final = 64 * 1024 * 1024
"""Largest plan taken: far above 10,000 channels in 12 regions."""

Connect = Callable[[str], grpc.aio.Channel]


def connector(tls: TlsSection) -> Connect:
    """Return a function that opens a channel to host:port, with mutual TLS when configured.

    Certificates are read at every call, so that a renewed one is used from the next session on.
    Raises OSError when a file cannot be read.
    """

    def connect(server: str) -> grpc.aio.Channel:
        options = [
            # else two channels to one address share a connection, and its pauses after failures
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MAX_PLAN_BYTES),
        ]
        if not tls.enabled:
            return grpc.aio.insecure_channel(server, options=options)
        credentials = grpc.ssl_channel_credentials(
            _read(tls.ca_file), _read(tls.key_file), _read(tls.cert_file)
        )
        return grpc.aio.secure_channel(server, credentials, options=options)

    return connect


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
