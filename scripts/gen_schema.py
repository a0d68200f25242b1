"""Generate what follows from the configuration's model; `--check` reports drift, writes nothing.

- `docs/weir.schema.json`: JSON Schema of the configuration file, for editors.
- `deploy/helm/weir/values.schema.json`: `deploy/helm/values.schema.src.yaml` with that schema as
  its `config`, so that Helm refuses what the daemon would refuse.
- `docs/configuration.md`: every key with type, default, environment variable and meaning.

One source for all three: `controlplane.config` for the keys, and the docstrings of
`controlplane.model.topology.Policy` for the numbers of the decision.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from controlplane.config import ENV_PREFIX, WeirConfig
from controlplane.model.topology import Policy

ROOT = Path(__file__).resolve().parent.parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

INTRO = """# Configuration, key by key

Generated from the code by `scripts/gen_schema.py`; do not edit. For editors there is a JSON Schema
beside this page: put `# yaml-language-server: $schema=weir.schema.json` at the top of the file.

One YAML file serves all daemons: give it with `--config FILE` or `WEIR_CONFIG`. Unknown keys are
refused with file, line and the nearest known key; `weir check-config FILE` tells without starting
anything. A variable `WEIR_SECTION__KEY` overrides its key; lists and mappings are written as JSON
(`WEIR_COORDINATION__ENDPOINTS='["etcd-0:2379"]'`). A whole section may be
given as JSON too; its keys go over the file's (`WEIR_POLICY='{"tick_ms": 250}'`), which is the way
for numbers of `policy`, `regions` and `channels`.

SIGHUP reads the file again; a file with a fault changes nothing and the last good one stays.
No secret stands in this file, only names of files that hold one. A weight is a whole number of
basis points: 10,000 is everything.

