"""What is generated or copied is what its source says now."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from tests.helm.charts import ROOT, Harness


@pytest.mark.parametrize("script", ["gen_schema.py", "sync_chart.py"])
def test_no_drift(script: str) -> None:
    """Schema, values schema and configuration reference follow from the code, and the chart's
    rules and dashboards are those of deploy/."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_schema_and_daemon_agree_on_the_rendered_configuration(harness: Harness) -> None:
    """docs/weir.schema.json is a valid schema that accepts what the daemon accepts, and refuses a
    key the daemon does not know."""
    schema = json.loads((ROOT / "docs/weir.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for case in ("east", "everything", "minimal"):
        data = yaml.safe_load(harness.case(case).config_text())
        assert [error.message for error in validator.iter_errors(data)] == []
        assert list(validator.iter_errors({**data, "sever": {}}))
