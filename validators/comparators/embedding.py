"""Embeddings: the same direction, the same length, the same neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.moments import moments
from validators.sketches import LogHistogram

Array = npt.NDArray[Any]

#: Fewer rows have too few strangers for neighbours to mean anything.
_ROWS_MIN = 50
#: Neighbours are looked for among so many rows at most: the work grows with the square.
_ROWS_MAX = 1024


class EmbeddingComparator(Comparator):
    """[rows, dimensions], or [rows, ..., dimensions]: a row is then as good as its worst vector.

    Neighbours are compared where they matter, in search: of the k rows nearest to a row by cosine,
    the share that both sides have in common, among the rows given (in groups of at most 1,024;
    NaN for fewer than 50 rows, or 2k). Rows tied at the edge are in.

    Option: `k` neighbours.
    """

    kind: ClassVar[str] = "embedding"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("cosine", "1", "lower", "of the angle between reference and candidate"),
        MetricSpec(
            "norm_error", "1", "higher", "| |candidate| / |reference| − 1 |, Euclidean norms"
        ),
        MetricSpec(
            "neighbours", "share", "lower",
            "of the k nearest rows in common; NaN for fewer than 50 rows",
        ),
    )  # fmt: skip
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({"k": 10})
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"cosine": 0.999, "norm_error": 0.01, "neighbours": 0.9}
    )

    @override
    def check_options(self) -> None:
        k = self.settings["k"]
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"embedding: `k` must be a whole number from 1, not {k!r}")

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        rows, shape = reference.shape[0], reference.shape
        if len(shape) < 2:
            raise ValueError(
                f"embedding needs [rows, dimensions], not {shape}; one number a row is of kind "
                "`regression`"
            )
        left, right = (each.reshape(-1, shape[-1]) for each in (reference, candidate))
        found, sketches = moments(left, right)
        same = found.norm_candidate == found.norm_reference  # also 0 and 0
        with np.errstate(all="ignore"):
            error = np.abs(found.norm_candidate / found.norm_reference - 1)
        error = np.where(same, 0.0, error)
        error[found.count == 0] = np.nan
        distance = LogHistogram()
        distance.add(np.maximum(1 - found.cosine[found.count > 0], 0.0))
        metrics = {
            "cosine": np.fmin.reduce(found.cosine.reshape(rows, -1), axis=1),
            "norm_error": np.fmax.reduce(error.reshape(rows, -1), axis=1),
            "neighbours": _neighbours(reference, candidate, self.settings["k"]),
        }
        return Comparison(rows, metrics, {**sketches, "cosine_distance": distance.trim()})

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = rng.standard_normal((64, 32)).astype(np.float32)
        rounding = 1 + rng.uniform(-1e-6, 1e-6, reference.shape).astype(np.float32)
        return reference, reference * rounding, np.roll(reference, 1, axis=1)


def _neighbours(reference: Array, candidate: Array, k: int) -> Array:
    """Share of the k nearest rows in common, float64 [rows]."""
    rows = reference.shape[0]
    if rows < max(_ROWS_MIN, 2 * k):
        return np.full(rows, np.nan)
    groups = np.array_split(np.arange(rows), -(-rows // _ROWS_MAX))
    if len(groups[-1]) <= k:
        return np.full(rows, np.nan)
    shares = []
    for group in groups:
        inside = [_nearest(side[group], k) for side in (reference, candidate)]
        common = np.count_nonzero(inside[0] & inside[1], axis=1)
        shares.append(np.minimum(common, k) / k)
    return np.concatenate(shares)


def _nearest(vectors: Array, k: int) -> Array:
    """bool [rows, rows]: which rows are among the k nearest of a row, itself left out."""
    flat = vectors.reshape(vectors.shape[0], -1).astype(np.float64)
    flat[~np.isfinite(flat)] = 0.0  # the same on both sides, and no direction
    largest = np.abs(flat).max(axis=1, keepdims=True)
    flat /= np.where(largest > 0, largest, 1.0)  # first, so that no square overflows
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.where(norms > 0, norms, 1.0)
    near = flat @ flat.T
    np.fill_diagonal(near, -np.inf)
    rows = near.shape[0]
    edge = np.partition(near, rows - k, axis=1)[:, rows - k, None]
    return np.asarray(near >= edge)
