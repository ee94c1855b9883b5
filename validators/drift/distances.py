"""How far the counts of a window are from those of the reference.

All take counts [..., 36] of window and reference, whole or fractional, and give float64 [...]; a
side without rows gives NaN. Each is one function and one line of `BUILTIN`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.drift.bins import INFINITE, MISSING
from validators.drift.columns import ColumnType

Array = npt.NDArray[Any]

#: Added to the counts of a code that either side has, so that a logarithm has something to take.
_SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class Distance:
    """A way to measure.

    ``measure(window, reference, positions)``: positions float64 [..., 36] are where the codes lie,
    in units of the reference's standard deviation (`NumericBins.positions`).

    ``power``: measure × mᵖᵒʷᵉʳ has a distribution that does not depend on the sizes when nothing
    has changed, with m = n·N / (n + N) of n rows in the window and N in the reference.
    """

    name: str
    measure: Callable[[Array, Array, Array], Array]
    power: float
    types: frozenset[ColumnType]
    source: str

    def scaled(self, window: Array, reference: Array, positions: Array) -> Array:
        """The measure with the sizes taken out, float64 [...]."""
        n, total = window.sum(axis=-1), reference.sum(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            sizes = n * total / (n + total)
        return np.asarray(self.measure(window, reference, positions) * sizes**self.power)


def kolmogorov_smirnov(window: Array, reference: Array, positions: Array) -> Array:
    """sup |F − G| at the edges of the bins; never more than on the values themselves."""
    del positions
    return np.asarray(np.abs(_shares(window).cumsum(-1) - _shares(reference).cumsum(-1)).max(-1))


def anderson_darling(window: Array, reference: Array, positions: Array) -> Array:
    """A² of two samples, for ties: its weight 1/(H(1 − H)) sees the tails, its sum the whole.

    Scholz, Stephens, K-sample Anderson-Darling tests, JASA 82 (1987), equation 7.
    """
    del positions
    sides = (window.astype(np.float64), reference.astype(np.float64))
    n, total = (side.sum(axis=-1)[..., None] for side in sides)
    size = n + total
    pooled = sides[0] + sides[1]
    below = pooled.cumsum(-1) - pooled / 2
    weight = below * (size - below) - size * pooled / 4
    with np.errstate(invalid="ignore", divide="ignore"):
        # The sum over both samples: their deviations are opposite, so n⁻¹ + N⁻¹ times one.
        deviation = size * (sides[0].cumsum(-1) - sides[0] / 2) - n * below
        parts = np.where(weight > 1e-9 * size, pooled * deviation**2 / weight, 0.0)
        found = (size - 1) / size**2 * (1 / n + 1 / total) * parts.sum(-1, keepdims=True)
    return np.asarray(np.where((n > 0) & (total > 0), found, np.nan)[..., 0])


def population_stability(window: Array, reference: Array, positions: Array) -> Array:
    """PSI: Σ (p − q) ln(p / q), in nats; 0.5 is added to each code that is used.

    Siddiqi, Credit risk scorecards, 2006. Without drift m·PSI is about χ² of the bins less one
    (Yurdakul, Naranjo, J. Risk Model Validation 14, 2020): the usual 0.1 and 0.25 ignore the rows.
    """
    del positions
    used = (window > 0) | (reference > 0)
    p, q = (_shares(np.where(used, side + _SMOOTHING, 0.0)) for side in (window, reference))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(used, (p - q) * np.log(p / q), 0.0).sum(-1)
    return np.where(_has_rows(window, reference), found, np.nan)


def jensen_shannon(window: Array, reference: Array, positions: Array) -> Array:
    """Square root of the divergence in bits, in [0, 1].

    Endres, Schindelin, A new metric for probability distributions, IEEE Trans. IT 49 (2003).
    """
    del positions
    p, q = _shares(window), _shares(reference)
    middle = (p + q) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = [np.where(side > 0, side * np.log2(side / middle), 0.0) for side in (p, q)]
    found = np.sqrt(np.maximum((terms[0] + terms[1]).sum(-1) / 2, 0.0))
    return np.where(_has_rows(window, reference), found, np.nan)


def wasserstein(window: Array, reference: Array, positions: Array) -> Array:
    """∫ |F − G|, in standard deviations of the reference; of the finite values.

    Vallender, Theory Prob. Appl. 18 (1974). What lies beyond the reference's extremes
    counts as one standard deviation beyond them.
    """
    placed = np.isfinite(positions)
    p, q = (_shares(np.where(placed, side, 0)) for side in (window, reference))
    filled = np.where(placed, positions, 0.0)
    order = np.argsort(np.where(placed, filled, np.inf), axis=-1, kind="stable")
    at = np.take_along_axis(filled, order, -1)
    order, at = np.broadcast_to(order, p.shape), np.broadcast_to(at, p.shape)
    gaps = np.diff(at, axis=-1)
    known = np.take_along_axis(np.broadcast_to(placed, p.shape), order, -1)
    gaps = np.where(known[..., 1:], gaps, 0.0)
    height = np.take_along_axis(p - q, order, -1).cumsum(-1)[..., :-1]
    return np.asarray((np.abs(height) * gaps).sum(-1))


def chi_square(window: Array, reference: Array, positions: Array) -> Array:
    """Pearson's χ² of homogeneity of two samples.

    Press et al., Numerical recipes, 3rd ed., equation 14.3.3.
    """
    del positions
    n, total = window.sum(-1, keepdims=True), reference.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(total / n) * window - np.sqrt(n / total) * reference
        parts = np.where(window + reference > 0, deviation**2 / (window + reference), 0.0)
    return np.where(_has_rows(window, reference), parts.sum(-1), np.nan)


def missing(window: Array, reference: Array) -> Array:
    """Change of the share of NaN and infinite values, in standard deviations (two-sided).

    The two-proportion test with pooled variance; half a missing value is added, so that the first
    one ever is measured too.
    """
    sides = [
        (side[..., MISSING] + side[..., INFINITE], side.sum(-1)) for side in (window, reference)
    ]
    (found, n), (known, total) = sides
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = (found + known + 0.5) / (n + total + 1)
        return np.asarray(
            np.abs(found / n - known / total) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / total))
        )


_NUMERIC = frozenset({ColumnType.NUMERIC})
_ANY = frozenset(ColumnType)
#: Name → how it measures; the default of a numeric column is the first, of a category the last.
BUILTIN: Mapping[str, Distance] = MappingProxyType(
    {
        made.name: made
        for made in (
            Distance("anderson_darling", anderson_darling, 0.0, _NUMERIC, "Scholz, Stephens 1987"),
            Distance("ks", kolmogorov_smirnov, 0.5, _NUMERIC, "Smirnov 1939"),
            Distance("wasserstein", wasserstein, 0.5, _NUMERIC, "Vallender 1974"),
            Distance("psi", population_stability, 1.0, _ANY, "Siddiqi 2006"),
            Distance("jensen_shannon", jensen_shannon, 0.5, _ANY, "Endres, Schindelin 2003"),
            Distance("chi_square", chi_square, 0.0, _ANY, "Pearson 1900"),
        )
    }
)
DEFAULT: Mapping[ColumnType, str] = MappingProxyType(
    {ColumnType.NUMERIC: "anderson_darling", ColumnType.CATEGORICAL: "chi_square"}
)


def distance(name: str, kind: ColumnType) -> Distance:
    """Raises ValueError for an unknown distance, or one that a column of this type has not."""
    fitting = [made.name for made in BUILTIN.values() if kind in made.types]
    if name not in fitting:
        raise ValueError(f"no distance {name!r} of {kind} columns; known: {', '.join(fitting)}")
    return BUILTIN[name]


def ks_exact(window: Array, reference: Array) -> float:
    """sup |F − G| of the values themselves, finite float [n] and [N]; NaN for an empty side."""
    if window.size == 0 or reference.size == 0:
        return float("nan")
    left, right = np.sort(window), np.sort(reference)
    at = np.concatenate([left, right])
    gaps = (
        np.searchsorted(left, at, side="right") / left.size
        - np.searchsorted(right, at, side="right") / right.size
    )
    return float(np.abs(gaps).max())


def wasserstein_exact(window: Array, reference: Array) -> float:
    """∫ |F − G| of the values themselves, in their unit; NaN for an empty side."""
    if window.size == 0 or reference.size == 0:
        return float("nan")
    left, right = np.sort(window.astype(np.float64)), np.sort(reference.astype(np.float64))
    at = np.sort(np.concatenate([left, right]))
    gaps = (
        np.searchsorted(left, at[:-1], side="right") / left.size
        - np.searchsorted(right, at[:-1], side="right") / right.size
    )
    return float((np.abs(gaps) * np.diff(at)).sum())


def _shares(counts: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.asarray(counts / counts.sum(-1, keepdims=True))


def _has_rows(window: Array, reference: Array) -> Array:
    return np.asarray((window.sum(-1) > 0) & (reference.sum(-1) > 0))
