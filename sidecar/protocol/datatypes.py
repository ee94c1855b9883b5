"""The protocol's tensor datatypes, and what each is in numpy and on the wire."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class DataType:
    """One datatype of the protocol.

    Attributes:
        name: as in the protocol (``"FP32"``).
        numpy: the little-endian numpy dtype; ``object`` (elements of type ``bytes``) for BYTES.
        item_bytes: bytes of one element in raw form; 0 for BYTES (each has a 4-byte length).
        contents_field: the field of ``InferTensorContents`` that carries it in typed form, or
            ``None`` where the protocol has none (FP16, BF16).
        config_name: the name in a ``ModelConfig`` (``"TYPE_FP32"``).
    """

    name: str
    numpy: np.dtype[np.generic]
    item_bytes: int
    contents_field: str | None
    config_name: str


def _make(name: str, dtype: object, contents_field: str | None, config_name: str) -> DataType:
    numpy_dtype: np.dtype[np.generic] = np.dtype(dtype)  # type: ignore[call-overload]
    item_bytes = 0 if numpy_dtype == np.object_ else numpy_dtype.itemsize
    return DataType(name, numpy_dtype, item_bytes, contents_field, config_name)


BY_NAME: dict[str, DataType] = {
    datatype.name: datatype
    for datatype in (
        _make("BOOL", np.bool_, "bool_contents", "TYPE_BOOL"),
        _make("UINT8", "u1", "uint_contents", "TYPE_UINT8"),
        _make("UINT16", "<u2", "uint_contents", "TYPE_UINT16"),
        _make("UINT32", "<u4", "uint_contents", "TYPE_UINT32"),
        _make("UINT64", "<u8", "uint64_contents", "TYPE_UINT64"),
        _make("INT8", "i1", "int_contents", "TYPE_INT8"),
        _make("INT16", "<i2", "int_contents", "TYPE_INT16"),
        _make("INT32", "<i4", "int_contents", "TYPE_INT32"),
        _make("INT64", "<i8", "int64_contents", "TYPE_INT64"),
        _make("FP16", "<f2", None, "TYPE_FP16"),
        _make("FP32", "<f4", "fp32_contents", "TYPE_FP32"),
        _make("FP64", "<f8", "fp64_contents", "TYPE_FP64"),
        _make("BF16", ml_dtypes.bfloat16, None, "TYPE_BF16"),
        _make("BYTES", np.object_, "bytes_contents", "TYPE_STRING"),
    )
}

_BY_NUMPY = {datatype.numpy: datatype for datatype in BY_NAME.values()}


def of_array(array: np.ndarray) -> DataType:
    """Return the datatype of a numpy array (any string or object dtype is BYTES).

    Raises:
        KeyError: the dtype has no counterpart in the protocol (complex, dates, …).
    """
    dtype = array.dtype
    if dtype.kind in "OSUT":
        return BY_NAME["BYTES"]
    return _BY_NUMPY[dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype]
