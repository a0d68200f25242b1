"""Helm in a process of its own: one JSON request a line in, one answer a line out.

Helm is a Go library; its runtime does not belong into the process that runs the tests and forks.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from helm_python import _native
from helm_python.chart import Chart, lint, package
from helm_python.errors import HelmError


def answer(request: dict[str, Any]) -> Any:
    """Serve one request: render, lint or package the chart at `chart`."""
    chart, values = request["chart"], request.get("values", {})
    if request["do"] == "lint":
        return lint(chart, values)
    if request["do"] == "package":
        with tempfile.TemporaryDirectory() as out:
            path = Path(package(chart, destination=out))
            return {"bytes": path.stat().st_size, "files": sorted(_names(path))}
    options = {
        "name": request["name"],
        "namespace": request["namespace"],
        "kube_version": request["kube_version"],
    }
    with Chart.load(chart) as loaded:
        # the public render() cannot pass the Kubernetes version on
        return json.loads(
            _native.call_string(
                "helm_render", loaded._raw(), json.dumps(values), json.dumps(options)
            )
        )


def _names(archive: Path) -> list[str]:
    with Chart.load(str(archive)) as chart:
        return [entry["name"] for entry in (*chart.files, *chart.templates)]


for line in sys.stdin:
    try:
        reply = {"ok": answer(json.loads(line))}
    except HelmError as error:
        reply = {"error": str(error)}
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
