"""YAML with line numbers: what ``config.load`` reads, and where each value was written.

Stricter than PyYAML where a silent reading would be a wrong one: a key given twice is a mistake
(PyYAML keeps the last), and ``2026-01-31`` stays the text it is (PyYAML makes a date).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sidecar.errors import ConfigError, Problem

# Far beyond any real file; they bound what aliases that refer to themselves can expand to.
_BYTES_MAX = 4 * 2**20
_VALUES_MAX = 100_000
_DEPTH_MAX = 64

_MERGE = "tag:yaml.org,2002:merge"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


@dataclass(frozen=True, slots=True)
class Text:
    """A file's plain values.

    Attributes:
        tree: dicts, lists and scalars.
        lines: path of a value (``models[0].name``) to the line it stands on, from 1.
        problems: mistakes that leave the file readable (a key given twice).
    """

    tree: Any
    lines: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: str) -> int | None:
        """The line of ``path``, or of the nearest node around it (a missing key has none)."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path)


# The pure-Python loader: the C one ends the process on input that is nested deeply enough.
class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML reads this class attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read(path: Path) -> Text:
    """Read a YAML file.

    Raises:
        ConfigError: it cannot be read, is not YAML, or expands beyond the bounds above.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise _mistake(source, f"cannot be read: {error.strerror}") from None
    if len(data) > _BYTES_MAX:
        raise _mistake(source, f"is larger than {_BYTES_MAX >> 20} MiB: is it the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"is not text: byte {error.start} is not UTF-8"
        raise _mistake(source, message, line) from None
    return parse(text, source)


def parse(text: str, source: str) -> Text:
    """Read YAML text (see ``read``)."""
    try:
        loader = _Loader(text)  # checks every character, so it may raise as well
        node = loader.get_single_node()
        if node is None:
            return Text(None, {})
        lines, problems = _walk(node, source)
        return Text(loader.construct_document(node), lines, problems)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"holds the character U+{error.character:04X}: is it the right file?"
        raise _mistake(source, message, line) from None
    except yaml.MarkedYAMLError as error:
        raise _mistake(source, *_yaml_message(error)) from None
    except RecursionError:
        raise _mistake(source, "is nested too deeply") from None
    except (ValueError, TypeError, yaml.YAMLError) as error:
        # An explicit tag that its value contradicts (!!int abc); YAML gives no line here.
        raise _mistake(source, f"not valid YAML: {error}") from None


def _mistake(source: str, message: str, line: int | None = None) -> ConfigError:
    return ConfigError(source, [Problem("", message, line)])


def _yaml_message(error: yaml.MarkedYAMLError) -> tuple[str, int | None]:
    mark = error.problem_mark or error.context_mark
    column = f" (column {mark.column + 1})" if mark else ""
    message = f"not valid YAML: {error.problem or error.context}{column}"
    if error.problem and error.context and error.context_mark:
        message += f", {error.context} that begins on line {error.context_mark.line + 1}"
    return message, None if mark is None else mark.line + 1


def _walk(root: yaml.Node, source: str) -> tuple[dict[str, int], list[Problem]]:
    """Lines of all values, and keys given twice. Iterative, for the tree may be hostile."""
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    stack: list[tuple[str, yaml.Node, int]] = [("", root, 0)]
    count = 0
    while stack:
        path, node, depth = stack.pop()
        count += 1
        line = node.start_mark.line + 1
        if depth > _DEPTH_MAX:
            raise _mistake(source, "is nested too deeply", line)
        if count > _VALUES_MAX:
            raise _mistake(source, f"expands to more than {_VALUES_MAX} values", line)
        lines.setdefault(path, line)
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                stack.append((f"{path}[{index}]", item, depth + 1))
        elif isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                    stack.append((path, value, depth + 1))
                    continue
                child = f"{path}.{key.value}" if path else str(key.value)
                line = key.start_mark.line + 1
                if key.value in first:
                    message = f"is given twice, first on line {first[key.value]}"
                    problems.append(Problem(child, message, line))
                first.setdefault(key.value, line)
                lines.setdefault(child, line)
                stack.append((child, value, depth + 1))
    return lines, problems