`<region>` and `<channel>` stand for a name: 1 to 63 of `a-z 0-9 _ -`. `<n>` counts a list from 0.
"""


def policy_schema() -> Schema:
    """Return the policy's schema: names and defaults of the dataclass, meaning of its
    docstrings."""
    help_of = _policy_help()
    properties: Schema = {}
    for field in fields(Policy):
        if field.default is MISSING or field.name not in help_of:
            raise SystemExit(f"model.Policy.{field.name}: needs a default and a docstring below it")
        properties[field.name] = {
            **_schema_of(field.default),
            "description": help_of[field.name],
        }
    return {
        "type": "object",
        "title": "PolicySection",
        "description": "Numbers of the decision; times in ms, shares in basis points.",
        "additionalProperties": False,
        "properties": properties,
    }


def _policy_help() -> dict[str, str]:
    """Map every field of Policy to the string that stands below it in the source."""
    module = ast.parse(inspect.getsource(inspect.getmodule(Policy)))  # type: ignore[arg-type]
    body = next(
        node.body
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == Policy.__name__
    )
    found = {}
    for before, after in itertools.pairwise(body):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[before.target.id] = " ".join(str(after.value.value).split())
    return found


def _schema_of(default: object) -> Schema:
    if isinstance(default, bool):
        return {"type": "boolean", "default": default}
    if isinstance(default, int):
        return {"type": "integer", "minimum": 0, "default": default}
    if isinstance(default, float):
        return {"type": "number", "minimum": 0, "default": default}
    if isinstance(default, tuple):
        return {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "default": list(default),
        }
    return {"type": "string", "default": str(default)}


def config_schema() -> Schema:
    """Return the JSON Schema of the configuration file."""
    schema = WeirConfig.model_json_schema()
    schema["$defs"]["PolicySection"] = policy_schema()
    _tidy(schema)
    schema["properties"]["policy"] = {"$ref": "#/$defs/PolicySection"}
    schema["title"] = "Weir configuration"
    return {"$schema": DIALECT, **schema}


def _tidy(node: Any) -> None:
    """Drop titles that only repeat a key, and close mappings whose keys are names."""
    if isinstance(node, dict):
        if isinstance(node.get("title"), str) and "properties" not in node:
            del node["title"]
        if "patternProperties" in node:
            node["additionalProperties"] = False
        for value in node.values():
            _tidy(value)
    elif isinstance(node, list):
        for value in node:
            _tidy(value)


def values_schema() -> Schema:
    """Return the schema of the chart's values with the configuration's inside."""
    source = yaml.safe_load((ROOT / "deploy/helm/values.schema.src.yaml").read_text())
    config = config_schema()
    definitions = config.pop("$defs")
    del config["$schema"]
    source["properties"]["config"] = {**config, **source["properties"].get("config", {})}
    source["$defs"] = {**source.get("$defs", {}), **definitions}
    schema: Schema = {"$schema": DIALECT, **source}
    return schema


def rows(schema: Schema, node: Schema, path: str = "") -> Iterator[tuple[str, Schema, Schema]]:
    """Yield (key, the property, its resolved schema) depth first."""
    for key, prop in node.get("properties", {}).items():
        where = f"{path}.{key}" if path else key
        inner = _resolve(schema, prop)
        yield where, prop, inner
        if inner.get("type") == "object":
            yield from rows(schema, inner, where)
            for value in inner.get("patternProperties", {}).values():
                yield from _entries(schema, value, f"{where}.<{_name_of(where)}>")
        elif inner.get("type") == "array":
            yield from _entries(schema, inner.get("items", {}), f"{where}.<n>")


def _entries(schema: Schema, value: Schema, where: str) -> Iterator[tuple[str, Schema, Schema]]:
    inner = _resolve(schema, value)
    if inner.get("type") == "object":
        yield where, value, inner
        yield from rows(schema, inner, where)


def _name_of(path: str) -> str:
    return {"regions": "region", "channels": "channel", "targets": "region"}[
        path.rsplit(".", 1)[-1]
    ]


def _resolve(schema: Schema, node: Schema) -> Schema:
    """Follow a reference; of an optional value take the part that is not null."""
    for choice in node.get("anyOf", ()):
        if choice.get("type") != "null":
            return _resolve(schema, choice)
    if "$ref" in node:
        found: Schema = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        return found
    return node


def _type(schema: Schema, inner: Schema) -> str:
    if "enum" in inner:
        return " \\| ".join(f"`{value}`" for value in inner["enum"])
    kind = str(inner.get("type", "any"))
    if kind == "array":
        item = _resolve(schema, inner.get("items", {}))
        return f"list of {_type(schema, item)}" if item else "pair"
    if kind == "object":
        values = list(inner.get("patternProperties", {}).values())
        return f"name → {_type(schema, values[0])}" if values else "mapping"
    return _scalar(kind, inner)


def _scalar(kind: str, inner: Schema) -> str:
    if kind in ("integer", "number"):
        low = inner.get("minimum", inner.get("exclusiveMinimum", -1) + 1)
        return f"{low} to {inner['maximum']}" if "maximum" in inner else f"{kind} ≥ {low}"
    if "pattern" in inner:
        if inner["pattern"].startswith("^/"):
            return "URL path"
        return "host:port" if ":" in inner["pattern"] else "name"
    return "path" if inner.get("format") == "path" else kind


def _default(prop: Schema, key: str, required: list[str]) -> str:
    if key in required:
        return "**required**"
    value = prop.get("default")
    if value is None or isinstance(value, dict):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _variable(where: str) -> str:
    parts = where.split(".")
    plain = not any("<" in part for part in parts)
    return f"`{ENV_PREFIX}{'__'.join(parts).upper()}`" if plain and parts[0] != "policy" else ""


def reference() -> str:
    """Return docs/configuration.md."""
    schema = config_schema()
    out = [INTRO]
    for section, prop in schema["properties"].items():
        inner = _resolve(schema, prop)
        out.append(f"## `{section}`\n\n{_heading(schema, section, inner)}\n")
        out.append("| Key | Type | Default | Environment | Meaning |\n|---|---|---|---|---|")
        required = _required(schema, {"properties": {section: prop}})
        for where, item, resolved in rows(schema, {"properties": {section: prop}}):
            if "properties" in resolved or _holds_sections(schema, resolved):
                continue
            key = where.removeprefix(f"{section}.")
            out.append(
                f"| `{key}` | {_type(schema, resolved)} | {_default(item, where, required)} "
                f"| {_variable(where)} | {item.get('description', '')} |"
            )
        out.append("")
    return "\n".join(out)


def _holds_sections(schema: Schema, node: Schema) -> bool:
    values = node.get("patternProperties", {}).values()
    return any(_resolve(schema, value).get("type") == "object" for value in values)


def _heading(schema: Schema, section: str, inner: Schema) -> str:
    for value in inner.get("patternProperties", {}).values():
        described: str = _resolve(schema, value).get("description", section)
        return f"{described} By name; at least one."
    return str(inner.get("description", section))


def _required(schema: Schema, node: Schema) -> list[str]:
    found = []
    for where, _, inner in rows(schema, node):
        found += [f"{where}.{key}" for key in inner.get("required", ())]
    return found


def outputs() -> dict[Path, str]:
    """Map every generated file to its content."""

    def dump(value: Schema) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    return {
        ROOT / "docs/weir.schema.json": dump(config_schema()),
        ROOT / "deploy/helm/weir/values.schema.json": dump(values_schema()),
        ROOT / "docs/configuration.md": reference(),
    }


def main() -> int:
    """Generate or check; exit 1 on drift."""
    drifted = []
    for path, content in outputs().items():
        if "--check" not in sys.argv:
            path.write_text(content)
        elif not path.exists() or path.read_text() != content:
            drifted.append(str(path.relative_to(ROOT)))
    if drifted:
        print(f"differs from controlplane.config: {drifted}; run scripts/gen_schema.py")
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
