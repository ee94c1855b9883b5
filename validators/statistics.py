"""Exact bounds on a rate, and the integral that they and the sequential tests are made of.

One integral serves everything here. With ``s = logit(θ) − logit(x)``:

    (θ/x)^a · ((1−θ)/(1−x))^b = exp(φ(s)),   φ(s) = a·s − (a+b)·log(1 + x·(e^s − 1))

φ is concave, with its peak where θ = a/(a+b). What lies below x (s < 0) and above x (s > 0) is
integrated by Gauss-Legendre over the stretch in which φ falls by 40 from where it is largest: the
rest is under e^−40 of the whole. The regularized incomplete beta function is the share of the part
below. Working with differences from the peak keeps all digits for counts of any size, where a
formula on log-gamma loses them (1e9 trials: six digits), and a continued fraction needs a number
of steps that grows with the root of the count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

#: How far the integrand falls, as a logarithm, before the rest is left out.
_DROP = 40.0
_NODES = 80
_NEWTON_STEPS = 40
_GRID = 17
_ROUNDS = 7  # 120 · 16^−7 = 4e-7, then a straight line
_LOGIT_MAX = 60.0  # rates from 1e-26 on
_TINY = 1e-300
_EXPONENT_MAX = 700.0  # e^710 is beyond float64


@lru_cache(maxsize=1)
def _gauss() -> tuple[Floats, Floats]:
    """Nodes and log weights of Gauss-Legendre on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return (nodes + 1) / 2, np.log(weights / 2)


def _fall(a: Floats, b: Floats, at: Floats, co: Floats, by: Floats) -> Floats:
    """φ at θ = ``at`` = 1 − ``co``, less φ as far as ``by`` below it on the logit scale."""
    # Two forms of one formula; each loses digits where the other is used.
    low = (a + b) * np.log1p(at * np.expm1(-by)) + a * by
    near = np.minimum(by, _EXPONENT_MAX)
    high = (a + b) * (np.log1p(co * np.expm1(near)) + by - near) - b * by
    return np.where(at < 0.5, low, high)


def _reach(a: Floats, b: Floats, at: Floats, co: Floats) -> Floats:
    """How far below ``at`` φ falls by ``_DROP``; ``at`` is at the peak or below it."""
    # Newton's method. φ is concave: from beyond the answer each step stays beyond it, so an early
    # stop makes the stretch too long, never too short. First guess: the nearer of the normal shape
    # around the peak, the Poisson shape of the steep side, and the tangent at ``at``.
    slope = a * co - b * at
    by = np.minimum(np.sqrt(2 * _DROP * (1 / a + 1 / b)), np.log1p(4 + _DROP / b) + _DROP / a)
    by = np.minimum(by, _DROP / np.maximum(slope, _TINY))
    for _ in range(_NEWTON_STEPS):
        shrunk = at * np.exp(-by) / (co + at * np.exp(-by))
        excess = _fall(a, b, at, co, by) - _DROP
        step = excess / np.maximum(a - (a + b) * shrunk, _TINY)
        by = by - step
        if np.all((excess > -1e-3) & (np.abs(step) < 0.02 * by)):
            break
    return by


def _log_stretch(a: Floats, b: Floats, at: Floats, co: Floats, length: Floats) -> Floats:
    """log of ∫ exp(−fall) over at most ``length`` below ``at`` (at the peak or below it)."""
    nodes, log_weights = _gauss()
    length = np.minimum(length, _reach(a, b, at, co))
    by = length[..., None] * nodes
    terms = log_weights - _fall(a[..., None], b[..., None], at[..., None], co[..., None], by)
    return np.asarray(np.log(length) + _logsumexp(terms))


def _logsumexp(values: Floats) -> Floats:
    top = np.max(values, axis=-1)
    return np.asarray(top + np.log(np.sum(np.exp(values - top[..., None]), axis=-1)))


def _log_ratio(value: Floats, x: Floats, gap: Floats) -> Floats:
    """log(value / x), where ``gap`` = value − x keeps the digits of nearly equal ones."""
    near = np.abs(gap) < x / 2
    return np.where(near, np.log1p(np.where(near, gap, 0.0) / x), np.log(value / x))


def _log_below(a: Floats, b: Floats, x: Floats, co: Floats) -> Floats:
    """``log_mass_below``; ``co`` = 1 − x, given apart so that neither end loses digits."""
    peak, peak_co = a / (a + b), b / (a + b)
    gap = np.where(x < 0.5, peak - x, co - peak_co)
    inside = gap < 0  # the peak is below x: it splits the stretch
    start, start_co = np.where(inside, peak, x), np.where(inside, peak_co, co)
    whole = _log_stretch(a, b, start, start_co, np.full(a.shape, np.inf))
    if not inside.any():
        return whole
    rise, fall = _log_ratio(peak, x, gap), _log_ratio(peak_co, co, -gap)
    # The other side of the peak, seen in a mirror: θ ↔ 1 − θ, a ↔ b.
    rest = _log_stretch(b, a, peak_co, peak, np.maximum(fall - rise, _TINY))
    return np.where(inside, a * rise + b * fall + np.logaddexp(whole, rest), whole)


def _broadcast(*values: npt.ArrayLike) -> list[Floats]:
    return list(np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values)))


