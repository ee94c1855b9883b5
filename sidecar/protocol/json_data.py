"""JSON text and tensor data in JSON: bounded parsing, and lists to numpy arrays and back.

Python's JSON scanner and numpy's conversion of lists hold the interpreter's lock from start to end:
a document of 64 MiB would stop health checks and every other request for a second. So everything
large is done in slices, or through small Python functions, between which other threads get their
turn. A faster parser (orjson, simdjson) was rejected: none accepts NaN, which is data here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from sidecar.errors import InvalidRequestError
from sidecar.protocol.datatypes import DataType
from sidecar.runtimes.base import Array

#: Lists and objects in one document. Two bytes of text make an object of 56 to 80 bytes: without a
#: bound, a body within its limit could still take thirty times as much memory.
BRACKETS_MAX = 2_000_000
#: Documents above this are parsed so that other threads run meanwhile, at half the speed.
POLITE_BYTES = 256 * 1024
#: Elements converted in one go: a few milliseconds.
SLICE = 32_768
#: numpy's own limit is 64; no model has half of it.
RANK_MAX = 32


def parse_json(body: bytes | bytearray | memoryview, what: str) -> Any:
    """Parse UTF-8 JSON; ``NaN``, ``Infinity`` and ``-Infinity`` are accepted.

    Args:
        body: the text.
        what: how messages call it (``"the request's JSON"``).

    Raises:
        InvalidRequestError: not UTF-8, not JSON, a key given twice, nested too deeply, more than
            ``BRACKETS_MAX`` lists and objects, or a number of thousands of digits.
    """
    try:
        text = str(body, "utf-8")
    except UnicodeDecodeError as error:
        message = f"{what} is not UTF-8 (byte {error.start})"
        raise InvalidRequestError(message) from None
    if text.count("[") + text.count("{") > BRACKETS_MAX:
        message = f"{what} has more than {BRACKETS_MAX:,} brackets; send large tensors as binary"
        raise InvalidRequestError(message)
    hooks: dict[str, Any] = {"object_pairs_hook": _unique}
    if len(text) > POLITE_BYTES:
        # A call into Python per number is where the lock can change hands.
        hooks |= {"parse_float": _float, "parse_int": _int}
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        message = f"{what} is broken: {error.msg} at character {error.pos}"
        raise InvalidRequestError(message) from None
    except RecursionError:
        message = f"{what} is nested too deeply"
        raise InvalidRequestError(message) from None
    except ValueError:
        # The interpreter's own limit on the digits of an integer (4300).
        message = f"{what} holds an integer of thousands of digits; no datatype can"
        raise InvalidRequestError(message) from None


def _float(text: str) -> float:
    return float(text)


def _int(text: str) -> int:
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Taking the last, as parsers do, would let two readers of one request see different requests.
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        message = f"the key {brief(twice)} is given twice in one object"
        raise InvalidRequestError(message)
    return result


def brief(value: Any) -> str:
    """Return ``repr(value)``, cut where it is long: messages stay readable and small."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "an integer of more than 60 digits"
    if isinstance(value, list | dict):
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    if isinstance(value, str) and len(value) > 60:
        return f"{value[:60]!r}…"
    return repr(value)


