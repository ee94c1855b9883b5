"""What is kept of a reference, and of a window: counts by column, joint sums, a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from validators.drift.bins import (
    WIDTH,
    Bins,
    CategoryBins,
    NumericBins,
    bins_of,
    count_codes,
    normal_scores,
)
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.multivariate import FeatureMap, JointSums

Array = npt.NDArray[Any]

#: Rows of the sample that travels with a reference, unless told.
SAMPLE_ROWS = 5000
VERSION = 1


@dataclass(slots=True)
class Window:
    """Counts of rows: of codes int64 [columns, 36], and joint. Sums over replicas and workers."""

    counts: Array
    joint: JointSums

    @classmethod
    def empty(cls, columns: int) -> Self:
        """Of no rows."""
        return cls(np.zeros((columns, WIDTH), dtype=np.int64), JointSums.empty(columns))

    @property
    def rows(self) -> int:
        """How many were counted."""
        return self.joint.rows

    def merge(self, other: Window) -> Self:
        """Add what another counted against the same reference; ValueError for other columns."""
        self.joint.merge(other.joint)
        self.counts = self.counts + other.counts
        return self

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {"counts": self.counts.tolist(), "joint": self.joint.to_plain()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            counts = np.array(plain["counts"], dtype=np.int64).reshape(-1, WIDTH)
            joint = JointSums.from_plain(plain["joint"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a stored window: {error}") from error
        if counts.shape[0] != joint.scores.size or (counts < 0).any():
            raise ValueError("not a stored window: its counts make no sense")
        if (counts.sum(axis=1) != joint.rows).any():
            raise ValueError("not a stored window: its counts do not add up to its rows")
        return cls(counts, joint)


@dataclass(slots=True)
class Reference:
    """Bins and counts that windows are compared with. ``seed``: of the sample and the features."""

    columns: tuple[Column, ...]
    bins: tuple[Bins, ...]
    counted: Window
    sample: Rows
    seed: int
    _scores: Array = field(init=False, repr=False)
    _features: FeatureMap = field(init=False, repr=False)
    _positions: Array = field(init=False, repr=False)
    _correlations: Array | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        self._positions = np.stack([item.positions() for item in self.bins])
        self._scores = normal_scores(self.counted.counts)
        self._features = FeatureMap(len(self.columns), self.seed)

    @property
    def rows(self) -> int:
        """Rows of the reference."""
        return self.counted.rows

    @property
    def positions(self) -> Array:
        """Where the codes of each column lie, float64 [columns, 36]."""
        return self._positions

    @property
    def correlations(self) -> Array:
        """``JointSums.correlations`` of the reference, worked out once."""
        if self._correlations is None:
            self._correlations = self.counted.joint.correlations()
        return self._correlations

    @classmethod
    def of(
        cls,
        rows: Rows,
        columns: Sequence[Column],
        *,
        seed: int = 0,
        sample_rows: int = SAMPLE_ROWS,
        block_rows: int = 1,
    ) -> Self:
        """Register rows (in the order in which they came) as the reference.

        ``sample_rows``: how many are kept, in whole blocks of ``block_rows`` and in order. Raises
        ValueError for no columns, columns of different lengths, and one without a finite value.
        """
        size = _length(rows, columns)
        made = []
        for column in columns:
            try:
                made.append(bins_of(rows[column.name], column.type))
            except ValueError as error:
                raise ValueError(f"column {column.name!r}: {error}") from None
        codes = _codes(rows, columns, made)
        # The feature map takes normal scores, which take the counts.
        counts = count_codes(codes)
        hollow = Window(counts, JointSums.empty(len(columns)))
        kept = sample_of(size, sample_rows, seed, block_rows)
        sample = {column.name: rows[column.name][kept] for column in columns}
        reference = cls(tuple(columns), tuple(made), hollow, sample, seed)
        reference.counted.joint.add(reference.scores(codes), reference._features)
        return reference

    def codes(self, rows: Rows) -> Array:
        """uint8 [rows, columns]; ValueError for missing columns and different lengths."""
        _length(rows, self.columns)
        return _codes(rows, self.columns, self.bins)

    def scores(self, codes: Array) -> Array:
        """Normal scores float32 [rows, columns] of codes."""
        return np.asarray(self._scores[np.arange(codes.shape[1]), codes])

    def features(self, scores: Array) -> Array:
        """Random Fourier features float32 [rows, `multivariate.FEATURES`]."""
        return self._features(scores)

    def window(self) -> Window:
        """An empty one."""
        return Window.empty(len(self.columns))

    def add(self, window: Window, rows: Rows) -> None:
        """Count rows into a window."""
        codes = self.codes(rows)
        window.counts = window.counts + count_codes(codes)
        window.joint.add(self.scores(codes), self._features)

    def to_plain(self) -> dict[str, Any]:
        """JSON values; NaN in the sample becomes None, infinities their names."""
        return {
            "version": VERSION,
            "seed": self.seed,
            "columns": [
                {"name": column.name, "type": str(column.type), "bins": item.to_plain()}
                for column, item in zip(self.columns, self.bins, strict=True)
            ],
            "counted": self.counted.to_plain(),
            "sample": {name: [_plain(x) for x in v.tolist()] for name, v in self.sample.items()},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            if plain["version"] != VERSION:
                raise ValueError(f"it is of version {plain['version']}, not {VERSION}")
            columns = tuple(Column(c["name"], ColumnType(c["type"])) for c in plain["columns"])
            bins = tuple(
                (NumericBins if column.type is ColumnType.NUMERIC else CategoryBins).from_plain(
                    stored["bins"]
                )
                for column, stored in zip(columns, plain["columns"], strict=True)
            )
            counted, seed = Window.from_plain(plain["counted"]), int(plain["seed"])
            sample = {
                column.name: _restore(plain["sample"][column.name], column.type)
                for column in columns
            }
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a stored reference: {error}") from error
        if len(counted.counts) != len(columns):
            raise ValueError("not a stored reference: its counts are of other columns")
        return cls(columns, bins, counted, sample, seed)


def sample_of(rows: int, size: int, seed: int, block_rows: int = 1) -> Array:
    """Which rows to keep, rising, at most ``size``: whole blocks, drawn without replacement."""
    if rows <= size:
        return np.arange(rows)
    blocks = max(1, size // block_rows)
    starts = np.arange(0, rows - block_rows + 1, block_rows)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(starts, size=min(blocks, starts.size), replace=False))
    return (chosen[:, None] + np.arange(block_rows)).ravel()[:size]


def _length(rows: Rows, columns: Sequence[Column]) -> int:
    if not columns:
        raise ValueError("no columns, so nothing would be watched")
    if absent := [column.name for column in columns if column.name not in rows]:
        raise ValueError(f"no column {absent[0]!r}; there are: {', '.join(rows) or 'none'}")
    lengths = {len(rows[column.name]) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"columns have different numbers of rows: {sorted(lengths)}")
    return lengths.pop()


def _codes(rows: Rows, columns: Sequence[Column], bins: Sequence[Bins]) -> Array:
    parts = [item.codes(rows[column.name]) for column, item in zip(columns, bins, strict=True)]
    return np.stack(parts, axis=1)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _restore(values: Sequence[Any], kind: ColumnType) -> Array:
    if kind is ColumnType.CATEGORICAL:
        return np.array(values)
    return np.array([np.nan if value is None else float(value) for value in values])
