"""Tensors in files and on screens, for ``sidecar infer``."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sidecar.errors import InvalidRequestError, SidecarError
from sidecar.protocol.datatypes import BY_NAME, DataType, of_array
from sidecar.protocol.json_data import array_from_json, array_to_json, parse_json
from sidecar.runtimes.base import Array, TensorSpec

_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"


class InputError(SidecarError):
    """The input given to ``infer`` cannot be sent; says what is wrong with it."""


def read(data: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """Read npz, npy (one input) or JSON, told apart by their first bytes.

    Args:
        data: the file.
        specs: the model's inputs by name; may be empty where the server cannot say.

    Returns:
        Name → array of a dtype of the protocol (BYTES: object of ``bytes``, or fixed strings).

    Raises:
        InputError: it cannot be read, or does not fit the model's datatypes.
    """
    if data.startswith((_ZIP, _NPY)):
        arrays = _read_numpy(data, specs)
        return {name: _fit(name, array, specs.get(name)) for name, array in arrays.items()}
    try:
        return _read_json(data, specs)
    except InvalidRequestError as error:
        raise InputError(str(error)) from None


def _read_numpy(data: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    try:
        # Pickles run code when they are read: never.
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        message = f"the input is not a npz or npy file that can be read: {error}"
        raise InputError(message) from None
    if len(specs) != 1:
        message = "an npy file holds one unnamed array, and the model does not have one input: "
        message += "write an npz (numpy.savez(file, name=array))"
        raise InputError(message)
    return {next(iter(specs)): loaded}


def _fit(name: str, array: Array, spec: TensorSpec | None) -> Array:
    """``array`` in the model's datatype where that loses no more than precision."""
    if spec is None or spec.datatype not in BY_NAME:
        return _known(name, array)
    wanted = BY_NAME[spec.datatype]
    if wanted.name == "BF16" and array.dtype == np.dtype("V2"):
        return array.view(ml_dtypes.bfloat16)  # npz files do not know the type
    if array.dtype.kind in "OSUT" or wanted.item_bytes == 0:
        return _known(name, array)  # the server says best what is wrong, if anything is
    if array.dtype != wanted.numpy and np.can_cast(array.dtype, wanted.numpy, "same_kind"):
        # Integers may not fit, which numpy would not say; floats only lose digits.
        is_float = wanted.numpy.kind not in "iu"
        if is_float or np.can_cast(array.dtype, wanted.numpy, "safe"):
            return array.astype(wanted.numpy)
        limits: Any = np.iinfo(wanted.numpy.name)
        if array.size == 0 or (array.min() >= limits.min and array.max() <= limits.max):
            return array.astype(wanted.numpy)
    return _known(name, array)


def _known(name: str, array: Array) -> Array:
    try:
        of_array(array)
    except KeyError:
        message = f"input {name!r}: the protocol has no datatype for {array.dtype}"
        raise InputError(message) from None
    return array


def _read_json(data: bytes, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    document = parse_json(data, "the input (no npz or npy, so read as JSON)")
    if not isinstance(document, dict):
        message = 'the input must be a JSON object: {"inputs": [...]} or {"name": [[...]]}'
        raise InputError(message)
    if isinstance(document.get("inputs"), list) and "inputs" not in specs:
        return dict(_protocol_input(item) for item in document["inputs"])
    return {name: _plain_input(name, value, specs) for name, value in document.items()}


def _protocol_input(item: Any) -> tuple[str, Array]:
    try:
        name, datatype = str(item["name"]), BY_NAME[item["datatype"]]
        shape = tuple(int(size) for size in item["shape"])
        flat = _from_json(item["data"], datatype, name)
    except (KeyError, TypeError, ValueError) as error:
        message = f"an input needs name, datatype, shape and data, all well-formed: {error}"
        raise InputError(message) from None
    try:
        return name, flat.reshape(shape)
    except ValueError:
        message = f"input {name!r}: {flat.size} values do not make the shape {list(shape)}"
        raise InputError(message) from None


def _plain_input(name: str, value: Any, specs: Mapping[str, TensorSpec]) -> Array:
    if name not in specs:
        known = ", ".join(specs) or "unknown to the server: write a request of the protocol"
        message = f"the model has no input {name!r}; its inputs: {known}"
        raise InputError(message)
    flat = _from_json(value, BY_NAME[specs[name].datatype], name)
    return flat.reshape(_nested_shape(value))  # array_from_json has refused ragged lists


def _from_json(value: Any, datatype: DataType, name: str) -> Array:
    where = f"input {name!r}"
    if datatype.contents_field is None:  # FP16, BF16: no JSON on the wire, but here they are text
        return array_from_json(value, BY_NAME["FP32"], where).astype(datatype.numpy)
    return array_from_json(value, datatype, where)


def _nested_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


# --- writing --------------------------------------------------------------------------------------


def write(path: Path, outputs: Mapping[str, Array], as_json: dict[str, Any]) -> None:
    """Write outputs as npz or JSON, by the file's ending.

    Args:
        path: ends in .npz or .json (see ``check_target``).
        outputs: what the server answered.
        as_json: the same as a JSON document.

    Raises:
        InputError: the file cannot be written, or cannot hold a value.
    """
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        # A dict of arrays: mypy takes them for allow_pickle otherwise.
        arrays: dict[str, Any] = {name: _for_npz(name, array) for name, array in outputs.items()}
        np.savez(buffer, **arrays)
        data = buffer.getvalue()
    else:
        data = (json.dumps(as_json, indent=2) + "\n").encode()
    try:
        path.write_bytes(data)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise InputError(message) from None


def check_target(path: Path) -> None:
    """Refuse a file's ending before anything is sent."""
    if path.suffix not in {".npz", ".json"}:
        message = f"{path}: write to a file that ends in .npz or .json"
        raise InputError(message)


def _for_npz(name: str, array: Array) -> Array:
    if array.dtype == ml_dtypes.bfloat16:
        return array.astype(np.float32)  # exact; npz would keep nothing but raw bytes
    if array.dtype.kind != "O":
        return array
    if any(bytes(value).endswith(b"\0") for value in array.ravel()):
        message = f"output {name!r}: numpy drops NUL at the end of a string; write .json instead"
        raise InputError(message)
    return array.astype("S")  # objects would be pickled


def to_json(array: Array) -> list[Any]:
    """Return the values as a flat list, row-major, as in a JSON response of the protocol."""
    datatype = of_array(array)
    if datatype.contents_field is None:
        array, datatype = array.astype(np.float32), BY_NAME["FP32"]
    if datatype.item_bytes == 0:
        return [bytes(value).decode("utf-8", "backslashreplace") for value in array.ravel()]
    values: list[Any] = json.loads(array_to_json(array, datatype, "output"))
    return values


def show(array: Array, *, width: int) -> str:
    """Return the values on one short line."""
    if array.dtype.kind == "O":
        texts = [repr(bytes(value).decode("utf-8", "backslashreplace")) for value in array.flat]
        text = f"[{', '.join(texts[:20])}{', …' if len(texts) > 20 else ''}]"
    else:
        text = np.array2string(
            array, precision=4, separator=", ", threshold=20, edgeitems=3, max_line_width=10**6
        )
        text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
