"""What `weir doctor` tries itself instead of asking a replica: certificates, etcd, Redis."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from controlplane import config
from controlplane.adapters.etcd import EtcdClient
from controlplane.adapters.tls import validity_s
from controlplane.cli.client import Credentials
from controlplane.cli.doctor import Finding
from controlplane.cli.where import Place
from controlplane.model.errors import UnavailableError
from controlplane.wiring import etcd_options, lock_address

CERT_WARN_S: Final = 14 * 86_400
"""As the alert CertExpiring."""
CERT_WARN_PART: Final = 3
"""A certificate that lives for days is renewed when a third of its life is left, not before."""
ETCD_FAULTY: Final = ("3.5.0", "3.5.1", "3.5.2")
"""etcd #13766: these may lose data when killed."""
REACH_S: Final = 1.5
"""Longest wait for a handshake or for Redis: a hung one accepts connections."""
_ALIVE: Final = (b"+PONG", b"-NOAUTH")
_DAY_S: Final = 86_400


def tried(place: Place, path: Path | None) -> list[Finding]:
    """Try what `path` names, and the certificates with which the replicas are met."""
    found: list[Finding] = []
    checked = None
    if path is not None:
        try:
            checked = config.load(path)
            found.append(Finding(check="config", result="ok", seen=str(path)))
        except config.ConfigError as error:
            found.append(
                Finding(check="config", result="failed", seen=str(error), remedy="mend the file")
            )
    found += _files(place.credentials, checked)
    found += asyncio.run(_reached(place, checked))
    return found


async def _reached(place: Place, checked: config.WeirConfig | None) -> list[Finding]:
    found: list[Finding] = []
    if place.credentials.ca_file:
        found.append(await _served(place))
    if checked is not None:
        found.append(await _etcd(checked))
        found += [await _redis(checked)] if lock_address(checked) else []
    return found


# --- certificates ------------------------------------------------------------------------------


def _files(used: Credentials, checked: config.WeirConfig | None) -> Iterator[Finding]:
    """Judge the files in use here, and those that the configuration names besides."""
    named: dict[Path, str] = {}
    for option, key in (("--cert-file", "cert_file"), ("--ca-file", "ca_file")):
        for check, source in ((f"tls.{key}", checked and checked.tls), (option, used)):
            path = getattr(source, key, None)
            if path is not None:
                named.setdefault(path, check)
    for path, check in named.items():
        span = validity_s(path)
        result, left = ("failed", "unreadable") if span is None else _judged(*span)
        yield Finding(
            check=check, result=result, seen=f"{path}: {left}", remedy=_cert_remedy(result)
        )


async def _served(place: Place) -> Finding:
    """Judge the certificates that the replicas show."""
    spans = await asyncio.gather(*(_shown(a, place.credentials) for a in place.addresses))
    told: list[tuple[float, str, str]] = []
    faults: list[str] = []
    for address, span in zip(place.addresses, spans, strict=True):
        if isinstance(span, str):
            faults.append(f"{address}: {span}")
        elif span is not None:
            result, left = _judged(*span)
            told.append((span[1], result, f"{address} {left}"))
    seen = [f"{len(told)} of {len(place.addresses)} replicas show theirs"]
    result = "failed" if faults else "warning"
    if told:
        _, of_soonest, left = min(told)
        seen.append(f"soonest to end: {left}")
        result = result if faults else of_soonest
    return Finding(
        check="certificates",
        result=result,
        seen="; ".join([*seen, *faults]),
        remedy=_cert_remedy(result) if told or faults else "reach a replica",
    )


async def _shown(address: str, files: Credentials) -> tuple[float, float] | str | None:
    """Return from when until when (Unix s) a replica's certificate holds; a text when the
    handshake fails, None when it is not reached."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
        if files.cert_file:
            context.load_cert_chain(files.cert_file, files.key_file)
        context.set_alpn_protocols(["h2"])
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname=files.server_name or host
            )
    except ssl.SSLError as error:
        return str(getattr(error, "verify_message", "") or error.reason or error)
    except (OSError, TimeoutError, ValueError):
        return None
    shown = writer.get_extra_info("peercert") or {}
    writer.close()
    return tuple(ssl.cert_time_to_seconds(shown[end]) for end in ("notBefore", "notAfter"))  # type: ignore[return-value]


def _judged(begin_s: float, end_s: float) -> tuple[str, str]:
    """Return the result for a certificate that holds from `begin_s` until `end_s` (Unix s), and how
    much is left."""
    left_s = end_s - time.time()  # noqa: TID251 - a person asks
    warn_s = min(CERT_WARN_S, (end_s - begin_s) / CERT_WARN_PART)
    result = "failed" if left_s <= 0 else "warning" if left_s < warn_s else "ok"
    return result, f"{left_s / _DAY_S:.1f} days left" if left_s > 0 else "expired"


def _cert_remedy(result: str) -> str:
    return "" if result == "ok" else "docs/runbooks/CertExpiring.md"


# --- stores ------------------------------------------------------------------------------------


async def _etcd(checked: config.WeirConfig) -> Finding:
    client = await EtcdClient.connect(checked.coordination.endpoints, options=etcd_options(checked))
    try:
        members = await client.members()
    finally:
        await client.aclose()
    silent = [member.endpoint for member in members if not member.answers]
    versions = sorted({member.version for member in members if member.version})
    faulty = any(version in ETCD_FAULTY for version in versions)
    lost = len(silent) * 2 >= len(members)
    seen = f"{len(members) - len(silent)} of {len(members)} answer"
    seen += f", version {', '.join(versions)}" if versions else ""
    seen += f"; not {', '.join(silent)}" if silent else ""
    remedy = "docs/runbooks/EtcdUnreachable.md" if silent else ""
    return Finding(
        check="etcd members",
        result="failed" if lost else "warning" if silent or faulty else "ok",
        seen=seen,
        remedy="upgrade: this version may lose data when killed (etcd #13766)"
        if faulty
        else remedy,
    )


async def _redis(checked: config.WeirConfig) -> Finding:
    address: Any = lock_address(checked)
    asked = f"who the primary is ({address})"
    try:
        async with asyncio.timeout(REACH_S):
            host, port = await address.primary()
            asked = f"{host}:{port}"
            reader, writer = await asyncio.open_connection(host, port, ssl=address.ssl())
            with contextlib.closing(writer):
                writer.write(b"PING\r\n")
                answer = await reader.readline()
    except TimeoutError:
        return _redis_failed(f"no answer within {REACH_S:g} s: {asked}")
    except (OSError, UnavailableError) as error:
        return _redis_failed(str(error))
    if not answer.startswith(_ALIVE):
        return _redis_failed(f"{asked} says {answer.decode(errors='replace').strip() or 'nothing'}")
    return Finding(check="redis", result="ok", seen=f"primary at {asked}")


def _redis_failed(seen: str) -> Finding:
    return Finding(
        check="redis",
        result="failed",
        seen=seen,
        remedy="docs/runbooks/RedisLockErrors.md",
    )
