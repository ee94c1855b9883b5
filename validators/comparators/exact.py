"""Values that are equal or not: integers, booleans, strings (also floats, if so declared)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.dtypes import dtype_class
from validators.moments import difference
from validators.sketches import LogHistogram

Array = npt.NDArray[Any]


class ExactComparator(Comparator):
    """NaN equals NaN; a text equals its UTF-8 bytes, as one runtime gives str and another bytes."""

    kind: ClassVar[str] = "exact"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("not_equal", "values", "higher", "how many values of the row differ"),
        MetricSpec("share_not_equal", "1", "higher", "share of the row's values that differ"),
        MetricSpec(
            "index_distance", "1", "higher",
            "largest |candidate − reference|, of numbers; how far a class or a bin moved",
        ),
    )  # fmt: skip
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"not_equal": 0}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"float", "int", "bool", "string"})

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        rows = reference.shape[0]
        left, right = reference.reshape(rows, -1), candidate.reshape(rows, -1)
        kind = dtype_class(left.dtype)
        if kind == "string":
            left, right = _as_bytes(left), _as_bytes(right)
        differs = np.asarray(left != right, dtype=np.bool_)
        if kind == "float":
            differs &= ~(np.isnan(left) & np.isnan(right))
        count = np.count_nonzero(differs, axis=1).astype(np.float64)
        distance, sketches = np.full(rows, np.nan), {}
        if kind in {"int", "float"}:
            moved = np.zeros(left.shape)
            moved[differs] = np.abs(difference(left[differs], right[differs]))
            distance = moved.max(axis=1)
            sketches["abs_error"] = LogHistogram()
            sketches["abs_error"].add(moved)
        metrics = {
            "not_equal": count,
            "share_not_equal": count / left.shape[1],
            "index_distance": distance,
        }
        return Comparison(rows, metrics, sketches)

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = rng.integers(0, 1000, (16, 3))
        worse = reference.copy()
        worse[:, 1] += 1
        return reference, reference.astype(np.int32), worse


def _as_bytes(texts: Array) -> Array:
    """Object array of bytes; anything that is neither text nor bytes stays itself."""
    flat = [each.encode() if isinstance(each, str) else each for each in texts.ravel().tolist()]
    result = np.empty(len(flat), dtype=object)
    result[:] = flat
    return result.reshape(texts.shape)
