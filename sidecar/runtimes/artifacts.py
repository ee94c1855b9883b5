"""What a model file is, before a library is asked to load it.

Libraries answer a wrong file with "Protobuf parsing failed" or "failed finding central directory";
some crash, and torch loads weights with flipped bits without a word. So the kind is read from the
file's first bytes, and damage is looked for, here.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import ArtifactError

#: kind → what people call it, and the ``kind:`` (and ``format:``) that serves it.
DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "onnx": ("an ONNX model", "kind: onnxruntime (or kind: tensorrt, which builds an engine)"),
    "ort": ("an ORT-format model", "kind: onnxruntime"),
    "torch_exported": ("a PyTorch exported program", "kind: pytorch"),
    "torch_aoti": ("an AOTInductor package", "kind: pytorch"),
    "torch_torchscript": ("a TorchScript archive", "kind: pytorch"),
    "torch_pickle": (
        "a PyTorch checkpoint (a pickle in a zip)",
        "kind: pytorch with a factory, if it holds a state_dict",
    ),
    "torch_pickle_legacy": (
        "a PyTorch checkpoint of the old format (a bare pickle)",
        "kind: pytorch with a factory, if it holds a state_dict",
    ),
    "tensorrt_engine": ("a TensorRT engine", "kind: tensorrt"),
    "safetensors": ("a safetensors file", "a state_dict: torch.save(load_file(path), ...)"),
    "hdf5": ("an HDF5 file (Keras)", "a model exported to ONNX"),
    "tflite": ("a TensorFlow Lite model", "a model exported to ONNX"),
    "gzip": ("a gzip archive", "the file inside it: unpack it first"),
    "zip": ("a zip archive without a PyTorch model in it", "the model file itself"),
    "lfs_pointer": (
        "a Git LFS pointer, not the file it stands for",
        "the file itself: run `git lfs pull`",
    ),
    "html": ("an HTML page (a failed download?)", "the model file itself"),
    "unknown": ("of no kind known here", "an ONNX model, a PyTorch artifact or a TensorRT engine"),
}

_ZIP_MAGIC = b"PK\x03\x04"
_CHUNK_BYTES = 1 << 20


def sniff(path: Path) -> str:
    """Return the kind of a model file: a key of ``DESCRIPTIONS``.

    Raises:
        ArtifactError: it is missing, unreadable, a folder, empty, or a truncated archive or model.
    """
    try:
        if path.is_dir():
            message = f"{path.name} is a folder; `path` must name the model file in it"
            raise ArtifactError(message)
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        message = f"{path} does not exist"
        raise ArtifactError(message) from None
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise ArtifactError(message) from None
    if not head:
        message = f"{path.name} is empty (0 bytes)"
        raise ArtifactError(message)
    if head.startswith(_ZIP_MAGIC):
        return _sniff_zip(path)
    return _sniff_magic(head) or _sniff_onnx(path)


def _sniff_magic(head: bytes) -> str | None:
    start = head.lstrip()[:64].lower()
    if head.startswith(b"version https://git-lfs"):
        return "lfs_pointer"
    if start.startswith((b"<!doctype html", b"<html")):
        return "html"
    if head.startswith((b"ftrt", b"ptrt")):
        return "tensorrt_engine"
    if head[4:8] == b"ORTM":
        return "ort"
    if head[4:8] == b"TFL3":
        return "tflite"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "hdf5"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    # Pickle protocol 2 to 5, and torch's magic number as the first object.
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "torch_pickle_legacy"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30:
        return "safetensors"
    return None


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            # Torch's archives put everything under one folder, whose name says nothing.
            names = {name.partition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        size = path.stat().st_size
        message = f"{path.name} is a truncated archive: its first {size} bytes are there, its "
        message += "table of contents is not; copy or export it again"
        raise ArtifactError(message) from None
    except (NotImplementedError, ValueError, struct.error, OSError):
        message = f"{path.name} is a damaged archive: its table of contents cannot be read; copy "
        message += "or export it again"
        raise ArtifactError(message) from None
    if any(name.startswith("data/aotinductor/") for name in names):
        return "torch_aoti"
    if "serialized_exported_program.json" in archive.namelist() or any(
        name.startswith("models/") and name.endswith(".json") for name in names
    ):
        return "torch_exported"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torch_torchscript"
    return "torch_pickle" if "data.pkl" in names else "zip"


def _sniff_onnx(path: Path) -> str:
    """``onnx`` for a whole ``ModelProto``; a truncated one is an error of its own."""
    with _mapped(path) as data:
        if data[0] not in {0x08, 0x12, 0x3A}:  # ir_version, producer_name, graph: what comes first
            return "unknown"
        found: set[int] = set()
        try:
            for field, _, end in _fields(data, 0, len(data)):
                if end > len(data):
                    if field in found or field not in {7, 8, 14, 20, 25}:
                        return "unknown"
                    message = f"{path.name} is a truncated ONNX model: a part of it ends at byte "
                    message += f"{end}, the file at {len(data)}; copy or export it again"
                    raise ArtifactError(message)
                found.add(field)
        except ValueError:
            return "unknown"
    # 7 is the graph, 1 the ir_version: without both, other protobufs would pass.
    return "onnx" if {1, 7} <= found else "unknown"


def require(path: Path, accepted: Collection[str], kind: str) -> str:
    """Return the file's kind if ``accepted`` has it.

    Args:
        path: the artifact.
        accepted: keys of ``DESCRIPTIONS`` that the runtime loads.
        kind: the runtime's ``kind``, for the message.

    Raises:
        ArtifactError: as ``sniff``; or the file is of another kind: says which, and what serves it.
    """
    found = sniff(path)
    if found in accepted:
        return found
    what, use = DESCRIPTIONS[found]
    wanted = " or ".join(DESCRIPTIONS[name][0] for name in sorted(accepted))
    message = f"{path.name} is {what}; kind: {kind} needs {wanted}. Use {use}"
    raise ArtifactError(message)


def check_zip_checksums(path: Path) -> bool:
    """Read a PyTorch archive once and compare its checksums: torch loads damaged weights silently.

    Returns:
        False when the archive was written without checksums (torch can be told so): not checked.

    Raises:
        ArtifactError: some entry is damaged; says which.
    """
    good, bad = 0, []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.file_size:
                continue
            try:
                with archive.open(info) as entry:
                    while entry.read(_CHUNK_BYTES):
                        pass
                good += 1
            except Exception:  # noqa: BLE001 - damaged headers reach every decompressor's errors
                bad.append(info.filename)
    if bad and good:
        message = f"{path.name} is damaged: the checksum of {bad[0]} in it does not match"
        message += f" (nor those of {len(bad) - 1} more)" if len(bad) > 1 else ""
        message += "; copy or export it again"
        raise ArtifactError(message)
    return not bad


# --- ONNX without the onnx package ----------------------------------------------------------------
# The base install has no `onnx`. Three facts are wanted that ONNX Runtime does not tell (is a rank
# unknown or zero; which files hold the weights; is the file whole), so the protobuf is walked here,
# by field number, without copying: tensors are skipped over by their length.


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What ONNX Runtime's API does not tell about a model file.

    Attributes:
        unranked: inputs and outputs whose rank the file does not say.
        external: files beside the model that hold weights, as the model names them.
    """

    unranked: frozenset[str]
    external: tuple[str, ...]