def check_text(value: str, what: str) -> str:
    """Return ``value``; JSON can write half of a surrogate pair, which nothing else can carry."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        message = f"{what} holds half of a surrogate pair: {brief(value)}"
        raise InvalidRequestError(message) from None
    return value


def array_from_json(data: Any, datatype: DataType, where: str) -> Array:
    """Convert the ``data`` of a tensor.

    Args:
        data: what the JSON holds: a list, flat or nested (row-major; evenly, to any depth).
        datatype: the declared one; not FP16 or BF16, which JSON cannot carry.
        where: how messages call the tensor (``"input 'x'"``).

    Returns:
        A flat array of ``datatype.numpy``; BYTES: of ``bytes``. Its size is not yet checked.

    Raises:
        InvalidRequestError: not a list, ragged, or an element that is not of the datatype (named).
    """
    if datatype.contents_field is None:
        message = f"{where}: {datatype.name} cannot be sent as JSON; use the binary extension "
        message += "(binary_data_size) or shared memory"
        raise InvalidRequestError(message)
    if type(data) is not list:
        message = f"{where}: data must be a list, not {brief(data)}"
        raise InvalidRequestError(message)
    flat = _flatten(data, where)
    array: Array = np.empty(len(flat), datatype.numpy)
    kind = datatype.numpy.kind
    for start in range(0, len(flat), SLICE):
        part = flat[start : start + SLICE]
        if kind == "f":
            array[start : start + SLICE] = _floats(part, datatype, where)
        elif kind == "b":
            array[start : start + SLICE] = _bools(part, datatype, where)
        elif kind == "O":
            array[start : start + SLICE] = _strings(part, datatype, where)
        else:
            array[start : start + SLICE] = _integers(part, datatype, where)
    return array


def _flatten(data: list[Any], where: str) -> list[Any]:
    for _ in range(RANK_MAX):
        if not data or type(data[0]) is not list:
            return data
        if set(map(type, data)) != {list} or len(set(map(len, data))) != 1:
            message = f"{where}: data is nested unevenly; rows must have the same length"
            raise InvalidRequestError(message)
        data = list(chain.from_iterable(data))
    message = f"{where}: data is nested more than {RANK_MAX} deep"
    raise InvalidRequestError(message)


def _check_types(part: list[Any], allowed: set[type], datatype: DataType, where: str) -> None:
    if not set(map(type, part)) <= allowed:
        bad = next(value for value in part if type(value) not in allowed)
        _refuse(bad, datatype, where)


def _refuse(value: Any, datatype: DataType, where: str, why: str = "is not of type") -> NoReturn:
    message = f"{where}: the value {'null' if value is None else brief(value)} {why} "
    raise InvalidRequestError(message + datatype.name)


def _integers(part: list[Any], datatype: DataType, where: str) -> Array:
    _check_types(part, {int}, datatype, where)  # a bool is not an int here: type(), not isinstance
    bounds = np.iinfo(datatype.name.lower())  # the protocol's names are numpy's
    low, high = min(part), max(part)
    if low < bounds.min or high > bounds.max:
        bad = low if low < bounds.min else high
        _refuse(bad, datatype, where, "is out of the range of")
    return np.array(part, datatype.numpy)


def _floats(part: list[Any], datatype: DataType, where: str) -> Array:
    _check_types(part, {int, float}, datatype, where)
    try:
        wide = np.array(part, np.float64)
    except OverflowError:
        bad = max((value for value in part if type(value) is int), key=abs)
        _refuse(bad, datatype, where, "is out of the range of")
    if datatype.item_bytes == 8:
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(datatype.numpy)
    # An infinity that was sent is data; one that the conversion made would be a silent change.
    overflowed = np.isinf(narrow) & np.isfinite(wide)
    if overflowed.any():
        value = float(wide[int(overflowed.argmax())])
        _refuse(value, datatype, where, "is out of the range of")
    return narrow


def _bools(part: list[Any], datatype: DataType, where: str) -> Array:
    _check_types(part, {bool, int}, datatype, where)
    for bad in set(part) - {0, 1}:
        _refuse(bad, datatype, where)
    return np.array(part, np.bool_)


def _strings(part: list[Any], datatype: DataType, where: str) -> list[bytes]:
    _check_types(part, {str}, datatype, where)
    try:
        return [value.encode("utf-8") for value in part]
    except UnicodeEncodeError:
        message = f"{where}: a string holds half of a surrogate pair; send such bytes as binary"
        raise InvalidRequestError(message) from None


def array_to_json(array: Array, datatype: DataType, where: str) -> str:
    """Write ``array`` as a flat JSON list, row-major.

    NaN and infinities become ``NaN``, ``Infinity``, ``-Infinity``: not standard JSON, but what
    Python, and tritonclient, read and write. ``null`` was rejected: it would turn an infinity into
    a missing value without a word.

    Raises:
        InvalidRequestError: the datatype has no JSON form, or BYTES elements are not UTF-8.
    """
    if datatype.contents_field is None:
        message = f"{where}: {datatype.name} cannot be sent as JSON; ask for binary_data"
        raise InvalidRequestError(message)
    flat = array.reshape(-1)
    parts: list[str] = []
    for start in range(0, flat.size, SLICE):
        values: Sequence[Any] = flat[start : start + SLICE].tolist()
        if datatype.item_bytes == 0:
            values = _texts(values, where)
        parts.append(json.dumps(values, separators=(",", ":"))[1:-1])
    return f"[{','.join(parts)}]"


def _texts(values: Sequence[Any], where: str) -> list[str]:
    try:
        return [value if isinstance(value, str) else str(value, "utf-8") for value in values]
    except UnicodeDecodeError:
        message = f"{where}: holds bytes that are not UTF-8; ask for binary_data"
        raise InvalidRequestError(message) from None
