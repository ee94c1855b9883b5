"""How far noise hangs together in time: which blocks of pairs are long enough to be bet on.

The calibration runs the previous version twice on some pairs. Its values, log(one time / the
other), have a median of 0 when nothing differs; what they show is noise. With ρ_k the correlation
of the *signs* of values k pairs apart, the integrated autocorrelation time

    τ = 1 + 2 Σ ρ_k,  k = 1 … M,  M the smallest with M ≥ 5 τ(M)

says that n pairs are worth n/τ independent ones. Blocks of L ≥ 4 τ pairs are nearly independent:
the signs of neighbouring ones then agree little more often than by chance (the simulation of
``docs/rollback-statistics.md`` is the proof of it). Signs because a bet by blocks is on signs, and
because rare long times would hide the correlation of all others.

The mean is taken to be 0 and not estimated: values that lean to one side have a long τ, and a
calibration that is not clean gives no length. Two standard errors are added to τ (of white noise,
times τ): few values give no length either, rather than a wrong one.

Source of the window: Sokal, Monte Carlo Methods in Statistical Mechanics (1997), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.statistics import Floats

#: Pairs apart up to which correlation is looked for: five times the longest τ that a block of 500
#: allows, which is 125.
LAGS = 640
#: A block of L pairs is long enough for τ ≤ L / BLOCKS_TAU.
BLOCKS_TAU = 4
#: Up to such τ noise counts as not hanging together: what is left of it moves a bet on single pairs
#: by little.
POOLED_TAU = 1.5
#: Fewer values tell nothing.
VALUES_MIN = 50
#: How many τ the window has.
_WINDOW = 5


def _zeros() -> Floats:
    return np.zeros(LAGS + 1)


@dataclass(slots=True)
class Autocorrelation:
    """Sums of products by lag, of bounded size. Not safe for several threads.

    Attributes:
        products, counts: float64 [LAGS + 1], by lag in pairs.
    """

    products: Floats = field(default_factory=_zeros)
    counts: Floats = field(default_factory=_zeros)
    _positions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _signs: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def values(self) -> int:
        """How many values were added."""
        return round(float(self.counts[0]))

    def add(self, values: npt.ArrayLike, positions: npt.ArrayLike | None = None) -> None:
        """Count more values.

        Args:
            values: log-ratios or signs [n], in order.
            positions: the numbers of their pairs among *all* pairs in order of arrival [n], rising.
                Where only one pair in ten is run twice this must be told, since a lag of 1 is a lag
                of ten pairs then. ``None``: each follows the one before directly.

        Raises:
            ValueError: for NaN, for positions that do not rise, and for another number of them.
        """
        signs = np.sign(np.atleast_1d(np.asarray(values, np.float64)))
        if np.isnan(signs).any():
            raise ValueError("a value is NaN: leave out pairs without one")
        last = int(self._positions[-1]) if self._positions.size else -1
        if positions is None:
            at = np.arange(last + 1, last + 1 + len(signs))
        else:
            at = np.atleast_1d(np.asarray(positions, np.int64))
            if at.shape != signs.shape or np.any(np.diff(at, prepend=last) <= 0):
                raise ValueError(f"needs {len(signs)} positions that rise from {last} on")
        for position, sign in zip(at.tolist(), signs.tolist(), strict=True):
            self._add(position, sign)

    def _add(self, position: int, sign: float) -> None:
        near = self._positions >= position - LAGS
        self._positions = np.append(self._positions[near], position)
        self._signs = np.append(self._signs[near], sign)
        lags = position - self._positions  # distinct, so each is added to once
        self.products[lags] += sign * self._signs
        self.counts[lags] += 1

    def restart(self) -> None:
        """Positions begin anew (another process): nothing is multiplied over the gap."""
        self._positions, self._signs = np.zeros(0, np.int64), np.zeros(0)

    def merge(self, other: Autocorrelation) -> None:
        """Add what another process counted."""
        self.products += other.products
        self.counts += other.counts

    def tau(self) -> float:
        """τ in pairs with its two standard errors, at least 1; infinite when it is not known."""
        if self.values < VALUES_MIN or self.products[0] <= 0:
            return math.inf
        known = self.counts[1:] > 0
        variance = self.products[0] / self.counts[0]
        rho = np.divide(
            self.products[1:], self.counts[1:] * variance, out=np.zeros(LAGS), where=known
        )
        errors = np.divide(1.0, self.counts[1:], out=np.full(LAGS, math.inf), where=known)
        tau = np.maximum(1 + 2 * np.cumsum(rho), 1.0)
        wide = np.flatnonzero(np.arange(1, LAGS + 1) >= _WINDOW * tau)
        if not wide.size:
            return math.inf
        window = int(wide[0])
        # An error of white noise; correlated values are worth fewer.
        error = 2 * math.sqrt(float(np.cumsum(errors)[window]) * float(tau[window]))
        return float(tau[window]) + 2 * error

    def block(self, lengths: Sequence[int], pooled: Sequence[int] = ()) -> int:
        """The shortest of ``lengths`` that is long enough; 0 when none is, or nothing is known.

        ``pooled``: those whose blocks are joined over several processes, while the values here have
        lags within one. In such a block there may be one pair of each process, and in the next one
        the next: it undoes nothing, and is long enough only where there is nothing to undo.
        """
        tau = self.tau()
        wanted = BLOCKS_TAU * tau
        fit = (
            length
            for length in lengths
            if length >= wanted and (length not in pooled or tau <= POOLED_TAU)
        )
        return min(fit, default=0)

    def to_cells(self) -> dict[str, float]:
        """The sums by lag, as counts that add up: ``c0`` values, ``c1`` pairs of neighbours, ``p1``
        their products, …; none that is 0."""
        cells = {f"c{lag}": count for lag, count in enumerate(self.counts.tolist())}
        cells |= {f"p{lag}": product for lag, product in enumerate(self.products.tolist())}
        return {name: value for name, value in cells.items() if value}

    @classmethod
    def from_cells(cls, cells: Mapping[str, float]) -> Autocorrelation:
        """From ``to_cells``, of one process or summed over several; ValueError for anything else.

        It is to be looked at: positions begin anew.
        """
        found = cls()
        for name, value in cells.items():
            kind, lag = name[:1], name[1:]
            if kind not in {"c", "p"} or not lag.isdecimal() or int(lag) > LAGS:
                raise ValueError(f"no sum by lag: {name}")
            (found.counts if kind == "c" else found.products)[int(lag)] = value
        return found

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "products": self.products.tolist(),
            "counts": self.counts.tolist(),
            "positions": self._positions.tolist(),
            "signs": self._signs.tolist(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Autocorrelation:
        """Read back what ``to_plain`` gave; ValueError for anything else."""
        try:
            products, counts, signs = (
                np.array(plain[key], np.float64) for key in ("products", "counts", "signs")
            )
            positions = np.array(plain["positions"], np.int64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"no autocorrelation: {error!r}") from None
        right = products.shape == counts.shape == (LAGS + 1,) and positions.shape == signs.shape
        if not right or positions.ndim != 1 or positions.size > LAGS + 1:
            raise ValueError("no autocorrelation: its arrays have other lengths")
        if np.any(np.diff(positions) <= 0):
            raise ValueError("no autocorrelation: its positions do not rise")
        if not (np.all(counts >= 0) and np.all(np.abs(products) <= counts)):
            raise ValueError("no autocorrelation: products beyond their counts")
        return cls(products, counts, positions, signs)
