"""The chart's values.yaml as a list: every key with its default and the comment above it.

The README's table and the schema's descriptions are made of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "model-sidecar"
VALUES = CHART / "values.yaml"

_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][\w]*):(?P<rest>.*)$")


@dataclass(frozen=True)
class Value:
    """One key of values.yaml.

    Attributes:
        path: as users write it (``image.tag``).
        default: what values.yaml gives; a mapping where there are commented keys below.
        comment: the line above it; empty where there is none.
        is_group: whether keys below it have comments of their own.
    """

    path: str
    default: Any
    comment: str
    is_group: bool


def tree() -> dict[str, Any]:
    """The default values."""
    return yaml.safe_load(VALUES.read_text(encoding="utf-8"))


def values() -> list[Value]:
    """Every key that has a comment, from the top of the file to its end.

    Keys without one stand inside of a default that is shown as a whole (``resources.requests``).
    """
    commented = _comments(VALUES.read_text(encoding="utf-8"))
    paths = list(commented)
    defaults = tree()
    return [
        Value(
            path=path,
            default=_at(defaults, path),
            comment=comment,
            is_group=any(other.startswith(f"{path}.") for other in paths),
        )
        for path, comment in commented.items()
    ]


def uncommented() -> list[str]:
    """Keys that lack a comment, although a key beside them has one, or that stand at the top."""
    text = VALUES.read_text(encoding="utf-8")
    commented = _comments(text)
    return [
        path
        for path in _comments(text, every=True)
        if path not in commented
        and (
            "." not in path
            or any(other.rpartition(".")[0] == path.rpartition(".")[0] for other in commented)
        )
    ]


def _comments(text: str, *, every: bool = False) -> dict[str, str]:
    found: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above = line.strip().removeprefix("#").strip()
            continue
        if (match := _KEY.match(line)) is not None:
            indent = len(match["indent"])
            parents = [(depth, name) for depth, name in parents if depth < indent]
            parents.append((indent, match["key"]))
            if above or every:
                found[".".join(name for _, name in parents)] = above
        above = ""
    return found


def _at(node: Any, path: str) -> Any:
    for key in path.split("."):
        node = node[key]
    return node
