"""`weir doctor`: what would trouble you tonight, checked from here, with what to do about it.

Asks any replica, and tries the certificates; with a configuration (--config, or that of the local
topology) also etcd and Redis. Exit code 1 when a check failed, 4 when no replica answers at all.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from controlplane import __version__
from controlplane.cli.exits import DEADLINE, FAILED, UNREACHABLE, CallError
from controlplane.cli.options import Options
from controlplane.cli.output import Format, Styled, age, print_data, print_table
from controlplane.cli.read import DIGEST_OLD_MS, HEARTBEAT_OLD_MS, old
from controlplane.v1 import admin_pb2 as pb
from controlplane.v1 import admin_pb2_grpc as rpc

CLOCK_WARN_MS: Final = 60_000
CLOCK_BAD_MS: Final = 150_000
AGENTS_PAGE: Final = 1000
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
    place = options.place()
    client = options.client()
    findings: list[Finding] = []
    unreachable = False
    try:
        status = client.call(rpc.AdminServiceStub, "GetStatus", pb.GetStatusRequest())
        regions = client.call(rpc.AdminServiceStub, "ListRegions", pb.ListRegionsRequest())
        findings += [*_leader(status), *_versions(status, _agents(client))]
        findings += [*_regions(regions.regions), *_subscribers(status)]
    except CallError as error:
        unreachable = error.exit_code in {UNREACHABLE, DEADLINE}
        remedy = "start or reach one" if unreachable else "see what it says"
        findings.append(Finding(check="replicas", result="failed", seen=str(error), remedy=remedy))
    path = options.config or options.local_topology().get("config")
    if path or place.credentials.ca_file:
        from controlplane.cli import doctor_reach  # noqa: PLC0415 - heavy

        findings += doctor_reach.tried(place, Path(path) if path else None)
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


def _agents(client: Any) -> Counter[tuple[str, str]]:
    """Count the agents by region and version; the version is empty where it was not told."""
    counted: Counter[tuple[str, str]] = Counter()
    page = ""
    while True:
        request = pb.ListAgentsRequest(page_size=AGENTS_PAGE, page_token=page)
        answer = client.call(rpc.AdminServiceStub, "ListAgents", request)
        counted.update((agent.region, agent.version) for agent in answer.agents)
        page = answer.next_page_token
        if not page:
            return counted


def _versions(status: Any, agents: Counter[tuple[str, str]]) -> Iterator[Finding]:
    told = {r.id: r.version for r in status.replicas if r.version}
    if status.version:
        told[status.replica] = status.version
    of_agents = {version for _, version in agents if version}
    found = [_VERSION.fullmatch(version) for version in (__version__, *told.values(), *of_agents)]
    minors = [(int(match[1]), int(match[2])) for match in found if match]
    (major, low), (last, high) = min(minors, default=(0, 0)), max(minors, default=(0, 0))
    if major != last or high - low > 1:
        result, remedy = "failed", "one minor version apart at most: docs/upgrade.md"
    elif not told or len(minors) < len(found) or any(not version for _, version in agents):
        result, remedy = "warning", "not every version is known: docs/upgrade.md"
    else:
        result, remedy = "ok", ""
    names = [f"this weir {__version__}"]
    names += [f"{name} {version}" for name, version in sorted(told.items())]
    for version in sorted({version for _, version in agents}):
        where = sorted((region, n) for (region, v), n in agents.items() if v == version)
        total = sum(n for _, n in where)
        named = f"{total} agent{'s' if total > 1 else ''} {version or 'of an unknown version'}"
        apart = len({v for _, v in agents}) > 1
        names.append(named + (f" ({', '.join(f'{r} {n}' for r, n in where)})" if apart else ""))
    yield Finding(check="versions", result=result, seen=", ".join(names), remedy=remedy)


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
