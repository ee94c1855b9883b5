"""Two versions that share the traffic: each request is answered by one of them, none by both.

There are no pairs, so what differs between the requests counts as noise, and answers come later
than with mirrored pairs. Everything here holds at all looks together (confidence sequences), for as
long as the split is drawn independently of the requests' kind. A split that is sticky by user has
fewer independent observations than requests: then these bounds are too narrow.

**Rates**: bounds by inversion of the e-processes of ``certificate.py``. **Their difference**: let
H: p2 ≤ p1 + d. For a p, ``E_under(k1, n1 | p)`` cannot be expected to grow if p1 ≥ p, nor
``E_over(k2, n2 | p + d)`` if p2 ≤ p + d. A request changes only one of the two, so their product
is a supermartingale for p = p1 when H holds, whatever share goes to whom; the least product over
all p is at most that one. So d is rejected when the least product reaches 1/α. (The bounds of both
rates, subtracted, would take α/2 each, and be wider by up to √2.)

**Quantiles** from a histogram: the q-quantile is at most the bound b of a bucket when P(time ≤ b)
≥ q, which is a rate. Only one bucket needs to be right, the last below the true quantile: whatever
is counted below a lower bucket is counted below it as well, so its evidence is the larger. So no
correction for the number of buckets is needed, and bounds are bounds of buckets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from validators.sequential.certificate import (
    evidence_over,
    evidence_under,
    lower_bound,
    percent,
    upper_bound,
)
from validators.statistics import Floats, logistic, solve_rising

#: Points at which the least product is looked for: where it is expected, and elsewhere.
_NEAR, _FAR = 16, 12
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with bounds that hold together, at all looks, with probability 1 − α."""

    value: float  # NaN when nothing was seen
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions: each on its own, and second minus first. Each of the three holds at 1 − α."""

    first: Estimate
    second: Estimate
    difference: Estimate

    @property
    def decided(self) -> bool:
        """Whether the difference is surely not 0."""
        return self.difference.lower > 0 or self.difference.upper < 0


def rates(k1: float, n1: int, k2: float, n2: int, alpha: float) -> Comparison:
    """``k`` of ``n`` requests of the first and the second version, say failed ones.

    ValueError unless 0 ≤ k ≤ n, and for a risk outside (0, 1).
    """
    first, second = (_rate(k, n, alpha) for k, n in ((k1, n1), (k2, n2)))
    low = _difference_lower(k1, n1, k2, n2, alpha / 2)
    high = -_difference_lower(k2, n2, k1, n1, alpha / 2)
    return Comparison(first, second, Estimate(second.value - first.value, low, high))


def _rate(k: float, n: int, alpha: float) -> Estimate:
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no count: needs 0 ≤ k ≤ n")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a risk between 0 and 1, not {alpha}")
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    return Estimate(k / n, lower_bound(k, n, alpha / 2), upper_bound(k, n, alpha / 2))


def evidence_more(k1: float, n1: int, k2: float, n2: int, difference: npt.ArrayLike) -> Floats:
    """log E that the second rate is more than ``difference`` above the first, float64 [m].

    The least product over all p, looked for on a grid and closer around its least: right to about
    0.02. ``difference`` [m] in [−1, 1].
    """
    d = np.atleast_1d(np.asarray(difference, np.float64))[:, None]
    if n1 == 0 or n2 == 0:
        return np.zeros(len(d))
    seen1, seen2 = k1 / n1, k2 / n2
    # The least product lies between the rate seen of the first and that of the second less d, or,
    # as evidence may be a little under 0, shortly beyond.
    low, high = np.minimum(seen1, seen2 - d), np.maximum(seen1, seen2 - d)
    near = low + (high - low) * np.linspace(-0.25, 1.25, _NEAR)
    far = np.broadcast_to(logistic(np.linspace(-14, 14, _FAR)), (len(d), _FAR))
    p = np.sort(np.concatenate([near, far], axis=1), axis=1)

    def product(p: Floats) -> Floats:
        limit = np.clip(p + d, _TINY, 1 - _TINY)
        second = np.where(p + d >= 1, 0.0, evidence_over(k2, n2, limit))  # from 1 on all is allowed
        return evidence_under(k1, n1, np.clip(p, _TINY, 1 - _TINY)) + second

    first = product(p)
    at = np.clip(np.argmin(first, axis=1)[:, None], 1, p.shape[1] - 2)
    around = [np.take_along_axis(p, at + by, axis=1) for by in (-1, 1)]
    closer = around[0] + (around[1] - around[0]) * np.linspace(0, 1, _NEAR)
    return np.asarray(np.minimum(first.min(axis=1), product(closer).min(axis=1)))


def _difference_lower(k1: float, n1: int, k2: float, n2: int, alpha: float) -> float:
    """The least d with which p2 ≤ p1 + d is not rejected."""

    def excess(lowered: Floats) -> Floats:  # the evidence rises as d = −lowered falls
        return evidence_more(k1, n1, k2, n2, -lowered) + math.log(alpha)

    return max(-1.0, -solve_rising(excess, -1.0, 1.0))


def quantile_bounds(
    counts: npt.ArrayLike, bounds: Sequence[float], q: float, alpha: float
) -> Estimate:
    """The ``q``-quantile of what a histogram counted.

    Args:
        counts: cumulative [buckets], how many were at most ``bounds[i]``; the last is all of them.
        bounds: upper bounds of the buckets, rising; the last may be infinite.
        q: in (0, 1).

    Returns:
        ``value``: interpolated within its bucket, the last finite bound if it is beyond; ``lower``
        and ``upper``: bounds of buckets; 0 and infinity where nothing is known.

    Raises:
        ValueError: for counts that fall, bounds that do not rise, another number of them, and q or
            alpha outside (0, 1).
    """
    at_most, edges = np.asarray(counts, np.float64), np.asarray(bounds, np.float64)
    if at_most.shape != edges.shape or at_most.ndim != 1 or not at_most.size:
        raise ValueError("needs one count for each bound of a bucket")
    if np.any(np.diff(at_most, prepend=0) < 0) or not np.all(np.isfinite(at_most)):
        raise ValueError("counts are cumulative: they start at 0 or more and never fall")
    if np.isnan(edges).any() or np.any(np.diff(edges) <= 0):
        raise ValueError("bounds of buckets rise")
    for name, share in (("q", q), ("alpha", alpha)):
        if not 0 < share < 1:
            raise ValueError(f"{name} is between 0 and 1, not {share}")
    total = at_most[-1]
    if total == 0:
        return Estimate(math.nan, 0.0, math.inf)
    sure = math.log(2 / alpha)
    # The evidence is made for small rates: of a high quantile the requests above it are counted.
    k, limit = (total - at_most, 1 - q) if q > 0.5 else (at_most, q)
    under, over = (
        evidence(k, np.full_like(k, total), limit) for evidence in (evidence_under, evidence_over)
    )
    reached, short = (under, over) if q > 0.5 else (over, under)
    upper = edges[reached >= sure]
    lower = edges[short >= sure]
    return Estimate(
        _interpolated(at_most, edges, q * total),
        float(lower.max()) if lower.size else 0.0,
        float(upper.min()) if upper.size else math.inf,
    )


def _interpolated(at_most: Floats, edges: Floats, rank: float) -> float:
    at = int(np.searchsorted(at_most, rank))
    below = float(edges[at - 1]) if at else 0.0
    if math.isinf(edges[at]):
        return below
    before = float(at_most[at - 1]) if at else 0.0
    inside = float(at_most[at]) - before
    return below + (float(edges[at]) - below) * ((rank - before) / inside if inside else 1.0)


def quantiles(
    first: npt.ArrayLike, second: npt.ArrayLike, bounds: Sequence[float], q: float, alpha: float
) -> Comparison:
    """The ``q``-quantiles of two histograms with the same buckets, and their difference.

    Its bounds are those of both at α/2, subtracted. Errors as of ``quantile_bounds``.
    """
    one, two = (quantile_bounds(counts, bounds, q, alpha) for counts in (first, second))
    low, high = (quantile_bounds(counts, bounds, q, alpha / 2) for counts in (first, second))
    return Comparison(
        one, two, Estimate(two.value - one.value, high.lower - low.upper, high.upper - low.lower)
    )


def sentence(what: str, found: Comparison, names: tuple[str, str], unit: str, alpha: float) -> str:
    """The answer in words.

    Args:
        what: the metric, as the subject of a sentence: ``errors``, ``latency p99``.
        names: of the first and the second version.
        unit: ``1`` for a share, else what is put behind the numbers.
    """
    if math.isnan(found.first.value) or math.isnan(found.second.value):
        unseen = names[0] if math.isnan(found.first.value) else names[1]
        return f"{what}: nothing was seen of {unseen}"
    one, two = _shown(found.first.value, unit), _shown(found.second.value, unit)
    sure = f"{100 * (1 - alpha):.6g} % sure, however often it is looked at"
    low, high = found.difference.lower, found.difference.upper
    if not found.decided:
        return (
            f"{what}: {one} of {names[0]} and {two} of {names[1]}; too little to tell them apart: "
            f"the difference is between {_shown(low, unit)} and {_shown(high, unit)} ({sure})"
        )
    more, least = ("more", low) if low > 0 else ("less", -high)
    return (
        f"{what}: {two} of {names[1]} against {one} of {names[0]}: {more} by at least "
        f"{_shown(least, unit)} ({sure})"
    )


def _shown(value: float, unit: str) -> str:
    return percent(value) if unit == "1" else f"{value:.4g} {unit}"
