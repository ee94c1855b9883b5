"""What the numeric comparators need of two arrays, in one pass: norms, sums, the largest error.

The arrays are walked in pieces that stay in the second-level cache. Differences are taken in the
inputs' own precision (float32 at least: for close values that is exact, Sterbenz), for integers
exactly. Sums of float64 products are float64. Products of float32 values are added in float32 in
blocks of at most 8,192 (many parallel lanes: relative error about 1e-6, or 5e-6 dB), the blocks in
float64; wholly in float64 the pass takes a quarter longer. Where that would not do (values that
are not finite, squares that leave the range, a candidate that is nearly zero), the piece or the
row is taken again in float64, with scaling if need be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.dtypes import dtype_class
from validators.sketches import CHUNK, LogHistogram

Array = npt.NDArray[Any]

#: Terms of one dot product: OpenBLAS wakes threads beyond 10,000, and their start costs more than
#: the work (and takes processors from the service that is being watched).
SEGMENT = 8192
_ONES = {width: np.ones(SEGMENT, dtype) for width, dtype in ((4, np.float32), (8, np.float64))}
#: Squares of larger values than this are far from float32's smallest normal number.
_LEAST32 = 1e-14
#: A sum of squares below may have lost terms to underflow.
_TINY = 1e-250
#: |candidate|² as |reference|² + 2 r·d + |d|² cancels; by the width of the floats that were added,
#: the share of |reference|² below which four digits are not sure to be left.
_CANCELLED = {4: 1e-2, 8: 1e-9}


@dataclass(slots=True)
class Moments:
    """Of each row, float64 [rows]; d = candidate − reference, over the finite values.

    count: values; norm_*: Euclidean norms; cosine: of reference and candidate (1 when both are
    zero, 0 when one is); total_d: sum of d; max_d: largest |d|; ratio: norm_reference / norm_d,
    0/0 is inf (nothing differs); max_over_rms: max |d| / rms(reference), 0/0 is 0.
    NaN in rows without a finite value. all_finite: every value was, on both sides.
    """

    count: Array
    norm_reference: Array
    norm_candidate: Array
    norm_d: Array
    cosine: Array
    total_d: Array
    max_d: Array
    ratio: Array
    max_over_rms: Array
    all_finite: bool = False


class _Sums:
    """Accumulators [rows] of one comparison, its sketches, and the memory it works in."""

    def __init__(self, left: Array, right: Array) -> None:
        rows, width = left.shape
        self.products = np.zeros((4, rows))
        self.rr, self.rd, self.dd, self.total = self.products
        self.largest = np.zeros(rows)
        self.count = np.full(rows, float(width))
        self.all_finite = True
        self.sketches = {"abs_error": LogHistogram(), "rel_error": LogHistogram()}
        floats = {dtype_class(each.dtype) for each in (left, right)} == {"float"}
        self.exact = not floats
        self.dtype = np.result_type(wide(left[:0]), wide(right[:0]))
        self.buffers = _Buffers(min(left.size, max(CHUNK, SEGMENT)), self.dtype)

    def prepare(self, left: Array, right: Array) -> tuple[Array, Array]:
        """(reference, candidate − reference) of a piece, both of `dtype`."""
        base = left.astype(self.dtype, copy=False)
        if self.exact:
            return base, difference(left, right)
        return base, self.buffers.subtract(base, right.astype(self.dtype, copy=False))


def moments(reference: Array, candidate: Array) -> tuple[Moments, dict[str, LogHistogram]]:
    """Moments of each row, and sketches `abs_error` (|d|) and `rel_error` (|d| / |reference|).

    Both [rows, ...] of the same shape, of floats (any width, also bfloat16) or integers. In
    `rel_error` 0/0 is 0, and an error where the reference is 0 is infinite.
    """
    rows = reference.shape[0]
    left, right = reference.reshape(rows, -1), candidate.reshape(rows, -1)
    sums = _Sums(left, right)
    with np.errstate(all="ignore"):
        for row, stop, first, last in _pieces(*left.shape):
            _add(sums, row, stop, left[row:stop, first:last], right[row:stop, first:last])
        found = _finish(sums)
        for part in _again(sums, left):
            _overwrite(found, part, _scaled(left[part], right[part]))
        for values in (found.max_d, found.total_d, found.cosine, found.ratio, found.max_over_rms):
            values[found.count == 0] = np.nan
    found.all_finite = sums.all_finite
    return found, {name: sketch.trim() for name, sketch in sums.sketches.items()}


def difference(reference: Array, candidate: Array) -> Array:
    """candidate − reference: float32 for two float32 (or narrower), else float64.

    Integers never wrap: they are subtracted in integers where the result fits, else in float64.
    """
    if "float" in {dtype_class(reference.dtype), dtype_class(candidate.dtype)}:
        left, right = wide(reference), wide(candidate)
        return np.subtract(right, left, dtype=np.result_type(left, right))
    if max(reference.dtype.itemsize, candidate.dtype.itemsize) < 8:
        return (candidate.astype(np.int64) - reference.astype(np.int64)).astype(np.float64)
    rough = candidate.astype(np.float64) - reference.astype(np.float64)
    wrapped = candidate.astype(np.uint64) - reference.astype(np.uint64)
    exact: Array = wrapped.view(np.int64).astype(np.float64)
    return np.where(np.abs(rough) < 2.0**62, exact, rough)


def wide(values: Array) -> Array:
    """Floats to 32 bits as float32, everything else as float64."""
    narrow = dtype_class(values.dtype) == "float" and values.dtype.itemsize <= 4
    return values.astype(np.float32 if narrow else np.float64, copy=False)


def _pieces(rows: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(first row, end row, first column, end column): whole rows, or segments of one row."""
    if width <= SEGMENT:
        step = max(1, CHUNK // width)
        for row in range(0, rows, step):
            yield row, min(rows, row + step), 0, width
        return
    whole = width - width % SEGMENT
    for row in range(rows):
        for first in range(0, whole, CHUNK):
            yield row, row + 1, first, min(whole, first + CHUNK)
        if whole < width:
            yield row, row + 1, whole, width


class _Buffers:
    """Memory that every piece uses again: fresh pages cost more than the arithmetic."""

    def __init__(self, values: int, dtype: np.dtype[Any]) -> None:
        self._delta = np.empty(values, dtype)
        self._wide = np.empty((2, values if dtype.itemsize < 8 else 0))

    def subtract(self, base: Array, other: Array) -> Array:
        """other − base, both of the dtype of these buffers."""
        return np.subtract(other, base, out=self._delta[: base.size].reshape(base.shape))

    def as_float64(self, *arrays: Array) -> list[Array]:
        """Copies of two float32 arrays."""
        copies = [self._wide[at, : each.size].reshape(each.shape) for at, each in enumerate(arrays)]
        for copy, each in zip(copies, arrays, strict=True):
            np.copyto(copy, each)
        return copies


def _add(sums: _Sums, row: int, stop: int, left: Array, right: Array) -> None:
    """Add one piece [k, n] of rows `row` to `stop`."""
    if left.shape[1] > SEGMENT:
        left, right = left.reshape(-1, SEGMENT), right.reshape(-1, SEGMENT)
    base, delta = sums.prepare(left, right)
    most = np.maximum(delta.max(axis=1), -delta.min(axis=1))
    if not math.isfinite(most.max()):
        _add_masked(sums, row, stop, left, right)
        return
    _add_sums(sums, row, stop, base, delta, most)
    sums.sketches["abs_error"].add_chunk(delta.reshape(-1))
    np.divide(delta, base, out=delta)
    sums.sketches["rel_error"].add_chunk(delta.reshape(-1), nan_is_zero=True)


def _add_sums(sums: _Sums, row: int, stop: int, base: Array, delta: Array, most: Array) -> None:
    parts = _products(base, delta)
    if delta.dtype.itemsize == 4 and not _kept_digits(parts, most):
        parts = _products(*sums.buffers.as_float64(base, delta))
    if stop - row == 1:
        sums.products[:, row] += parts.sum(axis=1, dtype=np.float64)
        sums.largest[row] = max(sums.largest[row], most.max())
    else:
        sums.products[:, row:stop] = parts
        sums.largest[row:stop] = most


def _products(base: Array, delta: Array) -> Array:
    """r·r, r·d, d·d and the sum of d over the last axis of [k, n], as [4, k]."""
    parts = np.empty((4, base.shape[0]), dtype=delta.dtype)
    np.vecdot(base, base, out=parts[0])
    np.vecdot(base, delta, out=parts[1])
    np.vecdot(delta, delta, out=parts[2])
    np.vecdot(delta, _ONES[delta.dtype.itemsize][: delta.shape[1]], out=parts[3])
    return parts


def _kept_digits(parts: Array, most: Array) -> bool:
    """Whether float32 had the range for these sums: no overflow, no square lost to underflow."""
    if most.min() < _LEAST32 and ((most < _LEAST32) & (most > 0)).any():
        return False
    return bool(parts[0].min() > _LEAST32**2) and math.isfinite(parts.sum())


def _add_masked(sums: _Sums, row: int, stop: int, left: Array, right: Array) -> None:
    """The same, leaving out values that are not finite, and in float64: a float32 overflowed."""
    base, other = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(base) & np.isfinite(other)
    sums.all_finite &= bool(finite.all())
    base[~finite] = 0
    other[~finite] = 0
    delta = other - base
    missing = np.count_nonzero(~finite, axis=1)
    sums.count[row:stop] -= missing.sum() if stop - row == 1 else missing
    _add_sums(sums, row, stop, base, delta, np.abs(delta).max(axis=1))
    delta = delta[finite]
    sums.sketches["abs_error"].add_chunk(delta)
    sums.sketches["rel_error"].add_chunk(delta / base[finite], nan_is_zero=True)


def _finish(sums: _Sums) -> Moments:
    candidate = np.maximum(sums.rr + 2 * sums.rd + sums.dd, 0)
    norms = [np.sqrt(each) for each in (sums.rr, candidate, sums.dd)]
    cosine = (sums.rr + sums.rd) / (norms[0] * norms[1])
    return _moments(sums.count, norms, cosine, sums.total, sums.largest)


def _moments(
    count: Array, norms: list[Array], cosine: Array, total: Array, largest: Array
) -> Moments:
    """Put together what has 0/0 in it."""
    reference, candidate, delta = norms
    cosine = np.clip(cosine, -1, 1)
    zeros = (reference == 0).astype(np.int64) + (candidate == 0)
    cosine[zeros == 1] = 0
    cosine[zeros == 2] = 1
    ratio = np.where(delta == 0, np.inf, reference / delta)
    over = np.where(largest == 0, 0, largest / (reference / np.sqrt(count)))
    return Moments(count, reference, candidate, delta, cosine, total, largest, ratio, over)


def _again(sums: _Sums, left: Array) -> Iterator[Array]:
    """Indices of the rows whose sums cannot be trusted, a bounded number of values at a time."""
    candidate = sums.rr + 2 * sums.rd + sums.dd
    doubtful = ~np.isfinite(sums.rr + sums.dd) | (
        candidate < _CANCELLED[sums.dtype.itemsize] * sums.rr
    )
    if sums.dtype.itemsize == 8:  # squares of float32 values cannot underflow here
        doubtful |= (sums.dd < _TINY) & (sums.largest > 0)
        doubtful |= sums.rr < _TINY
    rows = np.flatnonzero(doubtful & (sums.count > 0))
    step = max(1, 16 * CHUNK // left.shape[1])
    for start in range(0, rows.size, step):
        yield rows[start : start + step]


def _scaled(left: Array, right: Array) -> Moments:
    """Moments of rows [k, n] in float64, each scaled by a power of two into a safe range."""
    base, other = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(base) & np.isfinite(other)
    base[~finite] = 0
    other[~finite] = 0
    top = np.maximum(np.abs(base).max(axis=1), np.abs(other).max(axis=1))
    power = np.frexp(top)[1]
    exact = dtype_class(left.dtype) == "int"
    base, other = (np.ldexp(each, -power[:, None]) for each in (base, other))
    delta = np.ldexp(difference(left, right), -power[:, None]) if exact else other - base
    units, norms = zip(*(_unit(each) for each in (base, other, delta)), strict=True)
    cosine = np.vecdot(units[0], units[1])
    total, largest = delta.sum(axis=1), np.abs(delta).max(axis=1)
    count = np.count_nonzero(finite, axis=1).astype(np.float64)
    found = _moments(count, list(norms), cosine, total, largest)
    for values in (
        found.norm_reference, found.norm_candidate, found.norm_d, found.total_d, found.max_d,
    ):  # fmt: skip
        np.ldexp(values, power, out=values)
    return found


def _unit(rows: Array) -> tuple[Array, Array]:
    """(rows [k, n] at length 1, their norms [k]), whatever their size; a zero row stays zero."""
    top = np.abs(rows).max(axis=1)
    top[top == 0] = 1
    scaled = rows / top[:, None]
    norm = np.sqrt(np.vecdot(scaled, scaled))
    length = np.where(norm == 0, 1, norm)
    return scaled / length[:, None], norm * top


def _overwrite(found: Moments, rows: Array, part: Moments) -> None:
    for name in Moments.__slots__[:-1]:  # all but `all_finite`
        getattr(found, name)[rows] = getattr(part, name)
