"""A mergeable histogram of magnitudes, with buckets that grow with the value.

Bucket of a value: its binary exponent and the first four bits of its mantissa, read straight from
the float's bits (no logarithm). A bucket is at most 1/16 of its lower edge wide, so a quantile is
within 3.1 % of a value that was really seen; DDSketch (Masson, Rim, Lee, VLDB 2019) gives the same
kind of guarantee with logarithms. Counts are exact and add up, so histograms of workers, replicas
and days merge into the very histogram that one process would have made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

Array = npt.NDArray[Any]

#: Buckets in an octave, as a power of two: four bits of mantissa.
_BITS = 4
_PER_OCTAVE = 1 << _BITS
#: Bucket numbers are those of float64: biased exponent << 4 | mantissa bits. A float32's own
#: number lacks the difference of the two biases.
_SHIFT64 = 52 - _BITS
_SHIFT32 = 23 - _BITS
_OFFSET32 = (1023 - 127) << _BITS
#: The bucket of 2**-126, float32's smallest normal number; what is below counts as zero.
_FIRST = _OFFSET32 + _PER_OCTAVE
#: From here on come infinity and NaN.
_STOP64 = 0x7FF << _BITS
_STOP32 = _OFFSET32 + (0xFF << _BITS)
#: Values of one pass: they and their bucket numbers stay in the second-level cache.
CHUNK = 262144
#: Below, the bucket numbers are counted from their own first one.
_FEW = 16384


class LogHistogram:
    """Counts of magnitudes; zeros (all below 2**-126, about 1e-38) and infinities apart.

    `count` is of everything added; `smallest` and `largest` are exact, and of its finite values
    (NaN while there are none). A quantity whose sign matters takes two histograms.
    """

    __slots__ = ("_counts", "_low", "count", "infinite", "largest", "smallest", "zeros")

    def __init__(self) -> None:
        self._low = 0  # number of the first bucket of the window that `_counts` holds
        self._counts: Array = np.zeros(0, dtype=np.int64)
        self.count = 0
        self.zeros = 0
        self.infinite = 0
        self.smallest = math.nan
        self.largest = math.nan

    def add(self, values: npt.ArrayLike) -> None:
        """Count |values|, of any shape; raises ValueError when one is NaN (nothing is counted)."""
        array = np.asarray(values)
        flat = (array if array.dtype == np.float32 else array.astype(np.float64)).ravel()
        if np.isnan(flat).any():
            raise ValueError("a histogram of magnitudes takes no NaN")
        for start in range(0, flat.size, CHUNK):
            self.add_chunk(flat[start : start + CHUNK])

    def add_chunk(self, values: Array, *, nan_is_zero: bool = False) -> None:
        """The same for contiguous float32 or float64 [n], fastest for `CHUNK` values at most.

        nan_is_zero: for relative errors, where 0/0 means that nothing differs.
        """
        if values.size == 0:
            return
        low, counts = _count32(values) if values.dtype.itemsize == 4 else _count64(values)
        stop = _STOP32 if values.dtype.itemsize == 4 else _STOP64
        if low + counts.size > stop and counts[max(0, stop - low) :].any():
            self._add_unusual(values, nan_is_zero=nan_is_zero)
            return
        zeros = 0
        if low < _FIRST:
            zeros = int(counts[: _FIRST - low].sum())
            counts[: _FIRST - low] = 0
            self._add_zeros(zeros)
        if zeros < values.size:
            self._add_regular(values, low, counts, values.size - zeros)

    def _add_unusual(self, values: Array, *, nan_is_zero: bool) -> None:
        """Values among which are infinities or NaN."""
        missing = np.isnan(values)
        if missing.any() and not nan_is_zero:
            raise ValueError("a histogram of magnitudes takes no NaN")
        infinite = int(np.count_nonzero(np.isinf(values)))
        self.infinite += infinite
        self.count += infinite
        self._add_zeros(int(np.count_nonzero(missing)))
        self.add_chunk(values[np.isfinite(values)])

    def _add_zeros(self, zeros: int) -> None:
        self.count += zeros
        self.zeros += zeros
        if zeros:
            self.smallest = 0.0
            self.largest = float(np.fmax(self.largest, 0.0))

    def _add_regular(self, values: Array, low: int, counts: Array, regular: int) -> None:
        """Counts of the buckets from `low` on, taken from the `regular` non-zero of `values` [n].

        A bucket beyond the extremes so far is rare after the first chunks, so that they are
        looked up then, not in every chunk.
        """
        used = counts.nonzero()[0]
        first, last = int(used[0]), int(used[-1])
        self.count += regular
        if math.isnan(self.largest) or low + last >= _number(self.largest):
            top = float(max(values.max(), -values.min()))
            self.largest = float(np.fmax(self.largest, top))
        if math.isnan(self.smallest) or low + first <= _number(self.smallest):
            self.smallest = float(np.fmin(self.smallest, np.abs(values).min()))
        self._add_counts(low + first, counts[first : last + 1])

    def _add_counts(self, low: int, counts: Array) -> None:
        """Add counts of the buckets from `low` on, widening the window where needed."""
        if counts.size == 0:
            return
        if self._counts.size == 0:
            self._low, self._counts = low, counts.astype(np.int64)
            return
        first = min(low, self._low)
        last = max(low + counts.size, self._low + self._counts.size)
        if last - first > self._counts.size:
            window = np.zeros(last - first, dtype=np.int64)
            at = self._low - first
            window[at : at + self._counts.size] = self._counts
            self._low, self._counts = first, window
        at = low - self._low
        self._counts[at : at + counts.size] += counts

    def trim(self) -> Self:
        """Give back the memory of empty buckets at both ends; what it says is unchanged."""
        used = np.flatnonzero(self._counts)
        if used.size == 0:
            self._low, self._counts = 0, np.zeros(0, dtype=np.int64)
        elif used[0] != 0 or used[-1] + 1 != self._counts.size:
            self._counts = self._counts[used[0] : used[-1] + 1].copy()
            self._low += int(used[0])
        return self

    def merge(self, other: LogHistogram) -> Self:
        """Add what `other` counted; in any order the counts are the same."""
        other.trim()
        self._add_counts(other._low, other._counts)
        self.count += other.count
        self.zeros += other.zeros
        self.infinite += other.infinite
        self.smallest = float(np.fmin(self.smallest, other.smallest))
        self.largest = float(np.fmax(self.largest, other.largest))
        return self

    @property
    def mean(self) -> float:
        """Of the finite values, from the middles of their buckets: within 3.1 %; NaN for none."""
        finite = self.count - self.infinite
        if finite == 0:
            return math.nan
        edges, counts = self.buckets()
        middles = np.minimum(np.sqrt(edges[:-1]) * np.sqrt(edges[1:]), self.largest)
        return float(np.dot(counts / finite, middles)) if counts.size else 0.0

    def quantile(self, share: float) -> float:
        """The smallest value with at least `share` of all values at or below it, within 3.1 %.

        0 and 1 give the smallest and largest values themselves; NaN when nothing was counted.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is asked for as a share in [0, 1], not {share}")
        if self.count == 0:
            return math.nan
        rank = max(1, math.ceil(share * self.count))
        if rank > self.count - self.infinite:
            return math.inf
        if rank <= self.zeros:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self._counts), rank - self.zeros))
        lower, upper = _edges(np.array([self._low + at, self._low + at + 1]))
        middle = math.sqrt(lower) * math.sqrt(upper)  # their product could overflow
        exact = share in {0, 1}
        if exact:
            return self.smallest if share == 0 else self.largest
        return min(max(middle, self.smallest), self.largest)

    def buckets(self) -> tuple[Array, Array]:
        """(edges float64 [n + 1], counts int64 [n]) from the first to the last used bucket.

        Zeros and infinities are not among them.
        """
        self.trim()
        if self._counts.size == 0:
            return np.zeros(1), self._counts
        return _edges(np.arange(self._low, self._low + self._counts.size + 1)), self._counts.copy()

    def to_plain(self) -> dict[str, Any]:
        """JSON values; `from_plain` gives an equal histogram."""
        self.trim()
        return {
            "buckets_per_octave": _PER_OCTAVE,
            "low": self._low,
            "counts": self._counts.tolist(),
            "count": self.count,
            "zeros": self.zeros,
            "infinite": self.infinite,
            "smallest": None if math.isnan(self.smallest) else self.smallest,
            "largest": None if math.isnan(self.largest) else self.largest,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        made = cls()
        try:
            if plain["buckets_per_octave"] != _PER_OCTAVE:
                raise ValueError(f"it has {plain['buckets_per_octave']} buckets an octave")
            made._low = int(plain["low"])
            made._counts = np.array(plain["counts"], dtype=np.int64).reshape(-1)
            made.count, made.zeros = int(plain["count"]), int(plain["zeros"])
            made.infinite = int(plain["infinite"])
            made.smallest, made.largest = (
                math.nan if plain[name] is None else float(plain[name])
                for name in ("smallest", "largest")
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a stored histogram: {error!r}") from error
        used = np.append(made._counts.nonzero()[0], _FIRST - made._low) + made._low
        if (made._counts < 0).any() or used.min() < _FIRST or used.max() >= _STOP64:
            raise ValueError("not a stored histogram: its buckets are out of range")
        if int(made._counts.sum()) + made.zeros + made.infinite != made.count:
            raise ValueError("not a stored histogram: its counts do not add up")
        return made

    @override
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogHistogram):
            return NotImplemented
        return self.to_plain() == other.to_plain()

    __hash__ = None  # type: ignore[assignment]  # it changes as it counts

    @override
    def __repr__(self) -> str:
        middle = self.quantile(0.5)
        return f"LogHistogram(count={self.count}, median≈{middle:.3g}, largest={self.largest:.3g})"


def _count32(values: Array) -> tuple[int, Array]:
    """(number of the first bucket, counts int64 [buckets]) of float32 [n]."""
    numbers = np.right_shift(values.view(np.uint32), _SHIFT32)
    if values.size < _FEW:  # the table of all buckets would cost more than the values
        numbers &= (1 << (31 - _SHIFT32)) - 1
        np.maximum(numbers, _PER_OCTAVE - 1, out=numbers)
        low = int(numbers.min())
        numbers -= np.uint32(low)
        return _OFFSET32 + low, np.bincount(numbers)
    counts = np.bincount(numbers)
    bound = 1 << (31 - _SHIFT32)
    if counts.size > bound:  # the sign is the number's first bit: fold it away
        counts, negative = counts[:bound], counts[bound:]
        counts[: negative.size] += negative
    return _OFFSET32, counts


def _count64(values: Array) -> tuple[int, Array]:
    """The same of float64 [n]; the counts begin at the first used bucket."""
    numbers = np.right_shift(np.abs(values).view(np.int64), _SHIFT64)
    np.maximum(numbers, _FIRST - 1, out=numbers)  # zeros next to the rest: no table of octaves
    low = int(numbers.min())
    numbers -= low
    return low, np.bincount(numbers)


def _number(value: float) -> int:
    """The bucket of a magnitude."""
    return int.from_bytes(struct.pack(">d", value)) >> _SHIFT64


def _edges(numbers: Array) -> Array:
    """Lower edges of buckets, float64; after the last finite bucket comes infinity."""
    return (numbers.astype(np.int64) << _SHIFT64).view(np.float64)
