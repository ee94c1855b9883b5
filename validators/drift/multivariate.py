"""Columns together: their correlations, and a kernel distance, from sums that add up.

Columns may each look as before while they no longer belong together. Rows enter as normal scores
(`bins.normal_scores`), so that neither outliers nor units weigh, and what is kept of a window is
the sums of the scores, of their products, and of random Fourier features: linear in the rows, and
mergeable over replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Random Fourier features: as many of all columns together as of pairs of columns.
FEATURES = 256
#: Correlations are cut here: bins make near copies equal, whose Fisher transform is infinite.
_CLIP = 0.995
#: Rows of one pass.
_CHUNK = 4096


class FeatureMap:
    """Rows of normal scores → random Fourier features; the same seed gives the same map.

    A Gaussian kernel as the mean of cosines: Rahimi, Recht, Random features for large-scale kernel
    machines, NeurIPS 2007. Half of the features take two columns at random: in a kernel over all
    of many columns, a change in two of them drowns. The width of the kernel is 1 for a pair and the
    root of the number of columns for all, about the median distance of rows.
    """

    def __init__(self, columns: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weights = rng.normal(size=(columns, FEATURES)) / np.sqrt(columns)
        for feature in range(FEATURES // 2):
            pair = rng.choice(columns, size=min(2, columns), replace=False)
            column = np.zeros(columns)
            column[pair] = rng.normal(size=pair.size)
            weights[:, feature] = column
        self._weights = weights.astype(np.float32)
        self._phases = rng.uniform(0, 2 * np.pi, FEATURES).astype(np.float32)

    def __call__(self, scores: Array) -> Array:
        """float32 [rows, columns] → float32 [rows, `FEATURES`]."""
        angles = scores @ self._weights
        angles += self._phases
        return np.asarray(np.cos(angles, out=angles))


@dataclass(slots=True)
class JointSums:
    """Sums over rows: scores [columns], products [columns, columns], features [`FEATURES`].

    Leading axes before these are windows; ``rows`` is then of each.
    """

    rows: int
    scores: Array
    products: Array
    features: Array

    @classmethod
    def empty(cls, columns: int) -> Self:
        """Of no rows."""
        return cls(0, np.zeros(columns), np.zeros((columns, columns)), np.zeros(FEATURES))

    def add(self, scores: Array, features: FeatureMap) -> None:
        """Count rows float32 [rows, columns]."""
        for start in range(0, len(scores), _CHUNK):
            part = scores[start : start + _CHUNK]
            self.rows += len(part)
            self.scores += part.sum(axis=0, dtype=np.float64)
            self.products += part.T @ part
            self.features += features(part).sum(axis=0, dtype=np.float64)

    def merge(self, other: JointSums) -> None:
        """Add what another replica counted; the order changes the last digits only."""
        if other.scores.shape != self.scores.shape:
            raise ValueError(f"{other.scores.size} columns do not add to {self.scores.size}")
        self.rows += other.rows
        self.scores = self.scores + other.scores
        self.products = self.products + other.products
        self.features = self.features + other.features

    def correlations(self) -> Array:
        """Fisher transforms of the correlations, [..., columns, columns]; 0 for constant columns.

        The variance of a Fisher transform hardly depends on the correlation (Fisher 1915), so
        that a near copy that loosens counts for as much as strangers that join.
        """
        n = max(self.rows, 1)
        mean = self.scores / n
        covariance = self.products / n - mean[..., :, None] * mean[..., None, :]
        variance = np.diagonal(covariance, axis1=-2, axis2=-1)
        varies = variance > 1e-9
        scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)
        found = covariance * scale[..., :, None] * scale[..., None, :]
        at = np.arange(found.shape[-1])
        found[..., at, at] = 0.0
        return np.arctanh(np.clip(found, -_CLIP, _CLIP))

    def to_plain(self) -> dict[str, Any]:
        """JSON values: of the products the upper triangle, in rows."""
        upper = self.products[np.triu_indices(self.scores.size)]
        return {
            "rows": self.rows,
            "scores": self.scores.tolist(),
            "products": upper.tolist(),
            "features": self.features.tolist(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            rows = int(plain["rows"])
            scores, upper, features = (
                np.array(plain[name], dtype=np.float64)
                for name in ("scores", "products", "features")
            )
            products = np.zeros((scores.size, scores.size))
            products[np.triu_indices(scores.size)] = upper
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not stored sums: {error!r}") from error
        if rows < 0 or features.shape != (FEATURES,) or scores.ndim != 1:
            raise ValueError(f"not stored sums: of {rows} rows and {features.size} features")
        arrays = (scores, products, features)
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("not stored sums: they are not finite")
        return cls(rows, scores, products + np.triu(products, 1).T, features)


def correlation_change(
    window: JointSums, reference: JointSums, known: Array | None = None
) -> tuple[Array, Array]:
    """(largest change [...], the pair's flat index [...]) of the Fisher-transformed correlations.

    In standard deviations of normal columns: × √m, m = n·N / (n + N). ``known``: those of the
    reference, where they were worked out before.
    """
    change = np.abs(window.correlations() - (reference.correlations() if known is None else known))
    flat = change.reshape(*change.shape[:-2], -1)
    at = flat.argmax(axis=-1)
    largest = np.take_along_axis(flat, at[..., None], -1)[..., 0]
    return largest * np.sqrt(_size(window, reference)), at


def kernel_distance(window: JointSums, reference: JointSums) -> Array:
    """m · squared maximum mean discrepancy by random Fourier features, [...].

    Gretton et al., A kernel two-sample test, JMLR 13 (2012); the biased estimate, as its bias is
    the same for all windows and is calibrated away.
    """
    gap = window.features / max(window.rows, 1) - reference.features / max(reference.rows, 1)
    return np.asarray(_size(window, reference) * 2 * np.square(gap).mean(axis=-1))


def _size(window: JointSums, reference: JointSums) -> float:
    return window.rows * reference.rows / max(window.rows + reference.rows, 1)
