"""Classes of values: two outputs are comparable within a class, never across."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BY_KIND = {"f": "float", "i": "int", "u": "int", "b": "bool", "c": "complex"}
_STRINGS = "OSUT"
_FLOAT_NAMES = ("bfloat", "float")
_INT_NAMES = ("int", "uint")


def dtype_class(dtype: npt.DTypeLike) -> str:
    """ "float", "int", "bool", "string" or "complex"; raises ValueError for anything else.

    bfloat16, the 8-bit floats and the 4-bit integers of ml_dtypes are known by their names: numpy
    calls their kind "V", as it calls raw bytes.
    """
    found = np.dtype(dtype)
    if found.kind in _BY_KIND:
        return _BY_KIND[found.kind]
    if found.kind in _STRINGS:
        return "string"
    if found.fields is None and found.name.startswith(_FLOAT_NAMES):
        return "float"
    if found.fields is None and found.name.startswith(_INT_NAMES):
        return "int"
    raise ValueError(f"values of dtype {found} cannot be compared")


def widen(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """float16 and narrower as float32 (exact); float32, float64 and integers as they are."""
    if dtype_class(values.dtype) == "float" and values.dtype.itemsize < 4:
        return values.astype(np.float32)
    return values
