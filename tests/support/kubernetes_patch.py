"""What a Kubernetes API server does to documents: patches, selectors, after the published rules.

JSON patch: RFC 6902; merge patch: RFC 7386; label selectors: the Kubernetes documentation.
"""

from __future__ import annotations

import copy
import re
from typing import Any


class PatchError(Exception):
    """The patch cannot be applied to this document (which the server answers with 422)."""


def json_patch(document: Any, operations: list[dict[str, Any]]) -> Any:
    """All operations or none; ``move`` and ``copy`` are not used here, and refused."""
    document = copy.deepcopy(document)
    for operation in operations:
        parts = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        if not parts:
            message = "the whole document is not replaced here"
            raise PatchError(message)
        parent = document
        for part in parts[:-1]:
            parent = _step(parent, part)
        _apply(parent, parts[-1], operation)
    return document


def _step(parent: Any, part: str) -> Any:
    try:
        return parent[int(part)] if isinstance(parent, list) else parent[part]
    except (KeyError, IndexError, ValueError, TypeError):
        message = f"doc is missing path: {part}"
        raise PatchError(message) from None


def _apply(parent: Any, key: str, operation: dict[str, Any]) -> None:
    kind = operation["op"]
    if kind == "test":
        if _step(parent, key) != operation["value"]:
            message = f"testing value {operation['path']} failed"
            raise PatchError(message)
    elif kind == "add" and isinstance(parent, dict):
        parent[key] = copy.deepcopy(operation["value"])
    elif kind == "add" and isinstance(parent, list):
        parent.insert(len(parent) if key == "-" else int(key), copy.deepcopy(operation["value"]))
    elif kind == "replace":
        _step(parent, key)
        parent[int(key) if isinstance(parent, list) else key] = copy.deepcopy(operation["value"])
    elif kind == "remove":
        _step(parent, key)
        del parent[int(key) if isinstance(parent, list) else key]
    else:
        message = f"unexpected kind: {kind}"
        raise PatchError(message)


def merge_patch(document: Any, patch: Any) -> Any:
    """RFC 7386: ``null`` removes, lists are replaced whole."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


_SET = re.compile(r"^\s*([\w./-]+)\s+(in|notin)\s+\(([^)]*)\)\s*$")


def selects(selector: str, labels: dict[str, str]) -> bool:
    """Whether a ``labelSelector`` of a LIST takes an object with these labels."""
    for requirement in re.split(r",(?![^(]*\))", selector):
        if not requirement.strip():
            continue
        if match := _SET.match(requirement):
            key, how, values = match.groups()
            within = labels.get(key) in {value.strip() for value in values.split(",")}
            if within != (how == "in"):
                return False
        elif "!=" in requirement:
            key, value = requirement.split("!=")
            if labels.get(key.strip()) == value.strip():
                return False
        elif "=" in requirement:
            key, value = re.split(r"==?", requirement)
            if labels.get(key.strip()) != value.strip():
                return False
        elif (requirement.strip().lstrip("!") in labels) == requirement.strip().startswith("!"):
            return False
    return True
