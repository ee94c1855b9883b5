"""From values to one of 36 codes: bins of a reference, or its categories.

A fixed number of codes of one byte makes all columns one matrix: counts are [columns, 36], and
windows of workers and replicas add up. 32 bins of equal weight lose little to a test on the values
themselves (measured: ``tests/validators/drift/test_distances.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from validators.drift.columns import ColumnType

Array = npt.NDArray[Any]

#: Codes of a numeric column, in the order of the values: below the reference's least value, its
#: bins, above its greatest, infinite, NaN.
WIDTH = 36
BINS = 32
BELOW, ABOVE, INFINITE, MISSING = 0, BINS + 1, BINS + 2, BINS + 3
#: Codes of a category: the 32 most frequent by rank, then the rest of what the reference held, and
#: what it never held. MISSING is shared.
OTHER, UNSEEN = BINS, BINS + 1
#: Categories that a reference remembers by name, to tell rare from never seen.
_KNOWN_MAX = 4096


@dataclass(frozen=True, slots=True)
class NumericBins:
    """``edges`` float64 [2 … 33], rising: of bin i the values in [edges[i], edges[i + 1]).

    The last bin also holds its upper edge. ``centers`` float64 [edges − 1]: means of the
    reference's values in the bins. ``spread``: the reference's standard deviation, the unit of
    distances (1 where it is 0).
    """

    edges: Array
    centers: Array
    spread: float

    @classmethod
    def of(cls, values: Array) -> Self:
        """Quantiles of the finite values of a reference [rows]; a frequent value has its own bin.

        ValueError when none is finite.
        """
        known = np.sort(values[np.isfinite(values)].astype(np.float64))
        if known.size == 0:
            raise ValueError("no finite value to take bins from")
        edges = np.quantile(known, np.linspace(0, 1, BINS + 1), method="inverted_cdf")
        distinct, counts = np.unique(edges, return_counts=True)
        # Quantiles that coincide are one frequent value: without an edge just above it, its bin
        # would also hold what lies up to the next quantile.
        closing = np.nextafter(distinct[counts > 1], np.inf)
        edges = np.unique(np.concatenate([distinct, closing]))
        starts = np.searchsorted(known, edges[:-1])
        sizes = np.diff(np.append(starts, known.size))
        with np.errstate(over="ignore", invalid="ignore"):
            spread = float(known.std())
            # reduceat gives an empty bin the next one's first value
            sums = np.add.reduceat(known, np.minimum(starts, known.size - 1))
            centers = np.clip(sums / np.maximum(sizes, 1), edges[:-1], edges[1:])
        middles = edges[:-1] / 2 + edges[1:] / 2
        centers = np.where((sizes > 0) & np.isfinite(centers), centers, middles)
        return cls(edges, centers, spread if 0 < spread < np.inf else 1.0)

    def codes(self, values: Array) -> Array:
        """uint8 [rows] of float [rows]."""
        wide = values.astype(np.float64)
        found = np.searchsorted(self.edges, wide, side="right")
        found[found == self.edges.size] = ABOVE
        found[wide == self.edges[-1]] = self.edges.size - 1
        found[np.isinf(wide)] = INFINITE
        found[np.isnan(wide)] = MISSING
        return found.astype(np.uint8)

    def positions(self) -> Array:
        """Where the codes lie, float64 [36], in units of ``spread``; NaN: nowhere.

        What is beyond the reference counts as lying one ``spread`` beyond its edge: how far it
        really lies is not kept.
        """
        found = np.full(WIDTH, np.nan)
        found[1 : self.edges.size] = self.centers / self.spread
        found[BELOW] = self.edges[0] / self.spread - 1
        found[ABOVE] = self.edges[-1] / self.spread + 1
        return found

    def label(self, code: int) -> str:
        """What a code stands for."""
        special = {INFINITE: "infinite", MISSING: "NaN"}
        if code in special:
            return special[code]
        if code == BELOW:
            return f"< {self.edges[0]:.4g}"
        if code >= self.edges.size:
            return f"> {self.edges[-1]:.4g}"
        return f"{self.edges[code - 1]:.4g} … {self.edges[code]:.4g}"

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "edges": self.edges.tolist(),
            "centers": self.centers.tolist(),
            "spread": self.spread,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            edges, centers = (
                np.array(plain[name], dtype=np.float64) for name in ("edges", "centers")
            )
            spread = float(plain["spread"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not stored bins: {error!r}") from error
        if edges.ndim != 1 or not 2 <= edges.size <= BINS + 1 or not (np.diff(edges) > 0).all():
            raise ValueError(f"not stored bins: from 2 to {BINS + 1} rising edges are needed")
        if centers.shape != (edges.size - 1,) or not 0 < spread < np.inf:
            raise ValueError(f"not stored bins: {centers.size} centers, a spread of {spread}")
        return cls(edges, centers, spread)


@dataclass(frozen=True, slots=True)
class CategoryBins:
    """``frequent``: the categories with a code of their own, the most frequent first."""

    frequent: tuple[str, ...]
    rare: frozenset[str]

    @classmethod
    def of(cls, values: Array) -> Self:
        """The categories of a reference [rows] (as text); ValueError when it is empty."""
        if values.size == 0:
            raise ValueError("no row to take categories from")
        counts = Counter(map(str, values.tolist()))
        ranked = sorted(counts, key=lambda name: (-counts[name], name))[:_KNOWN_MAX]
        return cls(tuple(ranked[:BINS]), frozenset(ranked[BINS:]))

    def codes(self, values: Array) -> Array:
        """uint8 [rows] of categories [rows]: integers, truth values or texts."""
        if values.size == 0:
            return np.zeros(0, dtype=np.uint8)
        distinct, index = np.unique(values, return_inverse=True)
        table = {name: code for code, name in enumerate(self.frequent)}
        coded = [
            table.get(name, OTHER if name in self.rare else UNSEEN)
            for name in map(str, distinct.tolist())
        ]
        return np.array(coded, dtype=np.uint8)[index]

    def positions(self) -> Array:
        """Categories lie nowhere: NaN [36]."""
        return np.full(WIDTH, np.nan)

    def label(self, code: int) -> str:
        """What a code stands for."""
        if code < len(self.frequent):
            return self.frequent[code]
        return {OTHER: "(other)", MISSING: "(missing)"}.get(code, "(never seen before)")

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {"frequent": list(self.frequent), "rare": sorted(self.rare)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            frequent, rare = list(plain["frequent"]), list(plain["rare"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not stored categories: {error!r}") from error
        names = [*frequent, *rare]
        if len(set(map(str, names))) != len(names) or not 1 <= len(frequent) <= BINS:
            raise ValueError(f"not stored categories: from 1 to {BINS} different ones are needed")
        return cls(tuple(map(str, frequent)), frozenset(map(str, rare)))


Bins = NumericBins | CategoryBins


def bins_of(values: Array, kind: ColumnType) -> Bins:
    """Bins of a reference's column [rows]; ValueError when there is nothing to take them from."""
    return NumericBins.of(values) if kind is ColumnType.NUMERIC else CategoryBins.of(values)


def count_codes(codes: Array) -> Array:
    """uint8 [rows, columns] → int64 [columns, 36]."""
    columns = codes.shape[1]
    keys = codes + np.arange(0, columns * WIDTH, WIDTH, dtype=np.intp)
    return np.bincount(keys.ravel(), minlength=columns * WIDTH).reshape(columns, WIDTH)


def normal_scores(counts: Array) -> Array:
    """Code → the normal quantile of the middle of its share, float32 [columns, 36].

    counts int64 [columns, 36] of a reference. In these units each column is about standard normal
    whatever its distribution was, so that columns can be put together (van der Waerden scores).
    Missing values are 0, the middle; a category's order is that of its frequency.
    """
    known = counts.astype(np.float64)
    known[:, MISSING] = 0
    total = np.maximum(known.sum(axis=1, keepdims=True), 1.0)
    middle = (np.cumsum(known, axis=1) - known / 2) / total
    least = 0.5 / total
    inverse = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])
    scores = np.asarray(inverse(np.clip(middle, least, 1 - least)))
    scores[:, MISSING] = 0
    return scores.astype(np.float32)
