"""The pages about installing say what is so: every key of the configuration and chart exists."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tests.helm.charts import CHART, ROOT, Json

PAGES = (
    "install", "upgrade", "security", "concepts", "promises", "comparison", "capacity", "glossary",
    "configuration",
)  # fmt: skip
FILES = {"tls.crt", "tls.key", "ca.crt"}
CODE = re.compile(r"`([a-zA-Z]+(?:\.[a-zA-Z_*]+)+)(?::[^`]*)?`")


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page: str) -> None:
    """Every dotted name in code font that begins like a value of the chart or a section of the
    configuration is one."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((ROOT / "docs/weir.schema.json").read_text())
    for name in set(CODE.findall((ROOT / "docs" / f"{page}.md").read_text())) - FILES:
        parts = name.removeprefix("config.").split(".")
        if parts[0] in values and _in_values(values, parts):
            continue
        if parts[0] in values or parts[0] in schema["properties"]:
            assert _in_schema(schema, schema, parts), name


def test_pages_name_keys_and_a_wrong_one_is_noticed() -> None:
    """The test above looks at something, and would see a misspelt key."""
    schema = json.loads((ROOT / "docs/weir.schema.json").read_text())
    named = {p for p in PAGES if CODE.search((ROOT / "docs" / f"{p}.md").read_text())}
    assert named >= {"install", "upgrade", "security", "capacity"}
    assert _in_schema(schema, schema, ["coordination", "endpoints"])
    assert not _in_schema(schema, schema, ["coordination", "endpoint"])


def _in_values(node: object, parts: list[str]) -> bool:
    if not parts:
        return True
    return isinstance(node, dict) and parts[0] in node and _in_values(node[parts[0]], parts[1:])


def _in_schema(schema: Json, node: Json, parts: list[str]) -> bool:
    for choice in (node, *node.get("anyOf", ())):
        if "$ref" in choice:
            choice = schema["$defs"][choice["$ref"].rsplit("/", 1)[1]]  # noqa: PLW2901
        if not parts:
            return True
        key, rest = parts[0], parts[1:]
        if key in choice.get("properties", {}):
            return _in_schema(schema, choice["properties"][key], rest)
        for value in choice.get("patternProperties", {}).values():
            return _in_schema(schema, value, rest)
    return False
