"""One case as a safetensors file: plain arrays and text, nothing that is executed when it is read.

Layout (version 1):

- Each kept tensor is one entry: ``inputs/NAME`` or ``outputs/VARIANT/NAME``.
- BYTES, which safetensors does not know, are two: the elements' bytes one after another (U8), and,
  as ``KEY.offsets`` (I64, one more than there are elements), where each begins and the last ends.
- The header's metadata has one text, ``sidecar_case``: a JSON object with everything else
  (``CaseEntry``), and ``tensors``, which says what each key is: role, variant, name, datatype of
  the protocol, shape. With it the index can be made again from the files alone.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sidecar.cases.case import Array, Case, CaseEntry, CaseError, is_case_id
from sidecar.protocol.datatypes import BY_NAME, of_array

LAYOUT_VERSION = 1
SUFFIX = ".safetensors"
FOLDER = "shards"
_METADATA = "sidecar_case"
_HEADER_BYTES_MAX = 16 * 2**20
_FIELDS = (
    "id", "model", "candidate", "baseline", "reasons", "request_id", "time_ns", "info",
    "input_hashes", "output_hashes", "field_uses", "limited",
)  # fmt: skip


def shard_path(folder: Path, case_id: str) -> Path:
    """Return where a case lies.

    Raises:
        CaseError: ``case_id`` could lead out of the folder.
    """
    if not is_case_id(case_id):
        message = f"{case_id!r} is not the id of a case: letters, digits, - and _ only"
        raise CaseError(message)
    return folder / FOLDER / f"{case_id}{SUFFIX}"


def plain_array(name: str, array: Array) -> Array:
    """Return a contiguous, little-endian copy in a datatype of the protocol.

    Args:
        name: for the message.
        array: any shape; texts (numpy's U and S, objects of ``str``) become BYTES.

    Raises:
        CaseError: it has no such datatype.
    """
    if array.dtype.kind in "SUTO":
        flat = np.empty(array.size, object)
        flat[:] = [_to_bytes(name, value) for value in array.ravel().tolist()]
        return flat.reshape(array.shape)
    little = np.array(array, dtype=array.dtype.newbyteorder("<"), order="C")
    try:
        of_array(little)
    except KeyError:
        message = f"tensor {name!r} is of type {array.dtype}, which no case can hold"
        raise CaseError(message) from None
    return little


def _to_bytes(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    message = f"tensor {name!r} holds a {type(value).__name__}, which no case can hold"
    raise CaseError(message)


def array_bytes(array: Array) -> int:
    """Return how much of a file a tensor takes."""
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(len(value) for value in array.flat) + 8 * (array.size + 1)


def encode(case: Case) -> bytes:
    """Return a case as the bytes of a file; ``case.keys`` are set.

    Its arrays are as ``plain_array`` makes them.
    """
    from safetensors.numpy import save

    tensors: dict[str, Array] = {}
    specs = []
    for role, variant, name, array in _kept(case):
        key = _new_key(tensors, f"{role}s/{variant}/{name}" if variant else f"{role}s/{name}")
        if array.dtype.kind == "O":
            values: list[bytes] = list(array.flat)
            ends = np.cumsum([0, *(len(value) for value in values)], dtype="<i8")
            tensors[key] = np.frombuffer(b"".join(values), np.uint8)
            tensors[f"{key}.offsets"] = ends
        else:
            tensors[key] = array
        specs.append(
            {
                "key": key, "role": role, "variant": variant, "name": name,
                "datatype": of_array(array).name, "shape": list(array.shape),
            }
        )  # fmt: skip
    case.keys = tuple(tensors)
    document = {
        "layout": LAYOUT_VERSION,
        **{name: getattr(case, name) for name in _FIELDS},
        "metrics": {name: finite_or_text(value) for name, value in case.metrics.items()},
        "tensors": specs,
    }
    text = json.dumps(document, default=str)
    data: bytes = save(tensors, {_METADATA: text})
    return data


def _kept(case: Case) -> list[tuple[str, str, str, Array]]:
    found = [("input", "", name, array) for name, array in (case.inputs or {}).items()]
    for variant, outputs in case.outputs.items():
        found += [("output", variant, name, array) for name, array in outputs.items()]
    return found


def _new_key(taken: Mapping[str, Array], wanted: str) -> str:
    """Slashes in names could make two keys equal, and one a string's offsets."""
    key, number = wanted, 1
    while key in taken or f"{key}.offsets" in taken or key.endswith(".offsets"):
        number += 1
        key = f"{wanted}~{number}"
    return key


def finite_or_text(value: float) -> float | str:
    """JSON has no infinities: they, and NaN, become text that ``float`` reads."""
    return float(value) if math.isfinite(value) else str(float(value))


# --- reading --------------------------------------------------------------------------------------


def read_entry(path: Path) -> CaseEntry:
    """Return what a file says of itself, reading no more than its header.

    Raises:
        CaseError: it is no case, or corrupt.
    """
    try:
        with path.open("rb") as file:
            document = _read_document(file)
            nbytes = path.stat().st_size
        return CaseEntry(**_entry_fields(document), path=path, nbytes=nbytes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CaseError(_unreadable(path, error)) from None


def read_case(path: Path) -> Case:
    """Return a case with its arrays.

    Raises:
        CaseError: it is no case, or corrupt, or the extra that reads it is not installed.
    """
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        message = "cases are read by an extra: pip install 'model-sidecar[monitor]'"
        raise CaseError(message) from None
    try:
        # Not mapped: a file that is cut off meanwhile would end the process.
        data = path.read_bytes()
        with path.open("rb") as file:
            document = _read_document(file)
        raw = dict(deserialize(data))  # type: ignore[no-untyped-call]
        case = Case(**_entry_fields(document), path=path, nbytes=len(data))
        for spec in document["tensors"]:
            array = _array(spec, raw)
            if spec["role"] == "input":
                case.inputs = case.inputs or {}
                case.inputs[spec["name"]] = array
            else:
                case.outputs.setdefault(spec["variant"], {})[spec["name"]] = array
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CaseError(_unreadable(path, error)) from None
    return case


def _read_document(file: BinaryIO) -> dict[str, Any]:
    (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
    if not 2 <= size <= _HEADER_BYTES_MAX:
        message = f"a header of {size} bytes"
        raise ValueError(message)
    header = json.loads(file.read(size))
    try:
        document = json.loads(header["__metadata__"][_METADATA])
    except (KeyError, TypeError):
        message = "a safetensors file, but not a case"
        raise ValueError(message) from None
    if document["layout"] != LAYOUT_VERSION:
        message = f"written in layout {document['layout']}, this version reads {LAYOUT_VERSION}"
        raise ValueError(message)
    document["keys"] = tuple(name for name in header if name != "__metadata__")
    return dict(document)


def _entry_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: document[name] for name in _FIELDS}
    fields["reasons"] = tuple(fields["reasons"])
    if not is_case_id(fields["id"]) or not fields["reasons"]:
        message = "it has no id or no reason"
        raise ValueError(message)
    fields["metrics"] = {name: float(value) for name, value in document["metrics"].items()}
    fields["keys"] = document["keys"]
    return fields


def _array(spec: Mapping[str, Any], raw: Mapping[str, Mapping[str, Any]]) -> Array:
    datatype = BY_NAME[spec["datatype"]]
    shape = tuple(int(size) for size in spec["shape"])
    data = raw[spec["key"]]["data"]
    if datatype.item_bytes:
        return np.frombuffer(data, datatype.numpy).reshape(shape)
    ends = np.frombuffer(raw[f"{spec['key']}.offsets"]["data"], "<i8").tolist()
    if ends[0] != 0 or ends[-1] != len(data) or sorted(ends) != ends:
        message = f"the offsets of {spec['key']!r} do not fit its bytes"
        raise ValueError(message)
    flat = np.empty(len(ends) - 1, object)
    flat[:] = [bytes(data[start:end]) for start, end in pairwise(ends)]
    return flat.reshape(shape)


def _unreadable(path: Path, error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else str(error) or type(error).__name__
    return f"{path} cannot be read as a case: {why}"
