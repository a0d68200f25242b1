"""Copy into the chart what it packages from elsewhere; `--check` reports drift, writes nothing.

A packaged chart can only read files of its own directory, so the alert rules and dashboards are
copied: `deploy/prometheus` and `deploy/grafana` stay the place to change them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/weir/files"
MAX_DASHBOARD_BYTES = 900_000
"""A ConfigMap holds 1 MiB; a dashboard has one of its own."""


def wanted() -> dict[Path, bytes]:
    """Map every file that the chart must have to its content."""
    files = {}
    for source in sorted((ROOT / "deploy/prometheus").glob("*.y*ml")):
        content = source.read_bytes()
        if "groups" in (yaml.safe_load(content) or {}):  # rules; not Prometheus' own configuration
            files[CHART / "rules" / source.name] = content
    for source in sorted((ROOT / "deploy/grafana").rglob("*.json")):
        content = source.read_bytes()
        if len(content) > MAX_DASHBOARD_BYTES:
            raise SystemExit(f"{source.name}: {len(content)} bytes do not fit into a ConfigMap")
        files[CHART / "dashboards" / source.name] = content
    return files


def main() -> int:
    """Copy or check; exit 1 on drift."""
    files = wanted()
    present = {path for path in CHART.rglob("*") if path.is_file()}
    drifted = [
        path
        for path in sorted(present | files.keys())
        if path not in present or files.get(path) != path.read_bytes()
    ]
    if "--check" in sys.argv:
        names = [str(path.relative_to(ROOT)) for path in drifted]
        if names:
            print(f"differs from deploy/prometheus and deploy/grafana: {names}; run {__file__}")
        return 1 if names else 0
    for path in drifted:
        if path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[path])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
