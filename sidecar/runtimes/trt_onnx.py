"""What the engine cache must know of an ONNX file: all its bytes, wherever they lie.

Weights of large models lie in files beside the ``.onnx``; an engine is stale when any of them
changes. The names of those files are in the protobuf. They are read by walking its wire format,
which skips over weights without copying them: the ``onnx`` package would be a dependency of serving
for this alone, and it loads the whole model (2 GiB) to tell a few names.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import ArtifactError
from sidecar.runtimes.artifacts import require

#: message → field number → the message it holds; only what leads to an external file or a node.
#: Numbers: onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
_GRAPH = 7
_NODE_NAME, _NODE_OPERATOR, _NODE_DOMAIN = 3, 4, 7
_KEY, _VALUE = 1, 2
_DEPTH_MAX = 100  # as protobuf's own limit; a graph in a graph adds three


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the graph, or of a graph inside it."""

    operator: str
    name: str
    domain: str


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An ONNX file as it was when read.

    Attributes:
        path: the ``.onnx``.
        sha256: over it and its external files, hexadecimal.
        nodes: every operator.
        stamps: (file, size, modification time in ns) of each, to notice a change.
    """

    path: Path
    sha256: str
    nodes: tuple[Node, ...]
    stamps: tuple[tuple[Path, int, int], ...]

    def check_unchanged(self) -> None:
        """Raise ``ArtifactError`` if a file was replaced since: an engine of it would be wrong."""
        for path, size, modified_ns in self.stamps:
            try:
                now = path.stat()
            except OSError:
                now = None
            if now is None or (now.st_size, now.st_mtime_ns) != (size, modified_ns):
                message = f"{path} changed while its engine was being built; start again, and "
                message += "replace model files by renaming, so that nobody sees them half written"
                raise ArtifactError(message)


def read_model(path: Path) -> OnnxModel:
    """Read an ONNX file's operators and fingerprint.

    Raises:
        ArtifactError: it is missing, empty, no ONNX, cut off, or an external file is missing.
    """
    require(path, {"onnx"}, "tensorrt, with a path that ends in .onnx,")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            reader.read()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise ArtifactError(message) from None
    except _MalformedError as error:
        message = f"{path} is not an ONNX model, or was cut off: {error}"
        raise ArtifactError(message) from None
    files = [path, *(_beside(path, location) for location in sorted(reader.locations))]
    digest = hashlib.sha256()
    stamps = []
    for file_path in files:
        state, part = _hash(file_path, path)
        digest.update(part)
        stamps.append((file_path, *state))
    return OnnxModel(path, digest.hexdigest(), tuple(reader.nodes), tuple(stamps))


def _beside(model: Path, location: str) -> Path:
    # A model from elsewhere must not make us read any file of this machine. Links are followed:
    # whoever could put one there could put the file there.
    parts = Path(location).parts
    if not parts or Path(location).is_absolute() or ".." in parts:
        message = (
            f"{model} keeps weights in {location!r}, outside its own folder; put them beside it"
        )
        raise ArtifactError(message)
    return model.parent / location


def _hash(path: Path, model: Path) -> tuple[tuple[int, int], bytes]:
    try:
        with path.open("rb") as file:
            state = path.stat()
            digest = hashlib.file_digest(file, "sha256")
    except OSError as error:
        message = f"{model} needs {path.name}, which holds weights: {error.strerror or error}"
        raise ArtifactError(message) from None
    return (state.st_size, state.st_mtime_ns), digest.digest()


class _MalformedError(Exception):
    """Not the wire format."""


class _Reader:
    """Walks a ``ModelProto``."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.nodes: list[Node] = []
        self.locations: set[str] = set()

    def read(self) -> None:
        graphs = 0
        for number, start, end in self._fields(0, len(self._data)):
            graphs += number == _GRAPH
            child = _CHILDREN["model"].get(number)
            if child is not None:
                self._walk(child, start, end, 1)
        if not graphs:
            message = "it holds no graph"
            raise _MalformedError(message)

    def _walk(self, kind: str, start: int, end: int, depth: int) -> None:
        if depth > _DEPTH_MAX:
            message = "it is nested too deeply"
            raise _MalformedError(message)
        if kind == "external":
            self._external(start, end)
            return
        texts: dict[int, str] = {}
        for number, first, last in self._fields(start, end):
            child = _CHILDREN[kind].get(number)
            if child is not None:
                self._walk(child, first, last, depth + 1)
            elif kind == "node" and number in {_NODE_NAME, _NODE_OPERATOR, _NODE_DOMAIN}:
                texts[number] = self._text(first, last)
        if kind == "node":
            operator = texts.get(_NODE_OPERATOR, "")
            node = Node(operator, texts.get(_NODE_NAME, ""), texts.get(_NODE_DOMAIN, ""))
            self.nodes.append(node)

    def _external(self, start: int, end: int) -> None:
        texts = {number: self._text(*span) for number, *span in self._fields(start, end)}
        if texts.get(_KEY) == "location":
            self.locations.add(texts.get(_VALUE, ""))

    def _text(self, start: int, end: int) -> str:
        return self._data[start:end].decode("utf-8", errors="replace")

    def _fields(self, position: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (field number, start, end) of each length-delimited field; skip the others."""
        while position < end:
            tag, position = self._varint(position, end)
            number, wire_type = tag >> 3, tag & 7
            if number == 0:
                message = f"no field has the number 0 (byte {position})"
                raise _MalformedError(message)
            if wire_type == 2:
                size, position = self._varint(position, end)
                if size > end - position:
                    message = f"{size} bytes announced at byte {position}, {end - position} there"
                    raise _MalformedError(message)
                yield number, position, position + size
                position += size
            elif wire_type == 0:
                _, position = self._varint(position, end)
            elif wire_type in {1, 5}:
                position += 8 if wire_type == 1 else 4
            else:
                message = f"wire type {wire_type} at byte {position}"
                raise _MalformedError(message)
        if position != end:
            message = f"a field ends beyond byte {end}"
            raise _MalformedError(message)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end and shift < 70:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        message = f"a number does not end (byte {position})"
        raise _MalformedError(message)