def onnx_facts(path: Path) -> OnnxFacts:
    """Read ``OnnxFacts`` from an ONNX file that ``sniff`` accepted.

    Raises:
        ArtifactError: the protobuf inside it is damaged.
    """
    unranked: set[str] = set()
    external: dict[str, None] = {}
    try:
        with _mapped(path) as data:
            for field, start, end in _fields(data, 0, len(data)):
                if field != 7:
                    continue
                for part, low, high in _fields(data, start, end):
                    if part == 5:  # initializer
                        external.update(dict.fromkeys(_external_location(data, low, high)))
                    elif part in {11, 12}:  # input, output
                        name, ranked = _value_info(data, low, high)
                        if not ranked:
                            unranked.add(name)
    except (ValueError, IndexError):
        message = f"{path.name} is a damaged ONNX model (its protobuf does not parse); copy or "
        message += "export it again"
        raise ArtifactError(message) from None
    return OnnxFacts(frozenset(unranked), tuple(external))


def _external_location(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    for field, low, high in _fields(data, start, end):
        if field != 13:  # TensorProto.external_data, key/value pairs
            continue
        pair = {part: data[a:b] for part, a, b in _fields(data, low, high)}
        if pair.get(1) == b"location":
            yield pair.get(2, b"").decode("utf-8", "replace")


def _value_info(data: mmap.mmap, start: int, end: int) -> tuple[str, bool]:
    name, ranked = "", True
    for field, low, high in _fields(data, start, end):
        if field == 1:
            name = data[low:high].decode("utf-8", "replace")
        elif field == 2:  # TypeProto; 1 is tensor_type, whose 2 is the shape
            for kind, a, b in _fields(data, low, high):
                if kind == 1:
                    ranked = any(part == 2 for part, _, _ in _fields(data, a, b))
    return name, ranked


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of each field's payload; ``end`` may lie past the file.

    Raises:
        ValueError: the bytes are not protobuf.
    """
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        field, wire = tag >> 3, tag & 7
        if not field:
            message = "field number 0"
            raise ValueError(message)
        if wire == 0:
            begin = position
            _, position = _varint(data, position, end)
        elif wire == 2:
            size, begin = _varint(data, position, end)
            position = begin + size
        elif wire in {1, 5}:
            begin = position
            position += 8 if wire == 1 else 4
        else:
            message = f"wire type {wire}"
            raise ValueError(message)
        yield field, begin, position
    if position != end and end != len(data):
        message = "a field ends beyond its message"
        raise ValueError(message)


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    message = "a varint does not end"
    raise ValueError(message)


class _mapped:  # noqa: N801 - used like the function `open`
    """``with _mapped(path) as data``: the file, mapped read-only."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self._data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> mmap.mmap:
        return self._data

    def __exit__(self, *_: object) -> None:
        self._data.close()
        self._file.close()


# --- identity and size ----------------------------------------------------------------------------


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files an artifact consists of: itself, then the weights an ONNX model names.

    Raises:
        ArtifactError: as ``sniff``; or a file that the model names is missing.
    """
    if sniff(path) != "onnx":
        return (path,)
    files = [path]
    for location in onnx_facts(path).external:
        beside = path.parent / location
        if not beside.is_file():
            message = f"{path.name} keeps weights in {location}, which is not beside it; copy "
            message += "both files to the same folder"
            raise ArtifactError(message)
        files.append(beside)
    return tuple(files)


def size_bytes(path: Path) -> int:
    """Return the size of all files of an artifact (see ``files_of``)."""
    return sum(file.stat().st_size for file in files_of(path))


def fingerprint(path: Path) -> str:
    """Return a SHA-256 (hex) over an artifact: all its files, with their names and sizes.

    Sizes and names go in as well, so that moving bytes between files changes the fingerprint. The
    artifact's own name does not: a renamed copy is the same model.

    Raises:
        ArtifactError: as ``files_of``.
    """
    digest = hashlib.sha256()
    for index, file in enumerate(files_of(path)):
        header = ["" if index == 0 else file.name, file.stat().st_size]
        digest.update(json.dumps(header).encode())
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
