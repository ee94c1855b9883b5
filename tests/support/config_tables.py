"""The tables of docs/configuration.md, made from the configuration's schema.

``python -m tests.support.config_tables`` writes them anew; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sidecar.config import json_schema

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = {
    "OnnxRuntimeConfig": "onnxruntime",
    "PyTorchConfig": "pytorch",
    "TensorRTConfig": "tensorrt",
    "TensorRTRTXConfig": "tensorrt_rtx",
    "RemoteConfig": "remote",
}


def nodes() -> dict[str, dict[str, Any]]:
    """Every group of settings by the name of its class."""
    schema = json_schema()
    return {**schema["$defs"], "SidecarConfig": schema}


def render(page: str) -> str:
    """Return ``page`` with every table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{_table(found[2])}{found[3]}", page)


def named(page: str) -> set[str]:
    """The groups that ``page`` has a table for."""
    return {found[2] for found in _BLOCK.finditer(page)}


def _table(name: str) -> str:
    node = nodes()[name]
    lines = ["| key | type | default | what for |", "|---|---|---|---|"]
    for key, value in node["properties"].items():
        default = "required" if key in node.get("required", []) else _default(value)
        what = _what(value).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(value)} | {default} | {what} |")
    return "\n".join(lines) + "\n"


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if _groups(value) and default is not None:
        return "as its section says"
    if "default" not in value or default in ([], {}):
        return "empty"
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int) and default >= 2**20 and default % 2**20 == 0:
        return f"{default >> 20} MiB"
    return f"{default:g}" if isinstance(default, int | float) else f"`{default}`"


def _type(value: dict[str, Any]) -> str:
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if "oneOf" in value or "anyOf" in value:
        parts = [_type(part) for part in value.get("oneOf") or value["anyOf"]]
        return " or ".join(dict.fromkeys(part for part in parts if part != "null"))
    if "$ref" in value:
        return _link(value["$ref"])
    match value.get("type"):
        case "array":
            return f"list of {_type(value['items'])}"
        case "object":
            # The latter where the names have a pattern.
            patterns = list(value.get("patternProperties", {}).values())
            inner = value.get("additionalProperties") or next(iter(patterns), None)
            return f"name to {_type(inner)}" if isinstance(inner, dict) else "mapping"
        case "string":
            return {"path": "path", "password": "secret"}.get(value.get("format", ""), "text")
        case "integer" | "number":
            return {"integer": "integer", "number": "number"}[value["type"]] + _bounds(value)
        case "boolean":
            return "true, false"
        case other:
            return str(other)


def _bounds(value: dict[str, Any]) -> str:
    low = value.get("minimum", value.get("exclusiveMinimum"))
    high = value.get("maximum")
    if low is None and high is None:
        return ""
    above = "over " if "exclusiveMinimum" in value else ""
    if low is not None and high is not None:
        return f", {above}{_number(low)} to {_number(high)}"
    return f", {above}{_number(low)} or more" if high is None else f", up to {_number(high)}"


def _number(value: float) -> str:
    return "2³¹-1" if value == 2**31 - 1 else f"{value:,g}" if value < 1e6 else f"{value:,.0f}"


def _groups(value: dict[str, Any]) -> list[str]:
    """The groups of settings in a value."""
    found = [value["$ref"]] if "$ref" in value else []
    for part in (*value.get("anyOf", ()), *value.get("oneOf", ())):
        found += _groups(part)
    return found


def _link(reference: str) -> str:
    name = reference.rsplit("/", 1)[1]
    return f"[{_KINDS.get(name) or name.removesuffix('Config')}](#{name.lower()})"


def _what(value: dict[str, Any]) -> str:
    if "const" in value:
        return "Names the kind."
    if "description" in value:
        return " ".join(value["description"].split())
    texts = [nodes()[group.rsplit("/", 1)[1]]["description"] for group in _groups(value)]
    return " ".join(texts[0].split("\n\n")[0].split()) if texts else ""


def main() -> None:
    """Write the page's tables anew."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