def log_mass_below(a: npt.ArrayLike, b: npt.ArrayLike, x: npt.ArrayLike) -> Floats:
    """log of ∫ over θ in (0, x) of (θ/x)^a ((1−θ)/(1−x))^b dθ / (θ(1−θ)).

    ``a``, ``b`` ≥ 0.05 and ``x`` in (0, 1) broadcast against each other; float64 of their shape.
    """
    a, b, x = _broadcast(a, b, x)
    return _log_below(a, b, x, 1 - x)


def log_mass_above(a: npt.ArrayLike, b: npt.ArrayLike, x: npt.ArrayLike) -> Floats:
    """The same over θ in (x, 1)."""
    a, b, x = _broadcast(a, b, x)
    return _log_below(b, a, 1 - x, x)


def log_betainc(a: npt.ArrayLike, b: npt.ArrayLike, x: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Logarithms of the regularized incomplete beta I_x(a, b) and of 1 − I_x(a, b).

    Both keep their digits, however small. ``a``, ``b`` ≥ 0.05; ``x`` in (0, 1); arrays broadcast.
    """
    a, b, x = _broadcast(a, b, x)
    return _log_tails(a, b, x, 1 - x)


def _log_tails(a: Floats, b: Floats, x: Floats, co: Floats) -> tuple[Floats, Floats]:
    below, above = _log_below(a, b, x, co), _log_below(b, a, co, x)
    total = np.logaddexp(below, above)
    return below - total, above - total


def logistic(logit: npt.ArrayLike) -> Floats:
    """1/(1 + e^−logit)."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(logit, np.float64))))


def solve_rising(function: Callable[[Floats], Floats], low: float, high: float) -> float:
    """Where a rising function of an array turns positive between ``low`` and ``high``.

    The last place if there are several; the end nearer to it if there is none. Each round looks at
    a whole grid, which for numpy costs little more than one point, and zooms into one cell.
    """
    ends = np.array([0.0, 0.0])
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _GRID)
        values = function(grid)
        negative = np.flatnonzero(values < 0)
        if negative.size == 0:
            return low
        at = int(negative[-1])
        if at == _GRID - 1:
            return high
        low, high = float(grid[at]), float(grid[at + 1])
        ends = values[at : at + 2]
    share = -ends[0] / (ends[1] - ends[0])
    return low + float(share) * (high - low)


def _check(k: int, n: int, alpha: float) -> None:
    if not 0 <= k <= n or n < 1:
        raise ValueError(f"{k} of {n} is no count: needs 0 ≤ k ≤ n and n ≥ 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a risk between 0 and 1, not {alpha}")


def clopper_pearson(k: int, n: int, alpha: float) -> tuple[float, float]:
    """Exact bounds on a rate of which ``k`` in ``n`` independent trials were seen.

    Each bound on its own is wrong with a probability of at most ``alpha``; an interval whose two
    ends hold together at 1 − α takes ``alpha/2``. ValueError for counts or a risk that are none.

    Source: Clopper and Pearson, Biometrika 26 (1934): the lower bound is the rate at which seeing
    k or more has probability α, the upper the rate at which k or fewer has.
    """
    _check(k, n, alpha)
    return _lower(k, n, math.log(alpha)), _upper(k, n, math.log(alpha))


def _lower(k: int, n: int, log_alpha: float) -> float:
    if k == 0:
        return 0.0
    if k == n:
        return math.exp(log_alpha / n)
    # P(at least k | p) = I_p(k, n−k+1)
    return float(logistic(solve_rising(_excess(k, n - k + 1, log_alpha), -_LOGIT_MAX, _LOGIT_MAX)))


def _upper(k: int, n: int, log_alpha: float) -> float:
    if k == n:
        return 1.0
    if k == 0:
        return -math.expm1(log_alpha / n)
    # P(at most k | p) = 1 − I_p(k+1, n−k) = I_(1−p)(n−k, k+1)
    return float(logistic(-solve_rising(_excess(n - k, k + 1, log_alpha), -_LOGIT_MAX, _LOGIT_MAX)))


def _excess(a: int, b: int, log_alpha: float) -> Callable[[Floats], Floats]:
    """log I_x(a, b) − log α, of x as a logit."""

    def excess(logit: Floats) -> Floats:
        tails = _log_tails(*_broadcast(a, b, logistic(logit), logistic(-logit)))
        return tails[0] - log_alpha

    return excess


def requests_needed(limit: float, k: int, alpha: float) -> int:
    """The smallest n for which ``k`` of ``n`` certifies a rate under ``limit`` (Clopper-Pearson).

    ``limit`` in (0, 1); ValueError otherwise.
    """
    if not 0 < limit < 1:
        raise ValueError(f"the limit is a rate between 0 and 1, not {limit}")
    _check(k, k + 1, alpha)
    log_alpha = math.log(alpha)

    def certified(n: int) -> bool:  # P(at most k of n | limit) ≤ α: the upper bound is ≤ limit
        tail = n * math.log1p(-limit) if k == 0 else float(log_betainc(k + 1, n - k, limit)[1])
        return tail <= log_alpha

    low, high = k, k + 1
    while not certified(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if certified(middle) else (middle, high)
    return high
