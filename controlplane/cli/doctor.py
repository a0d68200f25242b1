"""`weir doctor`: what would trouble you tonight, checked from here, with what to do about it.

Asks any replica, and with --config also etcd, Redis and the certificates that the file names. Exit
code 1 when a check failed, 4 when no replica answers at all.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane import __version__
from controlplane.cli.exits import FAILED, UNREACHABLE, CallError
from controlplane.cli.options import Options
from controlplane.cli.output import Format, Styled, age, print_data, print_table
from controlplane.cli.read import DIGEST_OLD_MS, HEARTBEAT_OLD_MS, old
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc as rpc

CLOCK_WARN_MS: Final = 60_000
CLOCK_BAD_MS: Final = 150_000
CERT_WARN_S: Final = 14 * 86_400
"""As the alert CertExpiring."""
ETCD_FAULTY: Final = ("3.5.0", "3.5.1", "3.5.2")
"""etcd #13766: these may lose data when killed."""
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\..+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: ok, warning or failed, what was seen, and what to do."""

    check: str
    result: str
    seen: str
    remedy: str = ""


def doctor(options: Options) -> None:
    """Check clock, etcd, Redis, certificates, versions and agents."""
    client = options.client()
    findings: list[Finding] = []
    unreachable = False
    try:
        status = client.call(rpc.AdminServiceStub, "GetStatus", pb.GetStatusRequest())
        regions = client.call(rpc.AdminServiceStub, "ListRegions", pb.ListRegionsRequest())
        findings += [*_leader(status), *_versions(status), *_regions(regions.regions)]
        findings += list(_subscribers(status))
    except CallError as error:
        unreachable = True
        findings.append(
            Finding(check="replicas", result="failed", seen=str(error), remedy="start or reach one")
        )
    path = os.environ.get("WEIR_CONFIG")
    if path:
        findings += _from_config(Path(path))
    _print(findings, options.format)
    if unreachable:
        sys.exit(UNREACHABLE)
    if any(finding.result == "failed" for finding in findings):
        sys.exit(FAILED)


def _leader(status: Any) -> Iterator[Finding]:
    ok = bool(status.leader) and 0 <= status.heartbeat_age_ms < HEARTBEAT_OLD_MS
    yield Finding(
        check="leader",
        result="ok" if ok else "failed",
        seen=f"{status.leader or 'none'}, heartbeat {age(status.heartbeat_age_ms)} ago",
        remedy="" if ok else "docs/runbooks/NoLeader.md",
    )
    yield Finding(
        check="etcd quorum",
        result="ok" if status.coordinated else "failed",
        seen=f"as {status.replica} sees it"
        + (f"; all else is {text}" if (text := old(status)) else ""),
        remedy="" if status.coordinated else "docs/runbooks/EtcdUnreachable.md",
    )
    lost = [r.id for r in status.replicas if r.digest_age_ms < 0 or r.digest_age_ms > DIGEST_OLD_MS]
    yield Finding(
        check="replicas",
        result="warning" if lost else "ok",
        seen=f"{len(status.replicas) - len(lost)} of {len(status.replicas)} heard"
        + (f"; not {', '.join(lost)}" if lost else ""),
        remedy="look at their logs" if lost else "",
    )


def _versions(status: Any) -> Iterator[Finding]:
    told = {r.id: r.version for r in status.replicas if r.version}
    if status.version:
        told[status.replica] = status.version
    found = [_VERSION.fullmatch(version) for version in (__version__, *told.values())]
    minors = [(int(match[1]), int(match[2])) for match in found if match]
    (major, low), (last, high) = min(minors, default=(0, 0)), max(minors, default=(0, 0))
    if major != last or high - low > 1:
        result, remedy = "failed", "one minor version apart at most: docs/upgrade.md"
    elif not told or len(minors) < len(found):
        result, remedy = "warning", "not every version is known: docs/upgrade.md"
    else:
        result, remedy = "ok", ""
    replicas = (f"{name} {version}" for name, version in sorted(told.items()))
    yield Finding(
        check="versions",
        result=result,
        seen=", ".join((f"this weir {__version__}", *replicas)),
        remedy=remedy,
    )


def _regions(regions: Any) -> Iterator[Finding]:
    missing = [r for r in regions if r.agents_live < r.agents_expected]
    yield Finding(
        check="agents",
        result="failed" if missing else "ok",
        seen=", ".join(f"{r.name} {r.agents_live}/{r.agents_expected}" for r in regions),
        remedy="docs/runbooks/AgentsMissing.md" if missing else "",
    )
    clocks = [r for r in regions if r.HasField("clock_offset_ms")]
    worst = max((abs(r.clock_offset_ms) for r in clocks), default=0.0)
    result = "failed" if worst > CLOCK_BAD_MS else "warning" if worst > CLOCK_WARN_MS else "ok"
    told = ", ".join(f"{r.name} {r.clock_offset_ms:+.0f} ms" for r in clocks)
    yield Finding(
        check="clocks",
        result=result if clocks else "warning",
        seen=told or "not measured: agent.clock_reference is not configured",
        remedy="" if result == "ok" and clocks else "docs/runbooks/ClockSkew.md",
    )


def _subscribers(status: Any) -> Iterator[Finding]:
    late = [s.subscriber for s in status.laggards]
    silent = [s.subscriber for s in status.silent]
    yield Finding(
        check="data planes",
        result="warning" if late or silent else "ok",
        seen=f"{status.subscribers} live, {len(late)} behind epoch {status.plan_epoch}"
        + (f": {', '.join(late[:5])}" if late else "")
        + (f"; behind when last heard of: {', '.join(silent[:5])}" if silent else ""),
        remedy="docs/runbooks/EpochDivergence.md" if late or silent else "",
    )


def _from_config(path: Path) -> list[Finding]:
    from controlplane import config  # noqa: PLC0415 - only when asked for

    try:
        checked = config.load(path)
    except config.ConfigError as error:
        return [Finding(check="config", result="failed", seen=str(error), remedy="mend the file")]
    found = [Finding(check="config", result="ok", seen=str(path))]
    found += list(_certificates(checked))
    found += asyncio.run(_stores(checked))
    return found


def _certificates(checked: Any) -> Iterator[Finding]:
    from controlplane.adapters.tls import expires_at_s  # noqa: PLC0415

    for name in ("cert_file", "ca_file"):
        path = getattr(checked.tls, name)
        if path is None:
            continue
        ends_s = expires_at_s(path)
        left_s = -1.0 if ends_s is None else ends_s - time.time()  # noqa: TID251 - a person asks
        result = "failed" if left_s <= 0 else "warning" if left_s < CERT_WARN_S else "ok"
        yield Finding(
            check=f"tls.{name}",
            result=result,
            seen=f"{path}: "
            + ("unreadable" if ends_s is None else f"{left_s / 86_400:.1f} days left"),
            remedy="" if result == "ok" else "docs/runbooks/CertExpiring.md",
        )


async def _stores(checked: Any) -> list[Finding]:
    from controlplane.adapters.etcd import EtcdClient  # noqa: PLC0415
    from controlplane.wiring import etcd_options, lock_address  # noqa: PLC0415

    found = []
    client = await EtcdClient.connect(checked.coordination.endpoints, options=etcd_options(checked))
    try:
        members = await client.members()
    finally:
        await client.aclose()
    silent = sum(not member.answers for member in members)
    versions = sorted({member.version for member in members if member.version})
    faulty = any(version in ETCD_FAULTY for version in versions)
    found.append(
        Finding(
            check="etcd members",
            result="failed"
            if silent * 2 >= len(members)
            else "warning"
            if silent or faulty
            else "ok",
            seen=f"{len(members) - silent} of {len(members)} answer, version {', '.join(versions)}",
            remedy="upgrade: this version may lose data when killed (etcd #13766)"
            if faulty
            else "",
        )
    )
    address = lock_address(checked)
    if address is not None:
        try:
            host, port = await address.primary()
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            found.append(Finding(check="redis", result="ok", seen=f"primary at {host}:{port}"))
        except (OSError, TimeoutError, Exception) as error:  # noqa: BLE001 - all mean: not reachable
            found.append(
                Finding(
                    check="redis",
                    result="failed",
                    seen=str(error) or "no answer",
                    remedy="docs/runbooks/RedisLockErrors.md",
                )
            )
    return found


def _print(findings: list[Finding], fmt: Format) -> None:
    if fmt is not Format.TABLE:
        keys = ("check", "result", "seen", "remedy")
        print_data({"checks": [{k: getattr(f, k) for k in keys} for f in findings]}, fmt)
        return
    marks = {
        "ok": ("ok", "green"),
        "warning": ("warning", "yellow"),
        "failed": ("FAILED", "bold red"),
    }
    print_table(
        ["CHECK", "RESULT", "SEEN", "WHAT TO DO"],
        [(f.check, Styled(*marks[f.result]), f.seen, f.remedy) for f in findings],
    )
